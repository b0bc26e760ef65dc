"""One contender of `python -m benchmarks.build`, run in a process of its own; prints its times as JSON.

All read the same rasters with the same function and encode the same arrays with the same codec. What differs is
how samples become shards: ours checks grids and pixels, gathers statistics, and writes index, checksums and manifest;
the others write.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.absent_modules import AbsentModules

SHARD_MIB = 128
"""Two shards of the default archive: workers take one each."""
_READING = [0.0]


def main(contender: str, root: str, out: str, codec: str, share: int, shares: int, rivals: str) -> None:
    began = time.perf_counter()
    run = {"sharding.build": _ours, "webdataset": _webdataset, "mds": _mds, "reading": _read_only, "copy": _copy}
    _time_reading()
    if contender == "mds":
        _import_mds(rivals)
    if contender in ("webdataset", "sharding.build"):
        import webdataset  # noqa: F401

        import sharding.builder
        import sharding.writer  # noqa: F401
    ready = time.perf_counter()
    pairs = run[contender](Path(root), Path(out), codec, share, shares)
    ended = time.perf_counter()
    files = (path for path in Path(out).rglob("*") if path.is_file())
    told = {
        "pairs": pairs,
        "seconds": ended - ready,
        "reading": _READING[0],
        "startup": ready - began,
        "bytes": sum(path.stat().st_size for path in files),
    }
    print(json.dumps(told))


def _time_reading() -> None:
    """Every contender reads through this one function, whose time is summed."""
    from sharding.sources import raster, reben_store

    plain = raster.read_raster

    def timed(*arguments: Any) -> Any:
        began = time.perf_counter()
        try:
            return plain(*arguments)
        finally:
            _READING[0] += time.perf_counter() - began

    reben_store.read_raster = timed  # type: ignore[attr-defined]


def _ours(root: Path, out: Path, codec: str, share: int, shares: int) -> int:
    """The command itself; `shares` is its number of workers."""
    from sharding import build

    quiet = open(os.devnull, "w")
    sys.stdout, terminal = quiet, sys.stdout
    arguments = ["--source", "reben", "--root", str(root), "--out", str(out), "--codec", codec]
    arguments += ["--shard-mib", str(SHARD_MIB), "--json"]
    code = build.main([*arguments, "--workers", str(shares)])
    sys.stdout = terminal
    assert code == 0
    return sum(1 for _ in root.glob("BigEarthNet-S2/*/*"))


def _samples(root: Path, share: int, shares: int) -> Iterator[tuple[str, dict[str, np.ndarray], dict[str, Any]]]:
    """Key, arrays and metadata of each pair of this share, as a careful script would read them."""
    import pyarrow.parquet as pq

    from sharding.bands import ARRAY_BANDS, MODALITY_ARRAYS
    from sharding.sources import reben_store
    from sharding.sources.tree import Tree

    tree = Tree(str(root))
    for row in pq.read_table(root / "metadata.parquet").to_pylist()[share::shares]:
        key, s1 = row["patch_id"], row["s1_name"]
        arrays = {}
        for name in ("s1", *MODALITY_ARRAYS["s2"]):
            half, patch, group = (
                ("S1", s1, s1.rsplit("_", 3)[0]) if name == "s1" else ("S2", key, key.rsplit("_", 2)[0])
            )
            folder = f"BigEarthNet-{half}/{group}/{patch}"
            planes = [
                reben_store.read_raster(tree, f"{folder}/{patch}_{band}.tif", (band,)).data  # type: ignore[attr-defined]
                for band in ARRAY_BANDS[name]
                if band != "B10"
            ]
            arrays[name] = np.concatenate(planes)
        yield key, arrays, {"labels": row["labels"], "split": row["split"], "s1_name": s1}


def _read_only(root: Path, out: Path, codec: str, share: int, shares: int) -> int:
    return sum(1 for _ in _samples(root, share, shares))


def _copy(root: Path, out: Path, codec: str, share: int, shares: int) -> int:
    from benchmarks.real_pairs import copy_bytes

    out.mkdir(parents=True)
    copy_bytes(root, out / "all")
    return sum(1 for _ in root.glob("BigEarthNet-S2/*/*"))


def _webdataset(root: Path, out: Path, codec: str, share: int, shares: int) -> int:
    import webdataset

    from sharding.codec import encode

    out.mkdir(parents=True, exist_ok=True)
    count = 0
    with webdataset.ShardWriter(f"{out}/{share}-%06d.tar", maxsize=SHARD_MIB << 20, verbose=0) as writer:
        for key, arrays, metadata in _samples(root, share, shares):
            sample = {f"{name}.bin": encode(array, codec) for name, array in arrays.items()}
            writer.write({"__key__": key, "json": metadata, **sample})
            count += 1
    return count


def _mds(root: Path, out: Path, codec: str, share: int, shares: int) -> int:
    from streaming import MDSWriter

    from sharding.codec import encode

    names = ("s1", "s2_10m", "s2_20m", "s2_60m")
    columns = {"key": "str", "metadata": "json", **dict.fromkeys(names, "bytes")}
    count = 0
    with MDSWriter(out=str(out / str(share)), columns=columns, size_limit=SHARD_MIB << 20) as writer:
        for key, arrays, metadata in _samples(root, share, shares):
            encoded = {name: encode(array, codec) for name, array in arrays.items()}
            writer.write({"key": key, "metadata": metadata, **encoded})
            count += 1
    return count


def _import_mds(rivals: str) -> None:
    sys.path.append(rivals)
    sys.meta_path.append(AbsentModules(("torchvision", "transformers")))
    import streaming  # noqa: F401


if __name__ == "__main__":
    name, root, out, codec, share, shares, rivals = sys.argv[1:]
    main(name, root, out, codec, int(share), int(shares), rivals)
