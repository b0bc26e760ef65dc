"""Gradients go in pieces of the size that is asked for, and the numbers stay the same."""

from collections.abc import Callable

import pytest

from tests.dist.conftest import Run, said_by_ranks

pytestmark = pytest.mark.dist

MIB_OF_BF16 = 2**19
"""Gradients."""


@pytest.mark.slow
def test_small_buckets_send_more_pieces_and_change_no_weight() -> None:
    said = [line["said"] for line in said_by_ranks("tests.dist.bucketed", "ddp", "zero2", "zero3")]
    assert len(said) == 2
    for engines in said:
        for name, told in engines.items():
            assert all(told["equal"]) and told["trained"], name
            times = len(told["large"])  # DDP says how it cut, the others each time
            assert len(told["small"]) >= 4 * times and sum(told["small"]) == sum(told["large"])
            if name != "ddp":  # which closes a bucket when it is full, the others before
                assert max(told["small"]) <= MIB_OF_BF16 < max(told["large"])
                assert told["overlapping"] == told["small"]


def test_overlap_is_refused_where_nothing_overlaps(new_run: Callable[..., Run]) -> None:
    run = new_run("run", "engine.precision=bf16")
    for engine in (["engine.name=ddp"], ["engine.zero_stage=1"]):
        assert "engine.overlap = True; it must be false: DDP overlaps by itself" in run.finish(
            *engine, "engine.overlap=true", code=2
        )
