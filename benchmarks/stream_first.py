"""The part `first-batch` of `benchmarks.stream`: how long a new process waits for its first batch.

Fresh, and resumed in the middle of an epoch; what is imported is imported before the clock starts. The batch that
comes after a resume is compared with the one that came next in the process that was not interrupted.
"""

import sys
from collections.abc import Callable
from dataclasses import replace

from benchmarks.stream_data import GEOTIFF_PAIRS
from benchmarks.stream_local import RIVALS
from benchmarks.stream_readers import Task
from benchmarks.stream_report import Entry, ratio, render_entries
from benchmarks.stream_runs import Bench, Failure, Options

FRESH, RESUMED, STATE = "fresh, ms", "resumed, ms", "state, bytes"
_CANNOT = {"terramesh": "cannot resume: its shards are drawn at random"}


def measure(bench: Bench, options: Options) -> Callable[[bool], str]:
    """Run all contenders in turn; returns what shows the result."""
    tasks = {name: task for name, task in _tasks().items() if task.reader in options.only}
    absent = bench.make_data({task.reader for task in tasks.values()})
    entries = {name: Entry(name=name, note=absent.get(task.reader, "")) for name, task in tasks.items()}
    saved = {}
    for name, task in tasks.items():
        if entries[name].note:
            continue
        print(f"half an epoch: {name}", file=sys.stderr, flush=True)
        told = bench.run(task, 2, "first", batches=_half(bench, task))
        if isinstance(told, Failure):
            entries[name].note = told.why
            continue
        saved[name] = told
        if task.reader in _CANNOT:
            entries[name].note = _CANNOT[task.reader]
        else:
            entries[name].add(STATE, told["state_bytes"])
    for number in range(options.rounds):
        for name, told in saved.items():
            print(f"round {number + 1} of {options.rounds}: {name}", file=sys.stderr, flush=True)
            _once(bench, tasks[name], entries[name], told)
    ours = entries.get("ours, 2 threads")
    ratios: dict[str, float | None] = {}
    if ours is not None:
        ratios = {"first_batch_ms": ours.median(FRESH), "resume_ms": ours.median(RESUMED)}
        for reader in RIVALS:
            of_it = [entries[name] for name, task in tasks.items() if task.reader == reader]
            ratios[f"first_batch_vs_{reader}"] = ratio(_least(of_it, FRESH), ours.median(FRESH))
            ratios[f"resume_vs_{reader}"] = ratio(_least(of_it, RESUMED), ours.median(RESUMED))
    about = {"pairs": str(bench.num_pairs)}
    shown = list(entries.values())
    return lambda as_json: render_entries(shown, (FRESH, RESUMED, STATE), ratios, as_json, about=about)


def _tasks() -> dict[str, Task]:
    ours = Task(reader="ours", folder="", workers=2)
    tasks = {
        "ours, 1 thread": replace(ours, workers=1),
        "ours, 2 threads": ours,
        "ours, lz4, 2 threads": replace(ours, codec="lz4"),
    }
    for reader, label in RIVALS.items():
        tasks[f"{label}, in process"] = Task(reader=reader, folder="")
        tasks[f"{label}, 2 workers"] = Task(reader=reader, folder="", workers=2)
    return tasks


def _half(bench: Bench, task: Task) -> int:
    pairs = min(bench.num_pairs, GEOTIFF_PAIRS) if task.reader == "geotiff" else bench.num_pairs
    return pairs // task.batch // 2


def _once(bench: Bench, task: Task, entry: Entry, saved: dict[str, object]) -> None:
    fresh = bench.run(task, 2, "first")
    if isinstance(fresh, Failure):
        entry.note = fresh.why
        return
    entry.add(FRESH, 1000 * fresh["seconds"])
    if task.reader in _CANNOT:
        return
    resumed = bench.run(task, 2, "resume", state=saved["state"])
    if isinstance(resumed, Failure):
        entry.note = f"resuming {resumed.why}"
        return
    entry.add(RESUMED, 1000 * resumed["seconds"])
    if resumed["next"] != saved["next"]:
        entry.note = "another batch after the resume than without it"


def _least(entries: list[Entry], unit: str) -> float | None:
    return min((value for entry in entries if (value := entry.median(unit)) is not None), default=None)
