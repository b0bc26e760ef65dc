"""Losses that leap or are not finite are found with the keys of their samples; what is usual is not."""

import math
import random
from typing import Any

import pytest
import torch

from pipeline.loss_watch import Finding, LossWatch
from pipeline.settings import GuardSettings

KEYS = [["a", "b"], ["c", "d"]]


def _watch(group: Any, **settings: Any) -> LossWatch:
    return LossWatch(GuardSettings(**settings), 1, group)


def _note(watch: LossWatch, step: int, *losses: float) -> None:
    watch.note(step, KEYS[: len(losses)], [torch.tensor(loss) for loss in losses])


def _usual(watch: LossWatch, num: int) -> None:
    generator = random.Random(0)
    for step in range(1, num + 1):
        loss = 1.0 + generator.gauss(0, 0.02)
        _note(watch, step, loss, loss)


def test_usual_losses_are_no_finding(group: Any) -> None:
    watch = _watch(group)
    _usual(watch, 200)
    assert watch.check() == []
    assert watch.check() == []


def test_loss_that_leaps_is_found_with_the_samples_of_its_micro_batch(group: Any) -> None:
    watch = _watch(group)
    _usual(watch, 30)
    _note(watch, 31, 1.0, 9.0)
    _note(watch, 32, 1.0, 1.0)
    (found,) = watch.check()
    assert (found.step, found.is_finite, found.loss, found.keys) == (31, True, 5.0, ("c", "d"))
    assert found.expected == pytest.approx(1.0, abs=0.02) and found.limit is not None and 1.0 < found.limit < 1.5


@pytest.mark.parametrize(("settings", "steps"), [({"spike": 0.0}, 100), ({}, 19)])
def test_leap_is_not_told_where_it_was_not_asked_for_or_little_was_seen(
    group: Any, settings: dict[str, Any], steps: int
) -> None:
    watch = _watch(group, **settings)
    _usual(watch, steps)
    _note(watch, steps + 1, 9.0, 9.0)
    assert watch.check() == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_loss_that_is_not_finite_is_always_found(group: Any, bad: float) -> None:
    watch = _watch(group, spike=0.0)
    _note(watch, 1, bad, 1.0)
    (found,) = watch.check()
    assert (found.step, found.is_finite, found.keys, found.limit) == (1, False, ("a", "b"), None)


def test_what_is_compared_with_outlives_a_check_and_holds_no_leaps(group: Any) -> None:
    watch = _watch(group, window=20)
    _usual(watch, 30)
    watch.check()
    for step in range(31, 61):
        _note(watch, step, 9.0)
    found: list[Finding] = watch.check()
    assert [one.step for one in found] == list(range(31, 61)), "leaps do not become usual"
