"""What differs between two data sets: settings, samples, pixels, and what is known of samples."""

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from sharding.bands import present_bands
from sharding.dataset import open_dataset
from sharding.existing import metadata_of
from sharding.manifest import Manifest
from sharding.read_sample import READERS, Located, read_indexes, read_sample
from sharding.store import Store

_SHOWN: Final = 5
_SETTINGS: Final = ("codec", "labels", "version", "subset", "selection", "s1_error_db")


@dataclass(frozen=True, kw_only=True)
class _Side:
    store: Store
    manifest: Manifest
    samples: dict[str, Located]

    @property
    def lines(self) -> Iterator[dict[str, Any]]:
        """What is known of each sample, one after the other: of millions they do not fit into memory."""
        return (line for _, lines in metadata_of(self.store, self.manifest) for line in lines)


def compare(a: str, b: str) -> dict[str, Any]:
    """Counts and first examples of all that differs between the data sets at two URLs, as JSON can say them.

    Pixels are the same when the checksums of equally encoded payloads are; all other payloads are decoded.
    """
    one, two = _open(a), _open(b)
    both = [key for key in one.samples if key in two.samples]
    pixels = _differing_pixels(one, two, both)
    facts = _differing_facts(one, two)
    settings = _differing_settings(one.manifest, two.manifest)
    statistics = _differing_statistics(one.manifest, two.manifest)
    only = [[key for key in x.samples if key not in y.samples] for x, y in ((one, two), (two, one))]
    return {
        "a": a,
        "b": b,
        "equal": not (pixels or facts or settings or statistics or only[0] or only[1]),
        "same_fingerprint": one.manifest.fingerprint == two.manifest.fingerprint,
        "samples": [len(one.samples), len(two.samples)],
        "only_in_a": _told(dict.fromkeys(only[0], "")),
        "only_in_b": _told(dict.fromkeys(only[1], "")),
        "pixels_differ": _told({key: ", ".join(arrays) for key, arrays in pixels.items()}),
        "metadata_differ": {
            **_told({key: ", ".join(fields) for key, fields in facts.items()}),
            "fields": dict(sorted(Counter(field for fields in facts.values() for field in fields).items())),
        },
        "settings": settings,
        "statistics_differ": statistics,
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
            lines += [f"  {name}: {count} samples" for name, count in part.get("fields", {}).items()]
    for split, bands in found["statistics_differ"].items():
        lines.append(f"other statistics of {split}: {' '.join(bands)}")
    if found["equal"]:
        lines.append("the same samples, pixels, metadata and settings")
    return lines


def _open(url: str) -> _Side:
    store, manifest = open_dataset(url)
    samples = {}
    for shard, index in read_indexes(store, manifest.shards):
        for number, (key, record) in enumerate(zip(index.keys, index.records, strict=True)):
            samples[key] = Located(
                shard=shard, arrays=index.arrays, record=record, number=number, checksum=index.checksum
            )
    return _Side(store=store, manifest=manifest, samples=samples)


def _differing_pixels(one: _Side, two: _Side, keys: list[str]) -> dict[str, list[str]]:
    """By key: the arrays that differ. Only payloads whose bytes differ are read and decoded."""
    found, unsure = {}, {}
    for key in keys:
        differing, doubtful = _compare_records(one.samples[key], two.samples[key])
        if differing:
            found[key] = differing
        if doubtful:
            unsure[key] = doubtful
    with ThreadPoolExecutor(READERS) as executor:
        decoded = executor.map(lambda key: _compare_decoded(one, two, key, unsure[key]), unsure)
        for key, differing in zip(unsure, decoded, strict=True):
            if differing:
                found[key] = found.get(key, []) + differing
    return {key: found[key] for key in keys if key in found}


def _compare_records(a: Located, b: Located) -> tuple[list[str], list[str]]:
    """The arrays that differ for certain, and those whose payloads are other bytes."""
    payloads = [
        {name: payload for name, payload in zip(x.arrays, x.record["arrays"], strict=True) if payload["length"]}
        for x in (a, b)
    ]
    differing = sorted(payloads[0].keys() ^ payloads[1].keys())
    unsure = []
    for name, payload in payloads[0].items():
        if name not in payloads[1]:
            continue
        other = payloads[1][name]
        if _bands(a, name) != _bands(b, name):
            differing.append(f"bands of {name}")
        elif payload["radiometric_offset"] != other["radiometric_offset"]:
            differing.append(name)
        elif _facts(a, payload) != _facts(b, other) or "none" in (a.checksum, b.checksum):
            unsure.append(name)  # another release of an encoder may write the same pixels in other bytes
    return differing, unsure


def _facts(sample: Located, payload: np.void) -> tuple[Any, ...]:
    """What makes payloads the same bytes, and their pixels the same part of them."""
    skip = int(payload["skip"]) if sample.shard.parts else 0
    return sample.checksum, skip, *(int(payload[field]) for field in ("codec", "crc32c", "length"))


def _bands(sample: Located, name: str) -> tuple[str, ...]:
    """Of an array that is there; one that was indexed as it lies always has all that the manifest says."""
    return () if sample.shard.parts else present_bands(int(sample.record["presence"]), name)


def _compare_decoded(one: _Side, two: _Side, key: str, arrays: list[str]) -> list[str]:
    a, b = (read_sample(x.store, x.manifest, x.samples[key], arrays) for x in (one, two))
    return [name for name in arrays if not _same(a[name].data, b[name].data)]


def _same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _differing_facts(one: _Side, two: _Side) -> dict[str, list[str]]:
    """By key: the fields and attributes that differ, in the order of the second data set."""
    texts = {line["key"]: json.dumps(line) for line in one.lines if line["key"] in two.samples}
    found = {}
    for line in two.lines:
        key = line["key"]
        if key in texts and (fields := _differing_fields(json.loads(texts[key]), line)):
            found[key] = fields
    return found


def _differing_fields(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    one, two = ({**line, **{f"attributes.{name}": v for name, v in line["attributes"].items()}} for line in (a, b))
    names = (one.keys() | two.keys()) - {"attributes"}
    return sorted(name for name in names if one.get(name) != two.get(name))


def _differing_statistics(a: Manifest, b: Manifest) -> dict[str, list[str]]:
    """By split: the bands of which any figure differs. They follow from the samples, or are those of a whole."""
    found = {}
    for split in dict.fromkeys((*a.statistics, *b.statistics)):
        one, two = a.statistics.get(split, {}), b.statistics.get(split, {})
        bands = [band for band in dict.fromkeys((*a.bands, *b.bands)) if one.get(band) != two.get(band)]
        if bands:
            found[split] = bands
    return found


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
