"""`python -m benchmarks.stream_soak`: an hour of streaming from a real S3 server with faults at random, counted.

A process streams a data set from OpenStack Swift (`make s3-server`) through a node cache that holds half of it, beside
a loop that holds the interpreter's lock as a training loop does. Every few seconds another fault is injected (503, 500,
cut, reset and flipped bodies, a slow server, damaged files of the cache); every half minute the stream is closed and
goes on from its state as another number of ranks. Each batch is compared with the order computed beside it and with
the digests of the pixels as they were uploaded. At the end nothing may have grown: memory, open files, threads, the
cache's folder, /dev/shm.
"""

import argparse
import gc
import hashlib
import json
import os
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.table import Row, render, write_section
from pipeline.command import run_command
from pipeline.errors import ConfigError, DataError

GLOBAL_BATCH = 48
RANKS = (1, 2, 3, 4)
WARM_UP = 0.25
"""Share of the time after which memory is looked at first."""
FAULTS = ("503", "500", "cut", "reset", "flip", "slow", "cache")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream_soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--loop-ms", type=float, default=20.0, help="Python a batch that holds the lock (default: 20)")
    parser.add_argument("--client", default="fsspec", choices=("fsspec", "obstore"))
    parser.add_argument("--seed", type=int, default=0, help="of the faults (default: 0)")
    parser.add_argument("--into", metavar="FILE", help="also write the table into this Markdown file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    from tests.s3server import S3Server, why_not_here

    if reason := why_not_here():
        raise ConfigError(f"no S3 server: {reason}")
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, S3Server(Path(folder, "swift")) as server:
        os.environ |= server.environment
        told = _soak(server, Path(folder), arguments)
    rows = [Row(name=name, value=value, unit=unit, low=low, high=high) for name, value, unit, low, high in told["rows"]]
    print(render(rows, told["ratios"], arguments.json))
    if arguments.into:
        write_section(Path(arguments.into), "stream-soak", render(rows, told["ratios"], as_json=False))
    return 0


def _soak(server: Any, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from pipeline.stream import Stream, StreamConfig
    from tests.unit.pipeline.small_shards import make

    made = make(folder / "pairs", (96,) * 8, codec="lz4", pixels=60)
    url, client = server.bucket("soak"), server.client()
    for path in made.root.rglob("*"):
        if path.is_file():
            client.put_object(Bucket="soak", Key=str(path.relative_to(made.root)), Body=path.read_bytes())
    digests = _digests(made)
    total_bytes = sum(shard.num_bytes for shard in made.manifest.shards)
    cache = folder / "cache"
    config = StreamConfig(
        url=url,
        global_batch=GLOBAL_BATCH,
        window_gib=total_bytes / 8 / 2**30,
        cache_dir=str(cache),
        cache_dir_gib=total_bytes / 2 / 2**30,
        client=arguments.client,
    )
    faults = _FaultThread(server, cache, arguments.seed)
    end = time.monotonic() + 60 * arguments.minutes
    looks: list[dict[str, float]] = []
    sums = dict.fromkeys(("requests", "retries", "corrupt", "replaced", "cache_hits", "cache_misses"), 0.0)
    state, ranks, step, opened = None, 1, 0, 0
    rng = random.Random(arguments.seed)
    seen = _Account(len(digests))
    waited = 0.0
    began = time.monotonic()
    faults.start()
    try:
        while time.monotonic() < end:
            streams = [Stream(config, rank, ranks) for rank in range(ranks)]
            opened += 1
            for stream in streams:
                if state is not None:
                    stream.load_state_dict(state)
            batches = [iter(stream) for stream in streams]
            until = min(time.monotonic() + 30, end)
            while time.monotonic() < until:
                whole = streams[0].order.slice_at(step * GLOBAL_BATCH)
                parts = [next(batch) for batch in batches]
                ids = [i for part in parts for i in part.sample_id.tolist()]
                if ids != whole.sample_id.tolist():
                    raise DataError(f"batch {step} on {ranks} ranks is not the one of the order")
                for part in parts:
                    _compare(part, digests, step)
                seen.add(whole.epoch, whole.sample_id)
                waited += max(part.wait_s for part in parts)
                step += 1
                _hold_the_lock(arguments.loop_ms)
            state = streams[0].state_dict()
            for stream in streams:
                stream.close()
                found = stream.instruments()
                for name in sums:
                    sums[name] += getattr(found, name)
            del batches, streams, stream, parts, part
            looks.append(_look(cache) | {"at": time.monotonic() - began})
            print(f"{looks[-1]['at']:.0f} s, step {step}, {ranks} ranks: {json.dumps(looks[-1])}", file=sys.stderr)
            ranks = rng.choice(RANKS)
    finally:
        faults.stop()
    seen.check(step * GLOBAL_BATCH)
    return _told(looks, sums, faults, step, opened, waited, time.monotonic() - began, arguments)


def _digests(made: Any) -> dict[str, str]:
    """By key: of all planes as they were written."""
    return {
        key: hashlib.sha256(b"".join(made.full(key, spec).tobytes() for spec in made.manifest.arrays)).hexdigest()
        for key in made.samples
    }


def _compare(batch: Any, digests: dict[str, str], step: int) -> None:
    for row, key in enumerate(batch.keys):
        planes = b"".join(array[row].numpy().tobytes() for array in batch.arrays.values())
        if hashlib.sha256(planes).hexdigest() != digests[key]:
            raise DataError(f"sample {key} of batch {step} has other pixels than were uploaded")


def _hold_the_lock(milliseconds: float) -> None:
    end, count = time.perf_counter() + milliseconds / 1000, 0
    while time.perf_counter() < end:
        count += 1


def _look(cache: Path) -> dict[str, float]:
    """What may not grow, between two streams."""
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    files = [path for path in cache.rglob("*") if path.is_file()]
    return {
        "resident_mib": resident / 2**20,
        "open_files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "cache_mib": sum(path.stat().st_blocks * 512 for path in files) / 2**20,
        "temporaries": sum(path.suffix == ".part" for path in files),
        "shared_memory": len(os.listdir("/dev/shm")),
    }


class _Account:
    """How often each sample came in each epoch; an epoch whose samples all came once is forgotten, so it is small."""

    def __init__(self, num_samples: int) -> None:
        self._num_samples = num_samples
        self._open: dict[int, np.ndarray] = {}
        self._whole = 0

    def add(self, epochs: np.ndarray, samples: np.ndarray) -> None:
        for epoch in np.unique(epochs).tolist():
            times = self._open.setdefault(epoch, np.zeros(self._num_samples, np.uint8))
            np.add.at(times, samples[epochs == epoch], 1)
            if times.max() > 1 or epoch < self._whole:
                raise DataError(f"in epoch {epoch} some sample came twice")
            if times.all():
                del self._open[epoch]
                self._whole += 1

    def check(self, num_samples: int) -> None:
        whole, rest = divmod(num_samples, self._num_samples)
        if self._whole != whole or sum(int(times.sum()) for times in self._open.values()) != rest:
            raise DataError(f"{self._whole} epochs came whole of {num_samples} samples in all")


class _FaultThread(threading.Thread):
    """Another fault every few seconds."""

    def __init__(self, server: Any, cache: Path, seed: int) -> None:
        super().__init__(name="faults", daemon=True)
        self._server, self._cache = server, cache
        self._rng = random.Random(seed + 1)
        self._ended = threading.Event()
        self.set_by_kind = dict.fromkeys(FAULTS, 0)
        self.seen = 0

    def run(self) -> None:
        from pipeline.stream.reader import MAX_RENEWED
        from tests.s3server.faults import Fault

        while not self._ended.wait(self._rng.uniform(2, 6)):
            self.seen += len(self._server.faults.seen())
            kind = self._rng.choice(FAULTS)
            self.set_by_kind[kind] += 1
            if kind == "cache":
                self._damage_a_file()
                continue
            amount = {"slow": 500_000}.get(kind, self._rng.randrange(5_000, 60_000))
            # What comes damaged three times in a row stops a run, and is to: then it is the object.
            times = self._rng.randint(1, MAX_RENEWED if kind == "flip" else 4)
            self._server.faults.set([Fault(do=kind, path="/shards/", times=times, amount=amount)])

    def _damage_a_file(self) -> None:
        files = sorted(self._cache.rglob("*.range"))
        if files:
            try:
                with self._rng.choice(files).open("r+b") as file:
                    content = bytearray(file.read())
                    content[::997] = bytes(byte ^ 1 for byte in content[::997])
                    file.seek(0)
                    file.write(content)
            except FileNotFoundError:
                pass  # it was evicted in the meantime

    def stop(self) -> None:
        self._ended.set()
        self.join()
        self.seen += len(self._server.faults.seen())
        self._server.faults.set([])


def _told(
    looks: list[dict[str, float]],
    sums: dict[str, float],
    faults: _FaultThread,
    steps: int,
    opened: int,
    waited: float,
    seconds: float,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    later = [look for look in looks if look["at"] >= WARM_UP * seconds] or looks[-1:]
    rows: list[tuple[str, float, str, float, float]] = [
        ("streamed", seconds / 60, "minutes", seconds / 60, seconds / 60),
        ("samples, each compared", steps * GLOBAL_BATCH, "samples", steps * GLOBAL_BATCH, steps * GLOBAL_BATCH),
        ("streams opened, 1 to 4 ranks", opened, "times", opened, opened),
        ("waiting for data", 100 * waited / seconds, "% of the time", 0, 0),
        ("faults of the server that were met", faults.seen, "faults", faults.seen, faults.seen),
        ("damaged cache files", faults.set_by_kind["cache"], "files", 0, 0),
    ]
    rows += [(name.replace("_", " "), value, "in all", value, value) for name, value in sums.items()]
    for name in ("resident_mib", "open_files", "threads", "cache_mib", "temporaries", "shared_memory"):
        values = [look[name] for look in later]
        rows.append((name.replace("_", " ") + ", after the warm-up", values[-1], "", min(values), max(values)))
    first, last = later[0], later[-1]
    ratios = {
        "memory_growth": last["resident_mib"] / first["resident_mib"],
        "open_files_growth": last["open_files"] - first["open_files"],
        "wrong_samples": 0.0,
    }
    return {"rows": rows, "ratios": ratios}


if __name__ == "__main__":
    run_command(main)
