from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from pipeline.stream.order import Order, OrderSettings
from pipeline.stream.shuffle_quality import (
    Places,
    batches_in_group,
    buffer_shuffle,
    expected_shards,
    groups_of_loader,
    groups_of_order,
    groups_of_permutation,
    mixing,
)
from pipeline.stream.shuffle_report import (
    PERMUTATION,
    STREAM,
    Question,
    Split,
    measure_shuffle,
    shuffle_lines,
    window_bytes_of_node,
)
from sharding.errors import ConfigError

SHARDS = (256,) * 256
"""As in the comparison with other loaders: 256 shards of 256 samples that lie as the archive does."""


def split(shard_sizes=SHARDS, sample_bytes=460_800.0):
    return Split(name="train", shard_sizes=tuple(shard_sizes), sample_bytes=sample_bytes, fingerprint="f")


def test_places_tell_shard_and_run_of_each_sample():
    places = Places([5, 0, 3], 2)
    samples = np.arange(8)
    assert places.shards(samples).tolist() == [0, 0, 0, 0, 0, 2, 2, 2]
    assert places.runs(samples).tolist() == [0, 0, 2, 2, 4, 5, 5, 7]
    assert places.lengths(np.array([0, 2, 4, 5, 7])).tolist() == [2, 2, 1, 2, 1]


def test_a_buffer_gives_what_a_list_would_give():
    samples = np.arange(200) * 3
    given = buffer_shuffle(samples, 10, np.random.default_rng(4))
    places = np.random.default_rng(4).integers(10, size=190)
    held, expected = samples[:10].tolist(), []
    for place, new in zip(places.tolist(), samples[10:].tolist(), strict=True):
        expected.append(held[place])
        held[place] = new
    assert given.tolist() == expected


def test_expected_shards_is_the_mean_over_all_draws():
    sizes, owner = [1, 2, 4], [0, 1, 1, 2, 2, 2, 2]
    for draws in range(1, 8):
        counts = [len(set(drawn)) for drawn in combinations(owner, draws)]
        assert expected_shards(sizes, draws) == pytest.approx(np.mean(counts))


def test_more_draws_than_samples_come_from_all_shards():
    assert expected_shards([3, 4], 64) == 2


def test_a_full_permutation_measures_as_it_is_expected():
    found = mixing(groups_of_permutation(65_536, 64, 200), Places(SHARDS, 16))
    assert found.shards_in_64 == pytest.approx(expected_shards(SHARDS, 64), abs=0.5)
    assert found.neighbours < 0.02


def test_batches_below_64_are_put_together():
    assert [batches_in_group(size) for size in (1, 24, 63, 64, 65)] == [64, 3, 2, 1, 1]
    group = next(groups_of_permutation(1000, 24, 1))
    assert group.shape == (3, 24)
    assert len(np.unique(group)) == 72


def test_groups_of_the_order_are_a_ranks_own_batches():
    order = Order([64] * 20, OrderSettings(global_batch=32, num_streams=8, run_samples=4, window=8), "f", "train")
    own = {tuple(order.rank_slice(step, rank, 2).sample_id) for step in range(40) for rank in range(2)}
    for group in groups_of_order(order, 2, 10):
        assert group.shape == (4, 16)
        assert {tuple(batch) for batch in group} <= own


def test_one_stream_and_a_window_of_a_run_do_not_mix():
    settings = OrderSettings(global_batch=64, num_streams=1, run_samples=32, window=32)
    found = mixing(groups_of_order(Order(SHARDS, settings, "f", "train"), 1, 50), Places(SHARDS, 32))
    assert found.shards_in_64 < 4
    assert found.neighbours == 1


def test_loaders_that_read_whole_shards_come_from_few():
    places = Places(SHARDS, 16)
    webdataset = mixing(groups_of_loader(SHARDS, 1000, 64, 200, replace=False), places)
    terramesh = mixing(groups_of_loader(SHARDS, 100, 64, 200, replace=True), places)
    assert 12 < webdataset.shards_in_64 < 15  # 13.5 with webdataset itself
    assert 2 < terramesh.shards_in_64 < 4  # 2.9 with TerraMesh's own


def test_a_loader_draws_shards_anew_only_when_it_resamples():
    once, anew = (
        np.concatenate([group.reshape(-1) for group in groups_of_loader([8] * 40, 1, 256, 1, replace=replace)])
        for replace in (False, True)
    )
    assert len(np.unique(once)) == 256
    assert len(np.unique(anew)) < 256


@pytest.mark.parametrize("shard_sizes", [SHARDS, (1303,) * 423, (2670,) * 206, (668,) * 823])
def test_a_ranks_64_samples_come_from_35_shards_on_one_node(shard_sizes):
    sample_bytes = 460_800.0 if shard_sizes is SHARDS else 201_000.0
    report = measure_shuffle(split(shard_sizes, sample_bytes), Question(global_batch=512, ranks=8))
    assert report.mixing[STREAM].shards_in_64 >= 35
    assert report.mixing[STREAM].shards_in_64 > 0.9 * report.expected_in_64
    assert report.window_bytes_of_node <= 2 * 2**30


def test_a_split_smaller_than_a_batch_is_measured_too():
    report = measure_shuffle(split((7, 5, 8)), Question(global_batch=32, ranks=2, batches=5))
    assert report.mixing[STREAM].shards_in_64 == 3
    assert report.expected_in_64 == pytest.approx(3)


