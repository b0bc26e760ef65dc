import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stream.order import Order, OrderSettings
from pipeline.stream.permutation import FeistelPermutation, derive_key, permute
from pipeline.stream.permuted_runs import PermutedRuns
from sharding.errors import ConfigError

SHARDS = [256] * 39 + [131]


def order(shards=SHARDS, fingerprint="f", split="train", **changes) -> Order:
    values = {"global_batch": 96, "num_streams": 32, "run_samples": 16, "window": 48} | changes
    return Order(shards, OrderSettings(**values), fingerprint, split)


@given(n=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_permutation_is_a_bijection(n, key):
    assert sorted(FeistelPermutation(n, key)(np.arange(n)).tolist()) == list(range(n))


def test_permutation_is_the_same_for_any_subset_of_positions():
    permutation = FeistelPermutation(50_000, 7)
    whole = permutation(np.arange(50_000))
    asked = np.array([[49_999, 3], [17, 3]])
    assert (permutation(asked) == whole[asked]).all()


def test_permutation_serves_a_billion_positions_without_a_table():
    n = 10**9 + 7
    images = FeistelPermutation(n, 1)(np.arange(n - 1000, n))
    assert len(set(images.tolist())) == 1000
    assert images.min() >= 0 and images.max() < n


def test_permutations_of_four_occur_about_equally_often():
    keys = np.repeat(np.array([derive_key(key) for key in range(4800)], np.uint64), 4)
    images = permute(np.tile(np.arange(4), 4800), np.full(19200, 4), keys).reshape(4800, 4)
    seen = Counter(map(tuple, images.tolist()))
    assert len(seen) == 24
    assert min(seen.values()) > 120 and max(seen.values()) < 300  # 200 expected


def test_each_key_part_changes_the_key():
    parts = [("f", "train", 0, 1), ("f", "train", 1, 0), ("f", "val", 0, 1), ("g", "train", 0, 1), ("f", "train0", 1)]
    assert len({derive_key(*part) for part in parts}) == len(parts)


def test_an_element_of_a_permutation_is_found_again():
    for n in (1, 2, 5, 64, 1000):
        permutation = FeistelPermutation(n, 11)
        assert [permutation.place_of(int(image)) for image in permutation(np.arange(n))] == list(range(n))


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8), run=st.integers(1, 9), key=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_permuted_runs_hold_each_sample_once_and_stay_together(sizes, run, key):
    runs, total = PermutedRuns(np.array(sizes), run, key), sum(sizes)
    ids = runs.sample_ids(np.arange(total)).tolist()
    assert sorted(ids) == list(range(total))
    starts, begin = [], 0
    for size in sizes:
        starts += [(first, min(run, begin + size - first)) for first in range(begin, begin + size, run)]
        begin += size
    for first, length in starts:
        place, found = runs.place_of(first)
        assert (ids[place : place + length], found) == (list(range(first, first + length)), length)


def test_short_runs_are_spread_over_the_epoch():
    runs = PermutedRuns(np.array([17] * 100), 16, 3)
    places = [runs.place_of(17 * shard + 16)[0] for shard in range(100)]
    assert np.histogram(places, 4, (0, 1700))[0].min() > 20


@given(
    shards=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    streams=st.integers(1, 12),
    per_stream=st.integers(1, 5),
    run=st.integers(1, 9),
    window=st.integers(1, 30),
    ranks=st.integers(1, 12),
    seed=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_each_sample_comes_once_an_epoch_over_all_ranks(shards, streams, per_stream, run, window, ranks, seed):
    batch = streams * per_stream
    ranks = max(r for r in range(1, ranks + 1) if batch % r == 0)  # often no divisor of the number of streams
    o = order(shards, global_batch=batch, num_streams=streams, run_samples=run, window=window, seed=seed)
    num_batches = -(-2 * o.num_samples // batch)
    seen = Counter()
    for t, rank in itertools.product(range(num_batches), range(ranks)):
        part = o.rank_slice(t, rank, ranks)
        assert len(part.sample_id) == batch // ranks
        seen.update(zip(part.epoch.tolist(), part.sample_id.tolist(), strict=True))
    for epoch in range(2):
        assert all(seen[epoch, sample] == 1 for sample in range(o.num_samples))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 96])
def test_global_batches_are_the_same_for_every_number_of_ranks(ranks):
    o = order()
    for t in (0, 1, 50, 105, 106, 107):  # 106 spans two epochs
        whole = o.batch(t)
        parts = [o.rank_slice(t, rank, ranks) for rank in range(ranks)]
        for name in ("epoch", "position", "sample_id"):
            assert (np.concatenate([getattr(p, name) for p in parts]) == getattr(whole, name)).all()


@pytest.mark.parametrize("groups", [1, 4, 32])
def test_a_batch_is_sorted_by_epoch_group_and_position(groups):
    o = order(num_groups=groups)
    for t in (3, 106):
        b = o.batch(t)
        group = b.position % 32 // (32 // groups)
        assert (np.lexsort((b.position, group, b.epoch)) == np.arange(96)).all()
        assert sorted((b.epoch * o.num_samples + b.position).tolist()) == list(range(t * 96, t * 96 + 96))


@pytest.mark.parametrize("samples", [1, 3, 10])
def test_a_batch_larger_than_the_data_set_holds_whole_epochs(samples):
    o = order([samples])
    counts = Counter(o.batch(0).sample_id.tolist())
    assert set(counts) == set(range(samples))
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("change", [{"seed": 1}, {"fingerprint": "g"}, {"split": "val"}, {"window": 49}])
def test_anything_that_the_order_depends_on_changes_it(change):
    assert (order().batch(0).sample_id == order().batch(0).sample_id).all()
    assert (order().batch(0).sample_id != order(**change).batch(0).sample_id).any()


