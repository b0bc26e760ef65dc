"""One run of one contender, in a process of its own; writes what it measured as JSON.

`python -m benchmarks.stream_contender SPEC`: SPEC is JSON, written by `benchmarks.stream`.
"""

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.stream_data import SHAPES, Truth
from benchmarks.stream_readers import Part, Reader, Task, reader_class

_TICK = 1 / os.sysconf("SC_CLK_TCK")
_WARM_BATCHES = 16
"""By then the shuffle buffers of 1,000 samples are full."""
_LEAST_BATCHES = 8
_LATER_EPOCHS = 2
_LONGEST_S = 30
"""Slow contenders are timed for longer: batches come in pairs when there are two workers."""
_REMOTE = {"s3fs": ("s3fs", "aiobotocore.session", "botocore.session"), "obstore": ("s3fs", "obstore.store")}


@dataclass(frozen=True, kw_only=True)
class Spec:
    task: Task
    out: str
    action: str
    """`rate`, `first`, `resume` or `transfer`."""
    seconds: float = 3.0
    compare: int = 0
    """Batches to compare with the truth before the clock starts."""
    loop_ms: float = 0.0
    """Pure Python between batches, as a training loop."""
    batches: int = 0
    """`first`: go on for so many batches, then write the state and the ids of the next batch."""
    state: Any = None


def main(argument: str) -> None:
    given = json.loads(argument)
    spec = Spec(**{**given, "task": Task(**given["task"])})
    # Rivals print what they like; the result goes into a file.
    os.dup2(2, 1)
    hide = spec.task.reader == "mds"
    if hide:
        from benchmarks.stream_rivals import hide_unused_imports

        hide_unused_imports()
        import streaming  # noqa: F401
    cls = reader_class(spec.task.reader)
    for name in (*getattr(cls, "imports", ()), *(_REMOTE.get(spec.task.client, ()) if spec.task.remote else ())):
        importlib.import_module(name)
    _single_threaded_torch()
    told = {"rate": _rate, "first": _first, "resume": _resume, "transfer": _transfer}[spec.action](cls, spec)
    Path(spec.out).write_text(json.dumps(told))


