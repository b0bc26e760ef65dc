"""Which samples a probe sees: a share of the labelled ones, drawn once each, the same in any order of the data set."""

import hashlib

import pytest

from pipeline.errors import ConfigError
from pipeline.evaluation.inputs import chosen_sets, modality_sets
from pipeline.evaluation.labelled import keys_sha256, subset
from pipeline.evaluation.seeds import check_seeds, over_seeds

KEYS = [f"S2A_{number:05d}" for number in range(1000)]


def drawn(keys, share, seed):
    return [keys[place] for place in subset(keys, share, seed).tolist()]


@pytest.mark.parametrize(
    ("num", "share", "expected"),
    [(1000, 0.01, 10), (354_196, 0.01, 3541), (50, 0.01, 1), (1, 0.5, 1), (100, 0.29, 29), (7, 1.0, 7)],
)
def test_a_share_is_rounded_down_and_at_least_one(num, share, expected):
    places = subset([str(number) for number in range(num)], share, 0)
    assert len(places) == expected == len(set(places.tolist()))


def test_a_subset_is_a_function_of_keys_and_seed_and_not_of_their_order():
    assert drawn(KEYS, 0.05, 3) == drawn(KEYS, 0.05, 3)
    assert set(drawn(KEYS[::-1], 0.05, 3)) == set(drawn(KEYS, 0.05, 3))
    assert set(drawn(KEYS, 0.05, 3)) != set(drawn(KEYS, 0.05, 4))


def test_a_smaller_share_is_part_of_a_larger_one():
    assert set(drawn(KEYS, 0.01, 0)) < set(drawn(KEYS, 0.1, 0))


def test_every_sample_is_drawn_about_as_often_by_many_seeds():
    counts = dict.fromkeys(KEYS[:40], 0)
    for seed in range(200):
        for key in drawn(KEYS[:40], 0.25, seed):
            counts[key] += 1
    assert min(counts.values()) > 25 and max(counts.values()) < 80  # 50 expected


def test_the_hash_of_keys_is_that_of_sorted_lines():
    expected = hashlib.sha256(b"a\nb\nc\n").hexdigest()
    assert keys_sha256(["c", "a", "b"]) == keys_sha256(("a", "b", "c")) == expected
    assert keys_sha256(["ab", "c"]) != keys_sha256(["a", "bc"])


def test_figures_of_seeds_are_their_mean_with_spread_and_each():
    figures = {
        0: {"micro": 0.5, "none": None, "per_class": {"a": 0.2, "b": None}},
        2: {"micro": 0.7, "none": None, "per_class": {"a": 0.4, "b": None}},
    }
    found = over_seeds(figures)
    assert found["micro"] == pytest.approx(0.6) and found["none"] is None
    assert found["per_class"] == {"a": pytest.approx(0.3), "b": None}
    assert found["spread"] == {"micro": {"min": 0.5, "max": 0.7, "std": pytest.approx(0.02**0.5)}}
    assert found["seeds"] == [{"seed": 0, "micro": 0.5, "none": None}, {"seed": 2, "micro": 0.7, "none": None}]


@pytest.mark.parametrize("seeds", [(), (1, 1), (-1,)])
def test_seeds_that_cannot_work_are_refused(seeds):
    with pytest.raises(ConfigError, match=r"probe\.seeds = "):
        check_seeds("probe.seeds", seeds)


def test_inputs_are_each_modality_alone_and_all_together():
    assert modality_sets(["s1", "s2"]) == {"s1": ("s1",), "s2": ("s2",), "s1+s2": ("s1", "s2")}
    assert modality_sets(["stacked"]) == {"stacked": ("stacked",)}
    assert chosen_sets(["s1", "s2"], ["s1+s2"], "x.inputs") == {"s1+s2": ("s1", "s2")}
    with pytest.raises(ConfigError, match=r"x\.inputs names 's3'; this model and data set have s1, s2, s1\+s2"):
        chosen_sets(["s1", "s2"], ["s3"], "x.inputs")
