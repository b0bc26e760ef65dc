"""`python -m benchmarks.stream_scale INDEX`: the stream's order at full size, by simulation: no pixel is read.

INDEX is a folder with reBEN's official metadata.parquet and its table of snow and clouds: its 549,488 pairs in the
shards that sharding.build plans for them, and beside them 100 million made-up samples in shards of the same size.
For 1, 8, 64 and 512 nodes of 8 GPUs, 64 samples a GPU: what a node fetches in an epoch, each run once, and how well a
rank's batches are mixed if shards were filled as the archive lies. For one process: time and memory of an epoch's
plan, and time of a batch. Of the 100 million, two nodes stand for all where there are 8 or more.
"""

import argparse
import multiprocessing
import time
import tracemalloc
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.table import Row, render, write_section
from pipeline.command import run_command
from pipeline.stream.order import Order
from pipeline.stream.shuffle_quality import Places, expected_shards, groups_of_order, mixing
from pipeline.stream.shuffle_report import Question, Split, window_bytes_of_node

NODES = (1, 8, 64, 512)
GPUS = 8
RANK_BATCH = 64
BATCHES = 200
LARGE = 100_000_000
_STRETCH = 64
SIMULATED_SAMPLES = 3_000_000
"""Data sets up to this size are simulated on every node; of larger ones on two nodes."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stream_scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("index", metavar="INDEX", help="folder with the official tables of reBEN")
    parser.add_argument("--quick", action="store_true", help="10 million samples instead of 100 million")
    parser.add_argument("--into", metavar="FILE", help="also write the table into this Markdown file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)

    official = in_a_process(_official, arguments.index)
    shards = (LARGE // 10 if arguments.quick else LARGE) // max(official.shard_sizes) + 1
    large = replace(official, name="made up", shard_sizes=(max(official.shard_sizes),) * shards, fingerprint="made up")
    rows: list[Row] = []
    ratios: dict[str, float] = {}
    for name, split in (("reBEN", official), (f"{round(large.num_samples, -6) // 10**6} M", large)):
        rows += _of_one_process(name, split)
        for nodes in NODES:
            more, amplification = _of_nodes(name, split, nodes)
            rows += more
            ratios[f"fetched_vs_data_set_{name}_{nodes}".lower().replace(" ", "_")] = amplification
    print(render(rows, ratios, arguments.json))
    if arguments.into:
        write_section(Path(arguments.into), "stream_scale", render(rows, ratios, as_json=False))
    return 0


def _of_one_process(name: str, split: Split) -> list[Row]:
    question = _question(8)
    told = in_a_process(plan_epochs, split, question)
    return [
        _row(f"{name}: samples", [split.num_samples], "samples"),
        _row(f"{name}: shards", [len(split.shard_sizes)], "shards"),
        _row(f"{name}: first plan of a process", [1e3 * told["first_s"]], "ms"),
        _row(f"{name}: plan of each further epoch", [1e3 * s for s in told["epoch_s"]], "ms"),
        _row(f"{name}: peak memory of order and two epochs' plans", [told["mib"]], "MiB"),
        _row(f"{name}: first batch of a rank in the middle of an epoch", [1e6 * told["resume_s"]], "us"),
        _row(f"{name}: each further batch", [1e6 * s for s in told["batch_s"]], "us"),
    ]


def _of_nodes(name: str, split: Split, nodes: int) -> tuple[list[Row], float]:
    question = _question(nodes)
    order = split.order(question)
    places = Places(split.shard_sizes, order.settings.run_samples)
    found = mixing(groups_of_order(order, question.ranks, BATCHES), places)
    if split.num_samples <= SIMULATED_SAMPLES:
        looked_at = range(nodes)
    else:
        looked_at = range(0, nodes, max(nodes // 2, 1))
    fetched = [split.sample_bytes * samples_fetched(order, places, node, nodes) for node in looked_at]
    what = f"{name}, {nodes} {'node' if nodes == 1 else 'nodes'}"
    rows = [
        _row(f"{what}: fetched by a node in an epoch", [number / 1e6 for number in fetched], "MB"),
        _row(
            f"{what}: windows of a node",
            [window_bytes_of_node(order, nodes, split.sample_bytes) / 2**20],
            "MiB",
        ),
        Row(
            name=f"{what}: distinct shards of 64 (permutation: {expected_shards(split.shard_sizes, RANK_BATCH):.0f})",
            value=found.shards_in_64,
            unit="shards",
            low=found.fewest_in_64,
            high=found.most_in_64,
        ),
    ]
    return rows, float(np.mean(fetched)) * nodes / (split.num_samples * split.sample_bytes)


def samples_fetched(order: Order, places: Places, node: int, nodes: int) -> int:
    """Samples of all runs that a node needs for epoch 1, whose first and last batch it shares with other epochs."""
    if nodes == 1:
        return order.num_samples  # each sample comes once an epoch, so each run is needed
    batch, num = order.settings.global_batch, order.num_samples
    runs = []
    steps = range(num // batch, -(-2 * num // batch))
    for part in islice(order.slices_from(steps.start * batch, node, nodes), len(steps)):
        runs.append(np.unique(places.runs(part.sample_id[part.epoch == 1])))
    return int(places.lengths(np.unique(np.concatenate(runs))).sum())


def plan_epochs(split: Split, question: Question) -> dict[str, Any]:
    """Times and peak memory of a rank that plans three epochs and batches in the middle of the last."""
    began = time.perf_counter()
    order = split.order(question)
    order.rank_slice(0, 0, question.ranks)
    first_s = time.perf_counter() - began
    epoch_s = [_seconds(order.epoch_order, epoch) for epoch in (1, 2)]
    slices = order.slices_from(5 * order.num_samples // 2, question.ranks // 2, question.ranks)
    resume_s = _seconds(next, slices)
    # Batches are planned many at a time: what counts is the mean over a stretch.
    batch_s = [_seconds(deque, islice(slices, _STRETCH), 0) / _STRETCH for _ in range(5)]
    return {
        "first_s": first_s,
        "epoch_s": epoch_s,
        "resume_s": resume_s,
        "batch_s": batch_s,
        "mib": _peak_mib(lambda: _plan_twice(split, question)),
    }


def _plan_twice(split: Split, question: Question) -> tuple[Any, ...]:
    order = split.order(question)
    return order, order.epoch_order(0), order.epoch_order(1), order.rank_slice(0, 0, question.ranks)


def _official(index: str) -> Split:
    """reBEN's pairs in the shards that a build with its default settings plans, all splits as one."""
    from benchmarks.synthetic import SyntheticReBEN
    from sharding.plan import Settings, make_plan
    from sharding.sources import SOURCES

    SOURCES["reben"] = ("benchmarks.synthetic:SyntheticReBEN", "reBEN's index with made-up pixels")
    settings = Settings(sources=(("reben", index),))
    source = SyntheticReBEN(index)
    plan = make_plan(settings, [source], [source.list()])
    sizes = tuple(shard.num_pairs for shard in plan.shards)
    return Split(
        name="all",
        shard_sizes=sizes,
        sample_bytes=settings.shard_mib * 2**20 / max(sizes),
        fingerprint=plan.digest,
    )


def _question(nodes: int) -> Question:
    return Question(global_batch=nodes * GPUS * RANK_BATCH, ranks=nodes * GPUS, nodes=nodes, batches=BATCHES)


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns, run in a process of its own, whose peak of memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _seconds(function: Callable[..., Any], *arguments: Any) -> float:
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began


def _peak_mib(function: Callable[[], Any]) -> float:
    """Of what Python and NumPy allocate in it."""
    tracemalloc.start()
    function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def _row(name: str, values: list[float], unit: str) -> Row:
    return Row(name=name, value=float(np.median(values)), unit=unit, low=min(values), high=max(values))


if __name__ == "__main__":
    run_command(main)
