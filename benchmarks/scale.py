"""`python -m benchmarks.scale INDEX`: plan and build the whole of reBEN, with made-up pixels, for some minutes.

INDEX is a folder with reBEN's official metadata.parquet and its table of snow and clouds (549,488 rows). What is
measured: time and memory of the plan, pairs a second and memory of the builders, and from these the time for all on
1, 16 and 256 nodes. Rasters are not read: `python -m benchmarks.build` tells what that costs.
"""

import argparse
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.table import Row, render, write_section
from pipeline.command import run_command

NODES = (1, 16, 256)
_SOURCE = ("benchmarks.synthetic:SyntheticReBEN", "reBEN's index with made-up pixels")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("index", metavar="INDEX", help="folder with the official tables of reBEN")
    parser.add_argument("--seconds", type=int, default=300, help="how long to build (default: 300)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes that build")
    parser.add_argument("--codec", default="lz4", choices=("lz4", "none", "zstd"))
    parser.add_argument("--quick", action="store_true", help="build for 20 seconds")
    parser.add_argument("--into", metavar="FILE", help="also write the table into this Markdown file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    seconds = 20 if arguments.quick else arguments.seconds

    folder = tempfile.mkdtemp(prefix="scale-")
    try:
        plan = _in_a_process(_plan, arguments.index, folder, arguments.codec)
        built = _build(arguments.index, folder, plan["tasks"], arguments.workers, seconds)
    finally:
        shutil.rmtree(folder)
    rate = built["pairs"] / built["seconds"]
    rows = [
        _row("pairs planned", plan["pairs"], "pairs"),
        _row("shards planned", plan["shards"], "shards"),
        _row("time of the plan", plan["seconds"], "s"),
        _row("peak memory of the plan", plan["mib"], "MiB"),
        _row(f"built by {arguments.workers} processes in {built['seconds']:.0f} s", built["pairs"], "pairs"),
        _row("pairs a second", rate, "pairs/s"),
        _row("memory of a builder after its first shards", built["mib_early"], "MiB"),
        _row("memory of a builder at the end", built["mib_late"], "MiB"),
        *(
            _row(
                f"all pairs on {nodes} such nodes, without reading rasters",
                (plan["seconds"] + plan["pairs"] / rate / nodes) / 60,
                "minutes",
            )
            for nodes in NODES
        ),
    ]
    ratios = {"memory_growth": built["mib_late"] / built["mib_early"]}
    print(render(rows, ratios, arguments.json))
    if arguments.into:
        write_section(Path(arguments.into), "scale", render(rows, ratios, as_json=False))
    return 0


def _row(name: str, value: float, unit: str) -> Row:
    return Row(name=name, value=value, unit=unit, low=value, high=value)


def _settings(index: str, codec: str) -> Any:
    from sharding.plan import Settings
    from sharding.sources import SOURCES

    SOURCES["reben"] = _SOURCE
    return Settings(sources=(("reben", index),), codec=codec)


def _plan(send: Callable[[dict[str, Any]], None], index: str, folder: str, codec: str) -> None:
    """Plan, write the plan as a build does, and tell time and memory of both."""
    from sharding.plan import make_plan
    from sharding.plan_store import write_plan
    from sharding.shard_task import Job, ShardTask
    from sharding.sources import open_source
    from sharding.store import Store

    began = time.perf_counter()
    settings = _settings(index, codec)
    source = open_source("reben", index)
    plan = make_plan(settings, [source], [source.list()])
    write_plan(Store(folder), plan)
    seconds = time.perf_counter() - began
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    job = Job(digest=plan.digest, settings=settings, layout=plan.layout, vocabulary=plan.vocabulary, out=folder)
    tasks = [
        ShardTask(job=job, number=number, name=shard.name, split=shard.split, num_pairs=shard.num_pairs)
        for number, shard in enumerate(plan.shards)
    ]
    send({"pairs": plan.num_pairs, "shards": len(tasks), "seconds": seconds, "mib": mib, "tasks": tasks})


def _work(send: Callable[[dict[str, float]], None], index: str, folder: str, tasks: list[Any], seconds: float) -> None:
    """Build one shard after the other until the time is over; tell pairs and memory."""
    from sharding.shard_task import finish_shard

    _settings(index, "")
    marks: list[float] = []
    pairs = 0
    began = time.perf_counter()
    for task in tasks:
        finish_shard(task, folder, lambda: None)
        (Path(folder) / "shards" / f"{task.name}.tar").unlink()
        pairs += task.num_pairs
        marks.append(_resident_mib())
        if time.perf_counter() - began >= seconds:
            break
    taken = time.perf_counter() - began
    send({"pairs": pairs, "seconds": taken, "early": marks[min(1, len(marks) - 1)], "late": marks[-1]})


def _build(index: str, folder: str, tasks: list[Any], workers: int, seconds: float) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    children = [
        context.Process(target=_work, args=(queue.put, index, folder, tasks[share::workers], seconds))
        for share in range(workers)
    ]
    for child in children:
        child.start()
    told = [queue.get() for _ in children]
    for child in children:
        child.join()
    return {
        "pairs": sum(part["pairs"] for part in told),
        "seconds": max(part["seconds"] for part in told),
        "mib_early": max(part["early"] for part in told),
        "mib_late": max(part["late"] for part in told),
    }


def _in_a_process(function: Callable[..., None], *arguments: Any) -> dict[str, Any]:
    """What `function` sends, run in a process of its own, whose peak of memory is its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    child = context.Process(target=function, args=(queue.put, *arguments))
    child.start()
    while queue.empty():
        child.join(0.05)
        if child.exitcode:
            raise SystemExit(1)  # it has said why
    result: dict[str, Any] = queue.get()
    child.join()
    return result


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    run_command(main)
