import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stream.shares import Shares
from sharding.errors import ConfigError

PARTS = st.lists(st.integers(1, 10**9), min_size=1, max_size=20)


def exact(shares: Shares, total: int) -> list[Fraction]:
    return [Fraction(total * part, shares.whole) for part in shares.parts]


@given(parts=PARTS, total=st.integers(0, 10**15))
def test_counts_sum_to_the_total_and_stay_at_their_share_however_long_the_run(parts, total):
    shares = Shares(tuple(parts))
    counts = shares.divide(total)
    assert sum(counts) == total
    for count, share in zip(counts, exact(shares, total), strict=True):
        assert abs(count - share) <= Fraction(shares.depth, 2)


@given(parts=PARTS, total=st.integers(0, 10**12), more=st.integers(0, 5000))
def test_no_count_falls_as_the_total_grows(parts, total, more):
    shares = Shares(tuple(parts))
    assert all(a <= b for a, b in zip(shares.divide(total), shares.divide(total + more), strict=True))


@given(parts=st.lists(st.integers(1, 50), min_size=1, max_size=8), times=st.integers(0, 10**9))
def test_where_the_shares_are_whole_numbers_the_counts_are_exact(parts, times):
    assert Shares(tuple(parts)).divide(sum(parts) * times) == [part * times for part in parts]


def test_shares_rounded_apart_from_each_other_lose_a_sample():
    shares = Shares((1, 1, 1))
    assert sum(round(share) for share in exact(shares, 100)) == 99  # what `divide` is for
    assert sorted(shares.divide(100)) == [33, 33, 34]


@given(
    parts=st.lists(st.integers(1, 1000), min_size=1, max_size=9),
    batch=st.integers(1, 300),
    begins=st.lists(st.integers(0, 10**9), min_size=1, max_size=30),
)
@settings(max_examples=200)
def test_a_data_set_never_leaves_the_slots_that_it_can_reach(parts, batch, begins):
    shares = Shares(tuple(parts))
    for begin in begins:
        counts = [b - a for a, b in zip(shares.divide(begin), shares.divide(begin + batch), strict=True)]
        for number, count in enumerate(counts):
            first, last = shares.reach(number, batch)
            start = sum(counts[:number])
            assert not count or (first <= start and start + count <= last)


def test_slots_that_can_be_reached_are_few_more_than_the_share():
    shares = Shares((5, 3, 2))
    assert [shares.reach(number, 1000) for number in range(3)] == [(0, 503), (497, 803), (797, 1000)]


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        ([1, 1], (1, 1)),
        ([2, 6], (1, 3)),
        ([0.1, 0.2], (1, 2)),
        ([0.1, 0.2, 0.7], (1, 2, 7)),
        ([1e-3, 1], (1, 1000)),
        ([0.75], (1,)),
    ],
)
def test_weights_are_taken_as_they_are_written(weights, parts):
    assert Shares.of_weights(weights).parts == parts


def test_temperature_1_mixes_by_size():
    assert Shares.of_sizes([549_488, 12_000, 38], 1).parts == (274_744, 6_000, 19)


def test_temperature_infinity_mixes_evenly():
    assert Shares.of_sizes([549_488, 12_000, 38], math.inf).parts == (1, 1, 1)


def test_temperature_2_mixes_by_the_root_of_the_size():
    assert Shares.of_sizes([10_000, 400], 2).parts == (5, 1)


def test_temperature_in_between_follows_the_exponent():
    sizes = [1_000_000, 50_000, 700]
    wanted = [size**0.3 for size in sizes]
    for share, power in zip(Shares.of_sizes(sizes, 1 / 0.3).fractions, wanted, strict=True):
        assert share == pytest.approx(power / sum(wanted), rel=1e-12)


def test_a_higher_temperature_favours_small_data_sets():
    small = [Shares.of_sizes([1000, 10], temperature).fractions[1] for temperature in (0.5, 1, 2, 5, 100)]
    assert small == sorted(small) and small[0] < 0.001 and small[-1] > 0.48


@pytest.mark.parametrize("temperature", [0, -1, 0.05, math.nan])
def test_a_temperature_that_cannot_work_is_refused(temperature):
    with pytest.raises(ConfigError, match=r"at least 0\.1"):
        Shares.of_sizes([10, 20], temperature)
