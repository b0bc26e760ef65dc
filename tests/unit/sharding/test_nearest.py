import itertools
import random

import pytest

from sharding.sources.nearest import days_apart, match_nearest


def test_each_s2_finds_the_nearest_s1_whatever_the_order_of_the_lists():
    s2 = ["2020-12-28T16:37:11", "2020-03-23T16:29:31"]
    s1 = ["2020-03-29T00:15:15", "2020-12-30T00:15:23", "2020-06-27T00:14:49"]
    assert match_nearest(s2, s1, None) == [(0, 1), (1, 0)]


def test_by_sort_index_the_wrong_seasons_would_meet():
    s2 = ["2020-03-01", "2020-06-01", "2020-09-01"]
    s1 = ["2020-06-02", "2020-09-02", "2020-12-02"]
    assert match_nearest(s2, s1, 30) == [(1, 0), (2, 1)]


def test_no_half_is_used_twice():
    assert match_nearest(["2020-06-01", "2020-06-03"], ["2020-06-02T12:00:00"], None) == [(0, 0)]
    assert match_nearest(["2020-06-02"], ["2020-06-01", "2020-06-03"], None) == [(0, 0)]


def test_the_closest_pair_is_taken_first_and_the_rest_share_what_is_left():
    assert match_nearest(["2020-01-01", "2020-01-11"], ["2020-01-07", "2020-04-01"], None) == [(0, 1), (1, 0)]


def test_max_days_is_inclusive_and_counts_hours():
    s2, s1 = ["2020-06-01T00:00:00"], ["2020-06-03T12:00:00"]
    assert match_nearest(s2, s1, 2.5) == [(0, 0)]
    assert match_nearest(s2, s1, 2.49) == []


def test_a_date_without_a_time_is_the_whole_day():
    assert match_nearest(["2020-06-04"], ["2020-06-04T23:59:59"], 0) == [(0, 0)]
    assert match_nearest(["2020-06-04"], ["2020-06-05T00:00:01"], 0) == []
    assert days_apart("2020-06-04", "2020-06-05T00:00:01") == 1.0


def test_times_with_a_zone_are_compared_in_utc():
    assert days_apart("2020-06-04T23:00:00Z", "2020-06-05T01:00:00+02:00") == 0.0
    assert days_apart("2020-06-04T00:00:00", "2020-06-04T12:00:00Z") == 0.5


def test_ties_do_not_depend_on_the_order_of_the_lists():
    s2, s1 = ["2020-06-02", "2020-06-04", "2020-06-06"], ["2020-06-01", "2020-06-03", "2020-06-05"]
    expected = {(s2[i], s1[j]) for i, j in match_nearest(s2, s1, None)}
    assert expected == {("2020-06-02", "2020-06-01"), ("2020-06-04", "2020-06-03"), ("2020-06-06", "2020-06-05")}
    for left, right in itertools.product(itertools.permutations(s2), itertools.permutations(s1)):
        assert {(left[i], right[j]) for i, j in match_nearest(left, right, None)} == expected


def test_equal_dates_are_taken_by_index():
    assert match_nearest(["2020-06-02"] * 2, ["2020-06-02"] * 2, None) == [(0, 0), (1, 1)]


def test_pairs_are_one_to_one_sorted_and_as_many_as_can_be_without_a_bound():
    random.seed(3)
    s2, s1 = ([f"2020-{random.randint(1, 12):02}-{random.randint(1, 28):02}" for _ in range(n)] for n in (40, 25))
    pairs = match_nearest(s2, s1, None)
    assert len(pairs) == len({i for i, _ in pairs}) == len({j for _, j in pairs}) == 25
    assert pairs == sorted(pairs)


@pytest.mark.parametrize(("s2", "s1"), [([], []), (["2020-01-01"], []), ([], ["2020-01-01"])])
def test_nothing_meets_nothing(s2, s1):
    assert match_nearest(s2, s1, None) == []


def test_what_is_no_date_is_an_error():
    with pytest.raises(ValueError, match="month"):
        match_nearest(["2020-13-01"], ["2020-01-01"], None)
