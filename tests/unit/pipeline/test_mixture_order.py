import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stream.mixture_order import MemberOrder, MixtureOrder, choose_groups, choose_settings
from pipeline.stream.order import OrderSettings
from pipeline.stream.shares import Shares
from sharding.errors import ConfigError


def member(shards, streams=4, groups=1, run=3, window=5, seed=0, name="f") -> MemberOrder:
    chosen = OrderSettings(
        global_batch=1, num_streams=streams * groups, num_groups=groups, run_samples=run, window=window, seed=seed
    )
    return MemberOrder(shards, chosen, name, "train")


def mixture(sizes, parts, batch, groups=1, **changes) -> MixtureOrder:
    orders = [member([size], groups=groups, name=f"set {n}", **changes) for n, size in enumerate(sizes)]
    return MixtureOrder(orders, Shares(tuple(parts)), batch, groups)


def slots(order: MixtureOrder, step: int, rank=0, world_size=1) -> list[tuple[int, int, int, int]]:
    """(set, epoch, position, sample id) of each slot of a rank."""
    found = {}
    for number in range(len(order.orders)):
        part = order.rank_part(step, number, rank, world_size)
        samples = (part.samples.epoch.tolist(), part.samples.position.tolist(), part.samples.sample_id.tolist())
        for row, *sample in zip(part.rows.tolist(), *samples, strict=True):
            assert row not in found
            found[row] = (number, *sample)
    assert sorted(found) == list(range(len(found)))
    return [found[row] for row in range(len(found))]


@st.composite
def mixtures(draw) -> MixtureOrder:
    count = draw(st.integers(1, 5))
    sizes = draw(st.lists(st.integers(1, 60), min_size=count, max_size=count))
    parts = draw(st.lists(st.integers(1, 40), min_size=count, max_size=count))
    groups = draw(st.integers(1, 4))
    batch = groups * draw(st.integers(1, 24))
    return mixture(sizes, parts, batch, groups, streams=draw(st.integers(1, 5)))


def worlds(order: MixtureOrder) -> list[int]:
    return [ranks for ranks in range(1, 13) if order.global_batch % ranks == 0]


