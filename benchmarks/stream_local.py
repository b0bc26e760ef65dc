"""The part `local` of `benchmarks.stream`: samples a second from the page cache, on one core and on two."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.stream_data import GEOTIFF_PAIRS, SAMPLE_BYTES
from benchmarks.stream_readers import Task
from benchmarks.stream_report import Entry, better, ratio, render_entries
from benchmarks.stream_runs import Bench, Failure, Options, was_cold

RATE, BYTES, CPU = "samples/s", "MB/s", "CPU us a sample"
COMPARED_BATCHES = 3
RIVALS = {
    "webdataset": "webdataset, .npy",
    "terramesh": "webdataset, zarr.zip as TerraMesh",
    "mds": "MosaicML Streaming",
    "litdata": "LitData",
    "energon": "Megatron-Energon",
    "h5py": "h5py",
    "memmap": "memory-mapped .npy",
    "geotiff": f"rasterio, a GeoTIFF a band ({GEOTIFF_PAIRS} pairs)",
}
_RATIO_NAMES = {"terramesh": "terramesh_loader"}


@dataclass(frozen=True, kw_only=True)
class Run:
    """A row of the table."""

    name: str
    task: Task
    cores: int
    loop_ms: float = 0.0


def measure(bench: Bench, options: Options) -> Callable[[bool], str]:
    """Run all contenders in turn; returns what shows the result."""
    runs = [run for run in _runs(options.loop_ms) if run.task.reader in options.only]
    absent = bench.make_data({run.task.reader for run in runs})
    entries = {run.name: Entry(name=run.name, note=absent.get(run.task.reader, "")) for run in runs}
    loops: dict[str, list[float]] = {}
    for number in range(options.rounds):
        for run in runs:
            entry = entries[run.name]
            if entry.note and not entry.figures:
                continue
            print(f"round {number + 1} of {options.rounds}: {run.name}", file=sys.stderr, flush=True)
            compare = COMPARED_BATCHES if number == 0 else 0
            told = bench.run(run.task, run.cores, "rate", compare=compare, loop_ms=run.loop_ms)
            if isinstance(told, Failure):
                entry.note = told.why
                continue
            rate = told["samples"] / told["wall"]
            entry.add(RATE, rate)
            entry.add(BYTES, rate * SAMPLE_BYTES / 1e6)
            entry.add(CPU, 1e6 * told["cpu"] / told["samples"])
            if was_cold(told, SAMPLE_BYTES):
                entry.note = "partly from the disk"
            if run.loop_ms:
                loops.setdefault(run.name, []).append(1000 * told["loop_s"] / told["loops"] / run.loop_ms)
    ratios = _ratios(runs, entries)
    for run in runs:
        if run.name in loops:
            ratios |= _loop_ratios(run, runs, entries, loops[run.name])
    shown = _with_the_better_workers(runs, entries)
    about = {"pairs": str(bench.num_pairs), "bytes a pair": str(SAMPLE_BYTES), "batch": "64"}
    return lambda as_json: render_entries(shown, (RATE, BYTES, CPU), ratios, as_json, about=about)


def _runs(loop_ms: tuple[float, ...]) -> list[Run]:
    def ours(codec: str, verify: bool, threads: int) -> Task:
        return Task(reader="ours", folder="", workers=threads, codec=codec, verify_checksums=verify)

    runs = [
        Run(name="memcpy of the arrays, 1 core", task=Task(reader="memcpy", folder=""), cores=1),
        Run(name="plain read of our tars, 1 core", task=Task(reader="raw", folder=""), cores=1),
    ]
    for label, codec, verify in (
        ("ours", "none", False),
        ("ours, checksums", "none", True),
        ("ours, lz4 and checksums", "lz4", True),
    ):
        for cores in (1, 2):
            threads = "1 thread, 1 core" if cores == 1 else "2 threads, 2 cores"
            runs.append(Run(name=f"{label}, {threads}", task=ours(codec, verify, cores), cores=cores))
    for ms in loop_ms:
        name = f"ours, 2 threads, 2 cores, beside {ms:g} ms of Python a batch"
        runs.append(Run(name=name, task=ours("none", False, 2), cores=2, loop_ms=ms))
    for reader, label in RIVALS.items():
        for cores, workers in ((1, 0), (2, 0), (2, 2)):
            places = "1 core" if cores == 1 else "2 cores, in process" if workers == 0 else "2 cores, 2 workers"
            runs.append(
                Run(name=f"{label}, {places}", task=Task(reader=reader, folder="", workers=workers), cores=cores)
            )
    return runs


def _ours(entries: dict[str, Entry], label: str, cores: int) -> Entry | None:
    return entries.get(f"{label}, {'1 thread, 1 core' if cores == 1 else '2 threads, 2 cores'}")


def _ratios(runs: list[Run], entries: dict[str, Entry]) -> dict[str, float | None]:
    def median(entry: Entry | None, unit: str = RATE) -> float | None:
        return entry.median(unit) if entry else None

    raw = entries.get("plain read of our tars, 1 core")
    ratios: dict[str, float | None] = {}
    for suffix, label in (("", "ours"), ("_checked", "ours, checksums")):
        one, two = _ours(entries, label, 1), _ours(entries, label, 2)
        ratios[f"raw_read_share_per_core{suffix}"] = ratio(median(one), median(raw))
        # The same in processor time, of both threads: what neighbours on the machine take does not count.
        ratios[f"raw_read_share_per_core_2_threads{suffix}"] = ratio(median(raw, CPU), median(two, CPU))
        for reader in RIVALS:
            best = _best(reader, runs, entries, cores=2)
            ratios[f"vs_{_RATIO_NAMES.get(reader, reader)}{suffix}"] = ratio(median(two), median(best))
    lz4 = _ours(entries, "ours, lz4 and checksums", 2)
    ratios["lz4_pairs_per_s"] = median(lz4)
    found = (_best(reader, runs, entries, cores=2) for reader in RIVALS)
    ratios["lz4_vs_fastest_rival"] = ratio(median(lz4), median(better([e for e in found if e], RATE)))
    return ratios


def _loop_ratios(run: Run, runs: list[Run], entries: dict[str, Entry], slowed: list[float]) -> dict[str, float | None]:
    """What is lost to contention: 1 would be two cores shared without loss between the loop and the threads."""
    alone, beside = _ours(entries, "ours", 2), entries[run.name]
    cpu, rate = alone.median(CPU) if alone else None, beside.median(RATE)
    if cpu is None or rate is None:
        return {}
    batch = run.task.batch
    best_ms = max(run.loop_ms, (run.loop_ms + batch * cpu / 1000) / run.cores)
    name = f"{run.loop_ms:g}_ms".replace(".", "_")
    return {
        f"beside_{name}_share_of_possible": best_ms / (1000 * batch / rate),
        f"beside_{name}_loop_slowed": sorted(slowed)[len(slowed) // 2],
    }


def _best(reader: str, runs: list[Run], entries: dict[str, Entry], cores: int) -> Entry | None:
    """A rival's better way on so many cores."""
    return better([entries[run.name] for run in runs if run.task.reader == reader and run.cores == cores], RATE)


def _with_the_better_workers(runs: list[Run], entries: dict[str, Entry]) -> list[Entry]:
    """All rows, but of a rival on two cores only the better way."""
    shown = []
    for run in runs:
        best = _best(run.task.reader, runs, entries, run.cores)
        if run.task.reader not in RIVALS or run.cores == 1 or entries[run.name] is best:
            shown.append(entries[run.name])
    return shown
