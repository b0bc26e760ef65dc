"""The figures of a data set, from its manifest, indexes and metadata; no pixel is read."""

from dataclasses import asdict
from typing import Any, Final

import numpy as np

from sharding.bands import ALL_BANDS, are_classes
from sharding.dataset import open_dataset
from sharding.errors import ConfigError
from sharding.existing import metadata_of
from sharding.manifest import ALL_SPLITS, Manifest
from sharding.report import align
from sharding.sample_facts import days_apart
from sharding.shard_index import parse_index
from sharding.statistics import parse_statistics
from sharding.store import Store

_TRAIN: Final = "train"
_CLASSES: Final = 8
"""That are told in the table; the JSON has all."""


def summarise(url: str, split: str = "") -> dict[str, Any]:
    """All figures of the data set at `url`, as JSON can say them; values are those of `split`.

    Without one they are those of the split train, or of everything where there is no train. ConfigError for a split
    without statistics.
    """
    store, manifest = open_dataset(url)
    over = split or (_TRAIN if _TRAIN in manifest.statistics else ALL_SPLITS)
    if over not in manifest.statistics:
        known = [name for name in (*manifest.splits, ALL_SPLITS) if name in manifest.statistics]
        raise ConfigError(f"--split is '{over}'; there are statistics of {', '.join(known)}")
    statistics = manifest.statistics[over]
    splits: dict[str, dict[str, Any]] = {}
    bands = dict.fromkeys(manifest.bands, 0)
    own_bytes = 0.0
    for shard in manifest.shards:
        records = parse_index(store.read(shard.index_path), store.name(shard.index_path)).records
        counts = splits.setdefault(
            shard.split, {"samples": 0, "shards": 0, "bytes": 0, "labels": dict.fromkeys(manifest.labels, 0)}
        )
        counts["samples"] += shard.samples
        counts["shards"] += 1
        counts["bytes"] += sum(size for _, size, _ in shard.files)
        own_bytes += sum(size for _, size, _ in shard.files) - shard.num_bytes
        own_bytes += shard.num_bytes * shard.samples / shard.tar_samples  # a subset leaves samples of its tars out
        for i, label in enumerate(manifest.labels):
            counts["labels"][label] += _count_bit(records["labels"], i)
        for band in bands:
            bands[band] += _count_bit(records["presence"], ALL_BANDS.index(band))
    samples = sum(counts["samples"] for counts in splits.values())
    num_bytes = sum(counts["bytes"] for counts in splits.values())
    return {
        "url": url,
        "fingerprint": manifest.fingerprint,
        "version": manifest.version,
        "parent": manifest.parent,
        "subset": manifest.subset,
        "selection": manifest.selection,
        "codec": manifest.codec,
        "s1_error_db": manifest.s1_error_db,
        "days_apart": _days_apart(store, manifest),
        "samples": samples,
        "mib": round(num_bytes / 2**20, 3),
        "kb_per_pair": round(own_bytes / 1000 / samples, 2) if samples else None,
        "splits": splits,
        "sources": [asdict(source) for source in manifest.sources],
        "arrays": [asdict(array) for array in manifest.arrays],
        "bands_over": over,
        "bands": {
            band: {"samples": count, **(asdict(statistics[band]) if band in statistics else {})}
            for band, count in bands.items()
        },
        "classes": _classes(store, manifest, over),
    }


def _classes(store: Store, manifest: Manifest, split: str) -> dict[str, dict[str, float]]:
    """Of each band whose numbers are classes: the share of its pixels by class, the most frequent first."""
    specs = [spec for spec in manifest.arrays if are_classes(spec.bands, spec.units)]
    if not specs:
        return {}
    counted = parse_statistics(store.read(manifest.statistics_path), store.name(manifest.statistics_path))[split]
    found = {}
    for band in (band for spec in specs for band in spec.bands if band in counted):
        ordered = sorted(counted[band].histogram, key=lambda pair: (-pair[1], pair[0]))
        found[band] = {str(code): round(count / counted[band].count, 6) for code, count in ordered}
    return found


