"""Histograms are merged, stored and compared exactly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.histogram import EMPTY, Histogram

PAIRS = st.lists(st.tuples(st.integers(-(2**40), 2**40), st.integers(1, 2**40)), max_size=30)


def _counted(pairs):
    counts: dict[int, int] = {}
    for number, count in pairs:
        counts[number] = counts.get(number, 0) + count
    return sorted(counts.items())


@given(PAIRS)
def test_bins_come_sorted_and_once(pairs):
    found = Histogram.of_pairs(pairs)
    assert list(found) == _counted(pairs) and len(found) == len(_counted(pairs))
    assert found.pairs() == [list(pair) for pair in found]


@given(PAIRS, PAIRS)
def test_a_sum_is_that_of_all_values(one, other):
    both = Histogram.of_pairs(one) + Histogram.of_pairs(other)
    assert both == Histogram.of_pairs([*one, *other]) and hash(both) == hash(Histogram.of_pairs([*other, *one]))


@given(PAIRS)
def test_what_is_packed_comes_back(pairs):
    found = Histogram.of_pairs(pairs)
    assert Histogram.unpack(found.pack()) == found


def test_others_are_not_equal():
    found = Histogram.of([3, 1, 3], [1, 2, 3])
    assert found == Histogram.of([1, 3], [2, 4])
    assert found != Histogram.of([1, 3], [2, 5]) and found != Histogram.of([1, 4], [2, 4]) and found != EMPTY
    assert found != [(1, 2), (3, 4)]
    assert found.numbers.dtype == found.counts.dtype == np.int64


@pytest.mark.parametrize("packed", ["AAAA", "%", [[1, 2]], None])
def test_what_is_no_histogram_is_refused(packed):
    with pytest.raises((ValueError, TypeError)):
        Histogram.unpack(packed)
    with pytest.raises((ValueError, TypeError)):
        Histogram.of_pairs([[1]])
