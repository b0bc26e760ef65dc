"""The simulation of `python -m benchmarks.stream_scale`, on sizes that can be counted one by one."""

import pytest

from benchmarks.stream_scale import plan_epochs, samples_fetched
from pipeline.stream.order import Order, OrderSettings
from pipeline.stream.shuffle_quality import Places
from pipeline.stream.shuffle_report import Question, Split

SHARDS = [40, 33, 51, 28]


def fetched_one_by_one(order: Order, run: int, node: int, nodes: int) -> int:
    """Samples of the runs of which the node gets any in epoch 1."""
    length, owner = {}, []
    for shard, size in enumerate(SHARDS):
        for sample in range(size):
            owner.append((shard, sample // run))
            length[shard, sample // run] = length.get((shard, sample // run), 0) + 1
    needed = set()
    for step in range(2 * order.num_samples // order.settings.global_batch + 1):
        part = order.rank_slice(step, node, nodes)
        needed |= {owner[i] for i, e in zip(part.sample_id.tolist(), part.epoch.tolist(), strict=True) if e == 1}
    return sum(length[run] for run in needed)


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 12])
def test_a_node_fetches_the_runs_of_its_samples(nodes):
    settings = OrderSettings(global_batch=24, num_streams=12, run_samples=5, window=6)
    order, places = Order(SHARDS, settings, "f", "all"), Places(SHARDS, 5)
    fetched = [samples_fetched(order, places, node, nodes) for node in range(nodes)]
    assert fetched == [fetched_one_by_one(order, 5, node, nodes) for node in range(nodes)]
    assert sum(fetched) >= sum(SHARDS)


def test_times_and_memory_of_a_plan_are_told():
    split = Split(name="all", shard_sizes=(256,) * 300, sample_bytes=2e5, fingerprint="f")
    told = plan_epochs(split, Question(global_batch=64, ranks=8))
    assert len(told["epoch_s"]) == 2
    assert all(seconds > 0 for seconds in (told["first_s"], told["resume_s"], *told["epoch_s"], *told["batch_s"]))
    assert told["mib"] >= 0
