"""What a run was trained on."""

from typing import Any

from pipeline.errors import FusMAEError


def fingerprints(environment: dict[str, Any] | None, url: str) -> list[str]:
    """Of what the run was trained on at `url`; of a mixture, nothing when none of its data sets lies there."""
    if not environment:
        return []
    if members := environment.get("mixture"):
        return [m["fingerprint"] for m in members.values() if m["url"].rstrip("/") == url.rstrip("/")]
    return [environment["data_fingerprint"]] if environment.get("data_fingerprint") else []


def describe_data(url: str) -> dict[str, Any]:
    """Counts, bands, labels and the map of a data set; only `problem` when it cannot be read."""
    import numpy as np

    from pipeline.report.figures.places import map_figure
    from sharding.dataset import open_dataset
    from sharding.shard_index import parse_index

    try:
        store, manifest = open_dataset(url)
        parts = [
            (shard.split, parse_index(store.read(shard.index_path), store.name(shard.index_path)).records)
            for shard in manifest.shards
        ]
    except FusMAEError as error:
        return {"problem": str(error)}
    splits = list(manifest.splits)
    label_counts = {word: dict.fromkeys(splits, 0) for word in manifest.labels}
    for split, records in parts:
        for bit, word in enumerate(manifest.labels):
            label_counts[word][split] += int((records["labels"] >> np.uint64(bit) & np.uint64(1)).sum())
    lon, lat = (np.concatenate([records[axis] for _, records in parts]) for axis in ("lon", "lat"))
    split_of = np.repeat([split for split, _ in parts], [len(records) for _, records in parts])
    known = np.isfinite(lon) & np.isfinite(lat)
    first = manifest.arrays[0]
    return {
        "problem": None,
        "manifest": manifest,
        "samples": sum(manifest.splits.values()),
        "num_bytes": sum(shard.num_bytes for shard in manifest.shards),
        "labels": sorted(label_counts.items(), key=lambda item: -sum(item[1].values())),
        "unused_labels": [word for word, counts in label_counts.items() if not any(counts.values())],
        "map": map_figure(lon[known], lat[known], split_of[known].tolist(), first.width * first.gsd_m)
        if known.any()
        else None,
        "without_place": int((~known).sum()),
    }