def with_windows(monkeypatch, samples_per_gib):
    """Orders of four streams, whose windows grow by so much with the budget."""

    def order(self, question):
        window = 32 + int(samples_per_gib * question.window_gib)
        settings = OrderSettings(global_batch=question.global_batch, num_streams=4, run_samples=32, window=window)
        return Order(self.shard_sizes, settings, self.fingerprint, self.name)

    monkeypatch.setattr(Split, "order", order)


def test_larger_windows_are_named_with_their_memory_when_they_help(monkeypatch):
    with_windows(monkeypatch, samples_per_gib=64)
    report = measure_shuffle(split(), Question(global_batch=64, ranks=1, batches=50))
    assert [better.window_gib for better in report.better] == [4, 8, 16]
    shards = [report.mixing[STREAM].shards_in_64, *(better.shards_in_64 for better in report.better)]
    assert shards == sorted(shards)
    assert report.better[2].window_bytes_of_node == 4 * (32 + 1024 + 2 * 32) * 460_800.0
    assert "a window of 16 GiB (--window-gib; in a run data.window_gib) gives" in "\n".join(shuffle_lines(report, "x"))


def test_it_is_said_when_no_larger_window_helps(monkeypatch):
    with_windows(monkeypatch, samples_per_gib=0)
    report = measure_shuffle(split(), Question(global_batch=64, ranks=1, batches=50))
    assert report.better == ()
    assert "of up to 16 GiB would not help: each of the 4 streams gives samples of few runs" in "\n".join(
        shuffle_lines(report, "x")
    )


def test_windows_for_all_nodes_are_tried(monkeypatch):
    with_windows(monkeypatch, samples_per_gib=200)
    report = measure_shuffle(split(), Question(global_batch=1024, ranks=16, nodes=16, window_gib=0.1, batches=20))
    assert [better.window_gib for better in report.better if better.window_gib > 0.8] == [1.6, 3.2]


def test_nothing_is_advised_when_the_stream_is_as_good_as_a_permutation():
    report = measure_shuffle(split(), Question(global_batch=512, ranks=8, batches=50))
    assert report.better == ()
    assert "as good as a full permutation" in "\n".join(shuffle_lines(report, "x"))


def test_the_window_of_a_node_is_its_share_of_the_streams():
    order = split((256,) * 2560).order(Question(global_batch=4096, ranks=64))
    whole, eighth = (window_bytes_of_node(order, nodes, 460_800.0) for nodes in (1, 8))
    assert 1.5 * 2**30 < eighth <= 2 * 2**30
    assert whole == 8 * eighth


@pytest.mark.parametrize(("nodes", "batch"), [(1, 512), (1, 400), (8, 4096), (8, 3200)])
def test_sixty_four_samples_come_from_at_least_35_shards_that_were_not_shuffled(nodes, batch):
    asked = Question(global_batch=batch, ranks=8 * nodes, nodes=nodes, batches=40)
    report = measure_shuffle(split((256,) * 256), asked)
    assert report.mixing[STREAM].shards_in_64 >= 35
    # 3,200 samples are 4 groups on 8 nodes, of which a node touches two.
    assert report.window_bytes_of_node <= (4 if batch == 3200 else 2) * 2**30


@pytest.mark.parametrize(("lies_as_found", "words"), [(True, "so the figures count"), (False, "is mixed too")])
def test_it_is_said_whether_shards_were_shuffled_at_build(lies_as_found, words):
    asked = replace(split((64,) * 40), lies_as_found=lies_as_found)
    report = measure_shuffle(asked, Question(global_batch=64, ranks=2, batches=5))
    assert words in "\n".join(shuffle_lines(report, "x"))


def test_the_report_names_everything_as_json():
    told = measure_shuffle(split((64,) * 40), Question(global_batch=64, ranks=2, batches=5)).as_dict()
    assert told["split"]["shards"] == 40
    assert told["split"]["samples"] == 2560
    assert set(told["mixing"]) >= {STREAM, PERMUTATION}
    assert told["order"]["num_streams"] == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch": 0}, "global_batch is 0"),
        ({"ranks": 3}, "cannot be shared equally by 3 ranks; take 63 or 66"),
        ({"nodes": 3}, "do not fill 3 nodes"),
        ({"window_gib": 0.0}, "window_gib is 0"),
        ({"window_gib": float("nan")}, "window_gib is nan"),
        ({"batches": 0}, "batches is 0"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        Question(**({"global_batch": 64, "ranks": 4} | changes))


def test_the_buffer_mixes_as_webdatasets_own_does():
    import random

    import webdataset

    shards = random.Random(1).sample(range(256), 256)
    samples = ({"shard": shard} for shard in shards for _ in range(256))
    given = [sample["shard"] for sample in webdataset.shuffle(1000, rng=random.Random(2))(samples)]
    middle = np.array(given[5000:60_000])
    theirs = np.mean([len(np.unique(part)) for part in np.split(middle[: len(middle) // 64 * 64], len(middle) // 64)])
    ours = mixing(groups_of_loader(SHARDS, 1000, 64, 400, replace=False), Places(SHARDS, 16))
    assert ours.shards_in_64 == pytest.approx(theirs, rel=0.05)