@given(order=mixtures(), begin=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_batches_hold_the_sets_own_sequences_without_gap_or_repeat(order, begin):
    taken = Counter()
    for step in range(begin, begin + 4):
        found = slots(order, step)
        assert len(found) == order.global_batch
        taken.update(slot[:3] for slot in found)
    assert set(taken.values()) == {1}
    firsts, lasts = (order.counts(step * order.global_batch) for step in (begin, begin + 4))
    for number, (first, last) in enumerate(zip(firsts, lasts, strict=True)):
        size = order.orders[number].num_samples
        assert sorted(e * size + place for which, e, place in taken if which == number) == list(range(first, last))


@given(order=mixtures())
@settings(max_examples=20, deadline=None)
def test_each_sample_comes_once_in_each_epoch_of_its_own_set(order):
    steps = 25
    for number, passed in enumerate(order.epochs(steps * order.global_batch)):
        seen = Counter()
        for part in itertools.islice(order.rank_parts(0, number), steps):
            seen.update(zip(part.samples.epoch.tolist(), part.samples.sample_id.tolist(), strict=True))
        assert max(seen.values(), default=1) == 1
        for epoch in range(int(passed)):
            assert all(seen[epoch, sample] == 1 for sample in range(order.orders[number].num_samples))


@given(order=mixtures(), begin=st.integers(0, 10**6), data=st.data())
@settings(max_examples=60, deadline=None)
def test_global_batches_are_the_same_for_every_number_of_ranks(order, begin, data):
    ranks = data.draw(st.sampled_from(worlds(order)))
    parts = [slots(order, begin, rank, ranks) for rank in range(ranks)]
    assert [len(part) for part in parts] == [order.global_batch // ranks] * ranks
    assert list(itertools.chain(*parts)) == slots(order, begin)


@given(order=mixtures(), begin=st.integers(0, 10**6), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_rank_never_has_more_of_a_set_than_it_was_said_to(order, begin, data):
    ranks = data.draw(st.sampled_from(worlds(order)))
    for number, rank in itertools.product(range(len(order.orders)), range(ranks)):
        most = order.most(number, rank, ranks)
        assert 0 <= most <= order.global_batch // ranks
        assert len(order.rank_part(begin, number, rank, ranks).rows) <= most
        assert (most > 0) == (order.num_groups_of(number, rank, ranks) > 0)


@given(order=mixtures(), begin=st.integers(0, 10**6), data=st.data())
@settings(max_examples=15, deadline=None)
def test_batches_computed_ahead_are_those_computed_one_by_one(order, begin, data):
    ranks = data.draw(st.sampled_from(worlds(order)))
    rank = data.draw(st.integers(0, ranks - 1))
    for number in range(len(order.orders)):
        for step, part in enumerate(itertools.islice(order.rank_parts(begin, number, rank, ranks), 12), begin):
            single = order.rank_part(step, number, rank, ranks)
            assert part.rows.tolist() == single.rows.tolist() == order.rank_rows(step, rank, ranks)[number].tolist()
            for name in ("epoch", "position", "sample_id"):
                assert getattr(part.samples, name).tolist() == getattr(single.samples, name).tolist()


def test_a_batch_is_sorted_by_group_set_and_place():
    order = mixture([50, 20], [2, 1], 30, groups=2)
    for step in (0, 2, 5):  # there are batches with the end of an epoch of each set
        found = slots(order, step)
        for group, own in enumerate((found[:15], found[15:])):
            assert own == sorted(own)
            assert all((epoch * (50, 20)[which] + place) % 2 == group for which, epoch, place, _ in own)


def test_every_batch_has_each_sets_share_to_a_sample():
    order = mixture([1000, 300, 40], [60, 30, 10], 96)
    for step in range(50):
        counts = Counter(number for number, *_ in slots(order, step))
        for number, share in enumerate(order.shares.fractions):
            assert abs(counts[number] - 96 * share) < 2


def test_a_set_rarer_than_a_sample_a_batch_comes_at_equal_distances():
    order = mixture([500, 9], [63, 1], 16)
    steps = [step for step in range(64) if any(number == 1 for number, *_ in slots(order, step))]
    assert len(steps) == 16 and set(np.diff(steps)) == {4}


def test_the_order_of_a_set_does_not_depend_on_what_else_is_mixed_in():
    alone, mixed = mixture([40], [1], 20), mixture([40, 90], [1, 1], 20)
    own = [slot for step in range(2) for slot in slots(alone, step)]
    assert [slot for step in range(4) for slot in slots(mixed, step) if slot[0] == 0] == own


def test_another_seed_gives_another_order_in_the_same_shares():
    one, other = mixture([40, 90], [1, 1], 20), mixture([40, 90], [1, 1], 20, seed=1)
    assert [slot[:3] for slot in slots(one, 0)] == [slot[:3] for slot in slots(other, 0)]
    assert [slot[3] for slot in slots(one, 0)] != [slot[3] for slot in slots(other, 0)]


def test_a_single_set_in_one_group_comes_in_its_own_order():
    order = mixture([31], [1], 12)
    own = member([31], name="set 0").samples_at(np.arange(60))
    found = [slot for step in range(5) for slot in slots(order, step)]
    assert [slot[3] for slot in found] == own.sample_id.tolist()


@pytest.mark.parametrize(("batch", "groups"), [(64, 1), (1024, 2), (4096, 8), (2001, 1), (2002, 2), (3 * 2048, 8)])
def test_groups_are_chosen_so_that_they_divide_the_batch(batch, groups):
    assert choose_groups(batch, 0) == groups


def test_groups_that_do_not_divide_the_batch_are_refused():
    assert choose_groups(96, 3) == 3
    with pytest.raises(ConfigError, match="96 samples cannot be cut into 5 equal groups"):
        choose_groups(96, 5)


@pytest.mark.parametrize(("share", "per_group"), [(1.0, 64), (0.5, 32), (0.03, 2), (0.001, 1)])
@pytest.mark.parametrize("groups", [1, 3, 8])
def test_a_set_has_its_share_of_the_streams_of_a_group_and_of_its_windows(share, per_group, groups):
    chosen = choose_settings([1000] * 5000, 200_000, share, 512 * groups, groups, 0, 2.0)
    assert (chosen.num_streams, chosen.num_groups) == (per_group * groups, groups)
    held = per_group * (chosen.window + 2 * chosen.run_samples) * 200_000
    assert 0.9 * 2.0 * share * 2**30 < held <= 2.0 * share * 2**30
    if share >= 1 / 64:
        assert 8e6 < chosen.run_samples * 200_000 < 12e6


def test_each_run_is_read_by_one_node_but_those_at_the_ends_of_streams():
    sizes, parts, nodes, batch = (256 * 256, 128 * 256, 32 * 256), (60, 30, 10), 4, 2048
    orders = []
    for number, (size, part) in enumerate(zip(sizes, parts, strict=True)):
        chosen = choose_settings([256] * (size // 256), 1_200_000, part / 100, batch, nodes, 0, 2.0)
        orders.append(MemberOrder([256] * (size // 256), chosen, f"set {number}", "train"))
    order = MixtureOrder(orders, Shares(parts), batch, nodes)
    steps = sizes[0] * 100 // parts[0] // batch  # an epoch of the largest
    fetched, used = 0, set()
    for node in range(nodes):
        runs = set()
        for rank, number in itertools.product((2 * node, 2 * node + 1), range(3)):
            for part in itertools.islice(order.rank_parts(0, number, rank, 2 * nodes), steps):
                numbers = part.samples.sample_id // orders[number].settings.run_samples
                runs.update((number, *run) for run in zip(part.samples.epoch.tolist(), numbers.tolist(), strict=True))
        fetched += len(runs)
        used |= runs
    assert fetched / len(used) < 1.1


def test_no_run_is_needed_before_it_is_foreseen():
    order = mixture([90, 30], [3, 1], 16, groups=2, streams=2)
    step = 5
    foreseen = {
        (number, run): order.next_use(number, run, step * 16)
        for number, size in enumerate((90, 30))
        for run in range(0, size, 3)
    }
    needed: dict[tuple[int, int], int] = {}
    for ahead in range(20):
        for number, _, _, sample in slots(order, step + ahead):
            needed.setdefault((number, sample - sample % 3), ahead * 16)
    assert needed.keys() == foreseen.keys()
    assert all(needed[run] + 16 > foreseen[run] for run in needed)
    assert max(foreseen.values()) > 64  # it says something


def test_unequal_shares_of_the_ranks_are_refused_with_the_nearest_that_work():
    with pytest.raises(ConfigError, match="take 96 or 104"):
        mixture([40, 90], [1, 1], 100).rank_part(0, 0, 0, 8)


def test_epochs_are_counted_for_each_set_by_itself():
    assert mixture([40, 10], [3, 1], 8).epochs(160) == [3.0, 4.0]
    assert mixture([40, 10], [3, 1], 16, groups=2).epochs(160) == [3.0, 4.0]


def test_a_batch_far_into_the_run_is_as_exact_as_the_first():
    order = mixture([1000, 300], [7, 3], 64, groups=4)
    step = 10**13 // 64
    assert {slot[0]: slot[1] for slot in slots(order, step)} == {
        0: step * 64 * 7 // 10 // 1000,
        1: step * 64 * 3 // 10 // 300,
    }