def test_epochs_differ():
    o = order()
    first, second = (o.epoch_order(e).sample_ids(np.arange(o.num_samples)) for e in (0, 1))
    assert (first != second).mean() > 0.99
    assert sorted(first.tolist()) == sorted(second.tolist())


def test_a_batch_of_a_rank_comes_from_about_as_many_shards_as_a_permutation():
    o = order([256] * 256, global_batch=512, num_streams=64, run_samples=21, window=26)
    distinct = [len(set((o.rank_slice(t, t % 8, 8).sample_id // 256).tolist())) for t in range(128)]
    assert np.mean(distinct) > 50  # of 64; a permutation has 57


def test_groups_keep_the_runs_of_a_node_apart_from_those_of_another():
    o = order([256] * 200, global_batch=768, num_streams=64, num_groups=4, run_samples=16, window=32)
    num_runs, fetched = 3200, 0
    for node in range(4):
        runs = set()
        for t, rank in itertools.product(range(o.num_samples // 768), range(2)):
            runs.update((o.rank_slice(t, 2 * node + rank, 8).sample_id // 16).tolist())
        fetched += len(runs)
    assert fetched / num_runs < 1.05


def test_without_groups_every_node_needs_almost_every_run():
    o = order([256] * 200, global_batch=768, num_streams=64, run_samples=16, window=32)
    batches = range(o.num_samples // 768)
    runs = {int(i) // 16 for t, rank in itertools.product(batches, (0, 1)) for i in o.rank_slice(t, rank, 8).sample_id}
    assert len(runs) / 3200 > 0.9


def test_ten_million_samples_need_no_table_of_samples():
    o = order([256] * 39063, global_batch=4096, num_streams=512, run_samples=50, window=50)
    tables = [v for v in vars(o.epoch_order(0)).values() if isinstance(v, np.ndarray)]
    assert sum(table.nbytes for table in tables) < 8_000_000


@pytest.mark.parametrize(("batch", "ranks", "named"), [(100, 8, "96 or 104"), (5, 8, "8"), (7, 3, "6 or 9")])
def test_unequal_shares_are_refused_with_the_nearest_that_work(batch, ranks, named):
    with pytest.raises(ConfigError, match=f"take {named}$"):
        order(global_batch=batch, num_streams=1).rank_slice(0, 0, ranks)


def test_groups_that_do_not_divide_the_streams_are_refused():
    with pytest.raises(ConfigError, match="does not divide"):
        OrderSettings(global_batch=96, num_streams=5, num_groups=2, run_samples=1, window=1)


@pytest.mark.parametrize(("batch", "groups"), [(1, 1), (400, 1), (512, 1), (1024, 2), (4096, 8), (6000, 8)])
def test_chosen_settings_for_a_large_split(batch, groups):
    s = OrderSettings.choose([1000] * 500_000, 200_000, batch)
    assert (s.num_groups, s.num_streams, s.run_samples) == (groups, 64 * groups, 50)
    held = 64 * (s.window + 2 * s.run_samples) * 200_000
    assert 0.97 * 2**31 < held <= 2**31


def test_chosen_runs_shrink_with_a_small_split_and_with_a_small_window():
    assert OrderSettings.choose([38], 200_000, 16).run_samples == 1
    assert OrderSettings.choose([4096], 200_000, 16).run_samples == 16  # 64 streams of 4 runs
    tight = OrderSettings.choose([100_000], 200_000, 512, window_gib=1.0)
    assert tight.num_streams * (tight.window + 2 * tight.run_samples) * 200_000 <= 2**30


@pytest.mark.parametrize(("ranks", "streams"), [(1, 512), (2, 256), (8, 64), (64, 64), (3, 256), (12, 128), (16, 64)])
def test_a_rank_touches_the_streams_of_its_groups(ranks, streams):
    o = order([256] * 400, global_batch=4608 if ranks % 3 == 0 else 4096, num_streams=512, num_groups=8)
    assert o.settings.streams_of_rank(ranks) == streams
    for rank in range(ranks):
        found = {int(p) % 512 for t in range(4) for p in o.rank_slice(t, rank, ranks).position}
        assert len(found) <= streams


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    streams=st.sampled_from([1, 2, 4, 8]),
    run=st.integers(1, 7),
    window=st.integers(1, 30),
    seen=st.integers(0, 500),
)
@settings(max_examples=60, deadline=None)
def test_a_run_is_not_needed_before_its_foreseen_use(sizes, streams, run, window, seen):
    settings_ = OrderSettings(global_batch=streams, num_streams=streams, run_samples=run, window=window)
    order = Order(sizes, settings_, "fingerprint", "train")
    total = order.num_samples
    starts, begin = [], 0
    for size in sizes:
        starts += [(first, min(run, begin + size - first)) for first in range(begin, begin + size, run)]
        begin += size
    for first, length in starts:
        epoch, position = np.divmod(np.arange(seen, seen + order.next_use(first, seen)), total)
        for e in set(epoch.tolist()):
            ids = order.epoch_order(e).sample_ids(position[epoch == e])
            assert not set(ids.tolist()) & set(range(first, first + length))


def test_what_was_used_is_needed_again_in_the_next_epoch():
    settings_ = OrderSettings(global_batch=4, num_streams=4, run_samples=8, window=16)
    order = Order([512, 512], settings_, "fingerprint", "train")
    seen = int(order.epoch_order(0).span_of_run(0)[1]) + 1
    assert 0 < order.next_use(0, seen) <= 2 * 1024
    assert order.next_use(0, order.epoch_order(0).span_of_run(0)[0]) == 0