def _days_apart(store: Store, manifest: Manifest) -> dict[str, float] | None:
    """Between S1 and S2, over the samples whose dates are known; None when there are none."""
    all_days = (days_apart(line["dates"]) for _, lines in metadata_of(store, manifest) for line in lines)
    found = [days for days in all_days if days is not None]
    if not found:
        return None
    figures = {"samples": len(found), "min": min(found), "median": float(np.median(found)), "max": max(found)}
    return {name: round(value, 3) for name, value in figures.items()}


def _count_bit(masks: np.ndarray[Any, Any], bit: int) -> int:
    return int((masks >> np.uint64(bit) & np.uint64(1)).sum())


def _over(split: str) -> str:
    return "all splits" if split == ALL_SPLITS else f"the split {split}"


def _class_lines(classes: dict[str, dict[str, float]]) -> list[str]:
    rows = []
    for band, shares in classes.items():
        told = [f"{code}: {100 * share:.3g} %" for code, share in list(shares.items())[:_CLASSES]]
        rest = [f"{len(shares) - _CLASSES} more"] if len(shares) > _CLASSES else []
        rows.append((band, ", ".join([*told, *rest])))
    return ["", "classes, by share of the pixels", *align(rows)] if rows else []


def _version(figures: dict[str, Any]) -> str:
    text = str(figures["version"])
    if figures["subset"]:
        rules = ", ".join(
            f"{name} {value if isinstance(value, str) else ' or '.join(value)}"
            for name, value in figures["selection"].items()
        )
        text += f", subset {figures['subset']}: {rules}"
    return text


def summary_lines(figures: dict[str, Any]) -> list[str]:
    """The figures for the terminal."""
    lines = align(
        [
            ("data set", figures["url"]),
            ("fingerprint", figures["fingerprint"]),
            ("version", _version(figures)),
            ("codec", figures["codec"] + (f", S1 off by {e:.3g} dB at worst" if (e := figures["s1_error_db"]) else "")),
            ("samples", str(figures["samples"])),
            ("size", f"{figures['mib']:.1f} MiB, {figures['kb_per_pair']:.1f} kB a pair"),
            *(
                ("source", f"{s['name']} {s['version']}: {s['samples']} samples, {' '.join(s['levels'])}")
                for s in figures["sources"]
            ),
            *(
                ("array", f"{a['name']} {a['height']}x{a['width']} {a['dtype']} {a['units']} at {a['gsd_m']:g} m")
                for a in figures["arrays"]
            ),
        ]
    )
    if days := figures["days_apart"]:
        lines.append(
            f"S1 and S2 are {days['min']:.1f} to {days['max']:.1f} days apart, {days['median']:.1f} in the middle "
            f"({days['samples']} samples)"
        )
    lines += ["", f"{'split':<8}{'samples':>9}{'shards':>8}{'MiB':>10}"]
    for name, split in figures["splits"].items():
        lines.append(f"{name:<8}{split['samples']:>9}{split['shards']:>8}{split['bytes'] / 2**20:>10.1f}")
    lines += [
        "",
        f"values of {_over(figures['bands_over'])}; samples of all splits",
        f"{'band':<12}{'samples':>9}{'mean':>12}{'std':>12}{'min':>12}{'1 %':>12}{'50 %':>12}{'99 %':>12}{'max':>12}",
    ]
    for name, band in figures["bands"].items():
        percentiles = [band.get("percentiles", {}).get(name) for name in ("1", "50", "99")]
        values = [*(band.get(field) for field in ("mean", "std", "minimum")), *percentiles, band.get("maximum")]
        if name in figures["classes"]:
            values = [None] * len(values)
        cells = "".join(f"{value:>12.3f}" if value is not None else f"{'-':>12}" for value in values)
        lines.append(f"{name:<12}{band['samples']:>9}{cells}")
    lines += _class_lines(figures["classes"])
    names = list(figures["splits"])
    labels = list(figures["splits"][names[0]]["labels"]) if names else []
    if labels:
        width = max(len(label) for label in labels)
        lines += ["", f"{'label':<{width}}" + "".join(f"{name:>10}" for name in names)]
        for label in labels:
            counts = "".join(f"{figures['splits'][name]['labels'][label]:>10}" for name in names)
            lines.append(f"{label:<{width}}{counts}")
    return lines
