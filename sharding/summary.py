"""The figures of a data set, from its manifest and its indexes; no pixel is read."""

from dataclasses import asdict
from typing import Any

import numpy as np

from sharding.bands import ALL_BANDS
from sharding.dataset import open_dataset
from sharding.index import parse_index
from sharding.report import align


def summarise(url: str) -> dict[str, Any]:
    """All figures of the data set at `url`, as JSON can say them."""
    store, manifest = open_dataset(url)
    splits: dict[str, dict[str, Any]] = {}
    bands = dict.fromkeys(manifest.bands, 0)
    for shard in manifest.shards:
        records = parse_index(store.read(shard.index_path), store.name(shard.index_path)).records
        split = splits.setdefault(
            shard.split, {"samples": 0, "shards": 0, "bytes": 0, "labels": dict.fromkeys(manifest.labels, 0)}
        )
        split["samples"] += shard.samples
        split["shards"] += 1
        split["bytes"] += sum(size for _, size, _ in shard.files)
        for i, label in enumerate(manifest.labels):
            split["labels"][label] += _count_bit(records["labels"], i)
        for band in bands:
            bands[band] += _count_bit(records["presence"], ALL_BANDS.index(band))
    samples = sum(split["samples"] for split in splits.values())
    num_bytes = sum(split["bytes"] for split in splits.values())
    return {
        "url": url,
        "fingerprint": manifest.fingerprint,
        "codec": manifest.codec,
        "samples": samples,
        "mib": round(num_bytes / 2**20, 3),
        "kb_per_pair": round(num_bytes / 1000 / samples, 2) if samples else None,
        "splits": splits,
        "sources": [asdict(source) for source in manifest.sources],
        "arrays": [asdict(array) for array in manifest.arrays],
        "bands": {
            band: {
                "samples": count,
                **(asdict(manifest.training_statistics[band]) if band in manifest.training_statistics else {}),
            }
            for band, count in bands.items()
        },
    }


def _count_bit(masks: np.ndarray[Any, Any], bit: int) -> int:
    return int((masks >> np.uint64(bit) & np.uint64(1)).sum())


def summary_lines(figures: dict[str, Any]) -> list[str]:
    """The figures for the terminal."""
    lines = align(
        [
            ("data set", figures["url"]),
            ("fingerprint", figures["fingerprint"]),
            ("codec", figures["codec"]),
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
    lines += ["", f"{'split':<8}{'samples':>9}{'shards':>8}{'MiB':>10}"]
    for name, split in figures["splits"].items():
        lines.append(f"{name:<8}{split['samples']:>9}{split['shards']:>8}{split['bytes'] / 2**20:>10.1f}")
    lines += ["", f"{'band':<8}{'samples':>9}{'mean':>12}{'std':>12}{'min':>12}{'max':>12}"]
    for name, band in figures["bands"].items():
        values = [band.get(field) for field in ("mean", "std", "minimum", "maximum")]
        cells = "".join(f"{value:>12.3f}" if value is not None else f"{'-':>12}" for value in values)
        lines.append(f"{name:<8}{band['samples']:>9}{cells}")
    names = list(figures["splits"])
    labels = list(figures["splits"][names[0]]["labels"]) if names else []
    if labels:
        width = max(len(label) for label in labels)
        lines += ["", f"{'label':<{width}}" + "".join(f"{name:>10}" for name in names)]
        for label in labels:
            counts = "".join(f"{figures['splits'][name]['labels'][label]:>10}" for name in names)
            lines.append(f"{label:<{width}}{counts}")
    return lines