def _rate(cls: Any, spec: Spec) -> dict[str, Any]:
    """Samples a second while it runs on; the first batches of an epoch are not counted.

    A rival that starts an epoch anew pays for that once in minutes in real use, so it does not pay here.
    """
    loop = _Loop(spec.loop_ms)
    reader: Reader = cls(spec.task)
    if spec.compare:
        _compare(islice(reader.epoch(), spec.compare), Truth(reader.root), spec.task.batch)
    gc.collect()
    clock = _Clock()
    read_before = _bytes_from_disk()
    warm = min(_WARM_BATCHES, reader.num_pairs // spec.task.batch // 4) if reader.warms_up else 0
    samples = batches = 0

    def is_over(wall: float) -> bool:
        return wall >= spec.seconds and (batches >= _LEAST_BATCHES or wall >= _LONGEST_S)

    while not is_over(clock.wall):
        parts = reader.epoch()
        for _ in range(warm):
            next(parts)
        before = batches
        clock.start()
        for part in parts:
            samples += part.num_samples
            batches += 1
            loop.run()
            if is_over(clock.running()):
                break
        clock.stop()
        if batches == before:
            raise RuntimeError(f"an epoch has fewer than {warm + 1} batches; give more --pairs")
    return {
        "samples": samples,
        "wall": clock.wall,
        "cpu": clock.cpu - loop.cpu,
        "loop_s": loop.spent,
        "loops": loop.count,
        "from_disk": _bytes_from_disk() - read_before,
        "rss_mib": _peak_mib(),
    }


def _first(cls: Any, spec: Spec) -> dict[str, Any]:
    """Time to the first batch; then the state after `batches` batches and what comes next."""
    began = time.perf_counter()
    reader: Reader = cls(spec.task)
    parts = reader.epoch()
    next(parts)
    told: dict[str, Any] = {"seconds": time.perf_counter() - began}
    if spec.batches:
        for _ in range(spec.batches - 1):
            next(parts)
        try:
            told["state"] = reader.state()
        except NotImplementedError:
            told["state"] = spec.batches * spec.task.batch  # its `resume` counts samples
        told["state_bytes"] = len(json.dumps(told["state"]))
        told["next"] = _ids(next(parts))
    return told


def _resume(cls: Any, spec: Spec) -> dict[str, Any]:
    began = time.perf_counter()
    reader: Reader = cls(spec.task)
    part = next(reader.resume(spec.state))
    return {"seconds": time.perf_counter() - began, "next": _ids(part)}


def _transfer(cls: Any, spec: Spec) -> dict[str, Any]:
    """All pairs once. What opens the data set is not counted, for of much data it is nothing; all that it pulls is.

    Who goes on after that and counts what he fetches is timed for two more epochs, with his memory in place.
    """
    began = time.perf_counter()
    reader: Reader = cls(spec.task)
    opened = time.perf_counter() - began
    clock = _Clock()
    clock.start()
    samples, first = 0, 0.0
    parts = reader.epoch()
    for part in islice(parts, spec.batches):
        samples += part.num_samples
        first = first or opened + clock.running()
    clock.stop()
    told = {"samples": samples, "wall": clock.wall, "cpu": clock.cpu, "first": first, "rss_mib": _peak_mib()}
    before = reader.bytes_fetched()
    if before is not None:
        later = _Clock()
        later.start()
        told["later_samples"] = sum(part.num_samples for part in islice(parts, _LATER_EPOCHS * spec.batches))
        later.stop()
        told |= {"fetched": before, "later_wall": later.wall, "later_cpu": later.cpu}
        told["later_fetched"] = (reader.bytes_fetched() or 0) - before
    return told


def _compare(parts: Iterator[Part], truth: Truth, batch: int) -> None:
    """RuntimeError when a batch is not what is in the archive."""
    row_of = {key: row for row, key in enumerate(truth.keys)}
    for part in parts:
        if part.arrays is None:
            continue
        if part.ids is None or len(part.ids) != batch:
            raise RuntimeError("a batch is not as large as it was to be")
        rows = [row_of[name] if isinstance(name, str) else int(name) for name in part.ids]
        for name in SHAPES:
            found = np.asarray(part.arrays[name])
            if found.dtype != truth.arrays[name].dtype or not np.array_equal(found, truth.arrays[name][rows]):
                raise RuntimeError(f"{name} of {part.ids[0]} and the others of its batch is not what was stored")


class _Clock:
    """Wall time, and processor time of this process and all below it, summed over pieces."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def start(self) -> None:
        self._cpu, self._wall = _cpu_seconds(), time.perf_counter()

    def running(self) -> float:
        return self.wall + time.perf_counter() - self._wall

    def stop(self) -> None:
        self.wall += time.perf_counter() - self._wall
        self.cpu += _cpu_seconds() - self._cpu


def _cpu_seconds() -> float:
    """Of this process, its children that have ended, and all processes below it."""
    ended = os.times()
    total = time.process_time() + ended.children_user + ended.children_system
    for pid in _below(os.getpid()):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        total += sum(map(int, fields[11:15])) * _TICK  # with what its own ended children took
    return total


def _below(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            children = (task / "children").read_text().split()
        except OSError:
            continue
        for child in map(int, children):
            yield child
            yield from _below(child)


class _Loop:
    """Pure Python that takes `ms` when nothing disturbs it, and holds the GIL meanwhile."""

    def __init__(self, ms: float) -> None:
        self.spent = self.cpu = 0.0
        self.count = self._turns = 0
        if ms:
            turns = 20_000
            # In processor time, which neighbours on the machine do not lengthen.
            best = min(_spin(turns, time.thread_time) for _ in range(20))
            self._turns = round(turns * ms / 1000 / best)

    def run(self) -> None:
        if self._turns:
            before = time.thread_time()
            self.spent += _spin(self._turns, time.perf_counter)
            self.cpu += time.thread_time() - before
            self.count += 1


def _spin(turns: int, clock: Callable[[], float]) -> float:
    began, value = clock(), 1
    for _ in range(turns):
        value = value * 1103515245 + 12345 & 0x7FFFFFFF
    return clock() - began


def _ids(part: Part) -> list[Any]:
    return list(part.ids or ())


def _bytes_from_disk() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])


def _peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def _single_threaded_torch() -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


if __name__ == "__main__":
    main(sys.argv[1])
    sys.stderr.flush()
    os._exit(0)  # some rivals' threads and workers would keep the process; whoever started it ends what is left
