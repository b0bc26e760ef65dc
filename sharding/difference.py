"""What differs between two data sets: settings, samples, pixels, and what is known of samples."""

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from sharding.dataset import open_dataset
from sharding.manifest import Manifest
from sharding.read_sample import Located, read_indexes, read_metadata, read_sample
from sharding.store import Store

_SHOWN: Final = 5
_SETTINGS: Final = ("codec", "labels", "version", "subset", "selection", "s1_error_db")


@dataclass(frozen=True, kw_only=True)
class _Side:
    store: Store
    manifest: Manifest
    samples: dict[str, Located]
    metadata: dict[str, list[dict[str, Any]]]

    def line(self, key: str) -> dict[str, Any]:
        """What is known of a sample."""
        located = self.samples[key]
        return self.metadata[located.shard.path][located.number]


def compare(a: str, b: str) -> dict[str, Any]:
    """Counts and first examples of all that differs between the data sets at two URLs, as JSON can say them.

    Pixels are the same when the checksums of equally encoded payloads are; all other payloads are decoded.
    """
    one, two = _open(a), _open(b)
    both = [key for key in one.samples if key in two.samples]
    pixels = {key: arrays for key in both if (arrays := _differing_arrays(one, two, key))}
    facts = {key: fields for key in both if (fields := _differing_fields(one.line(key), two.line(key)))}
    settings = _differing_settings(one.manifest, two.manifest)
    only = [[key for key in x.samples if key not in y.samples] for x, y in ((one, two), (two, one))]
    return {
        "a": a,
        "b": b,
        "equal": not (pixels or facts or settings or only[0] or only[1]),
        "same_fingerprint": one.manifest.fingerprint == two.manifest.fingerprint,
        "samples": [len(one.samples), len(two.samples)],
        "only_in_a": _told(dict.fromkeys(only[0], "")),
        "only_in_b": _told(dict.fromkeys(only[1], "")),
        "pixels_differ": _told({key: ", ".join(arrays) for key, arrays in pixels.items()}),
        "metadata_differ": _told({key: ", ".join(fields) for key, fields in facts.items()}),
        "settings": settings,
    }


def difference_lines(found: dict[str, Any]) -> list[str]:
    """The same for the terminal."""
    lines = [f"a: {found['a']}, {found['samples'][0]} samples", f"b: {found['b']}, {found['samples'][1]} samples"]
    lines += [f"{name}: {a} in a, {b} in b" for name, (a, b) in found["settings"].items()]
    for field, text in (
        ("only_in_a", "only in a"),
        ("only_in_b", "only in b"),
        ("pixels_differ", "other pixels"),
        ("metadata_differ", "other metadata"),
    ):
        part = found[field]
        if part["count"]:
            examples = (f"{key} ({what})" if what else key for key, what in part["first"].items())
            more = ", …" if part["count"] > _SHOWN else ""
            lines.append(f"{text}: {part['count']} samples: {', '.join(examples)}{more}")
    if found["equal"]:
        lines.append("the same samples, pixels, metadata and settings")
    return lines


def _open(url: str) -> _Side:
    store, manifest = open_dataset(url)
    samples = {}
    for shard, index in read_indexes(store, manifest.shards):
        for number, (key, record) in enumerate(zip(index.keys, index.records, strict=True)):
            samples[key] = Located(shard=shard, arrays=index.arrays, record=record, number=number)
    return _Side(
        store=store, manifest=manifest, samples=samples, metadata=read_metadata(store, manifest, manifest.shards)
    )


def _differing_arrays(one: _Side, two: _Side, key: str) -> list[str]:
    a, b = one.samples[key], two.samples[key]
    payloads = [
        {name: payload for name, payload in zip(x.arrays, x.record["arrays"], strict=True) if payload["length"]}
        for x in (a, b)
    ]
    if a.record["presence"] != b.record["presence"]:
        return sorted(set(payloads[0]) ^ set(payloads[1])) or ["bands"]
    unsure, differing = [], []
    for name, payload in payloads[0].items():
        other = payloads[1][name]
        if payload["radiometric_offset"] != other["radiometric_offset"]:
            differing.append(name)
        elif any(payload[field] != other[field] for field in ("codec", "crc32c", "length")):
            unsure.append(name)  # another release of an encoder may write the same pixels in other bytes
    if unsure:
        decoded = [read_sample(x.store, x.manifest, x.samples[key], unsure) for x in (one, two)]
        differing += [name for name in unsure if not _same(decoded[0][name].data, decoded[1][name].data)]
    return differing


def _same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _differing_fields(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    return sorted(field for field in a.keys() | b.keys() if a.get(field) != b.get(field))


def _differing_settings(a: Manifest, b: Manifest) -> dict[str, tuple[Any, Any]]:
    found = {name: (getattr(a, name), getattr(b, name)) for name in _SETTINGS if getattr(a, name) != getattr(b, name)}
    specs = [{spec.name: asdict(spec) for spec in manifest.arrays} for manifest in (a, b)]
    for name in dict.fromkeys((*specs[0], *specs[1])):
        one, two = specs[0].get(name), specs[1].get(name)
        if one is None or two is None:
            found[f"array {name}"] = ("present" if one else "absent", "present" if two else "absent")
            continue
        for field in one:
            if one[field] != two[field]:
                found[f"array {name}, {field}"] = (one[field], two[field])
    return found


def _told(examples: dict[str, str]) -> dict[str, Any]:
    return {"count": len(examples), "first": dict(list(examples.items())[:_SHOWN])}
