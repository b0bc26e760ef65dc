"""python -m benchmarks.stream URL: samples a second of the exact stream, beside webdataset and beside plain reading.

All read the shards of the split `train` of one local data set from the page cache, in one process. The exact stream
shuffles, checks CRC-32C, decodes and stacks batches. webdataset goes through the tars in order and decodes each member
with the real zarr; it neither shuffles nor stacks. Plain reading is the limit: all bytes of the tars, nothing else.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.table import interleave, render, write_section
from pipeline.command import run_command
from pipeline.errors import ConfigError

BATCH = 16
_CHUNK = 1 << 22


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream", description=__doc__.splitlines()[0])
    parser.add_argument("url", metavar="URL", help="a data set on this machine's disk")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--into", metavar="FILE", help="also write the table into this Markdown file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)

    from sharding.dataset import open_dataset

    store, manifest = open_dataset(arguments.url)
    if not store.is_local:
        raise ConfigError(f"{arguments.url} is not on this machine; copy the data set to a local disk")
    shards = manifest.shards_of("train")
    paths = [Path(store.full(shard.path)) for shard in shards]
    in_set = sum(shard.samples for shard in shards)
    num_samples = max(BATCH, (500 if arguments.quick else 4000) // BATCH * BATCH)

    contenders: dict[str, Callable[[], float]] = {
        "plain reading of the tars": lambda: _read(paths, in_set, num_samples),
        "exact stream, 1 thread": lambda: _stream(arguments.url, 1, num_samples),
        "exact stream, 2 threads": lambda: _stream(arguments.url, 2, num_samples),
        "webdataset with zarr": lambda: _webdataset(paths, in_set, max(BATCH, num_samples // 8)),
    }
    rows = interleave(contenders, 3 if arguments.quick else 5, "samples/s")
    limit, one, two, rival = (row.value for row in rows)
    ratios = {"vs_webdataset": max(one, two) / rival, "share_of_reading": max(one, two) / limit}
    print(render(rows, ratios, arguments.json))
    if arguments.into:
        write_section(Path(arguments.into), "stream", render(rows, ratios, as_json=False))
    return 0


def _read(paths: list[Path], in_set: int, num_samples: int) -> float:
    buffer = bytearray(_CHUNK)
    began, seen = time.perf_counter(), 0
    while seen < num_samples:
        for path in paths:
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
        seen += in_set
    return seen / (time.perf_counter() - began)


def _stream(url: str, threads: int, num_samples: int) -> float:
    from pipeline.stream import Stream, StreamConfig

    with Stream(StreamConfig(url=url, global_batch=BATCH, threads=threads)) as stream:
        batches = iter(stream)
        next(batches)
        began = time.perf_counter()
        for _ in range(num_samples // BATCH):
            next(batches)
        return num_samples / (time.perf_counter() - began)


def _webdataset(paths: list[Path], in_set: int, num_samples: int) -> float:
    import webdataset

    from pipeline.stream.webdataset_reader import read_member

    began, seen = time.perf_counter(), 0
    while seen < num_samples:
        for sample in webdataset.WebDataset([str(path) for path in paths], shardshuffle=False, empty_check=False):
            read_member(sample["zarr.zip"])
            seen += 1
            if seen >= num_samples:
                break
    return seen / (time.perf_counter() - began)


if __name__ == "__main__":
    run_command(main)
