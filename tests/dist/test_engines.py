"""DeepSpeed trains what plain PyTorch trains."""

from collections.abc import Callable

import pytest

from tests.dist.conftest import Run

pytestmark = pytest.mark.dist

TOLERANCE = {"fp32": 1e-6, "bf16": 1e-3}
"""Largest relative difference of a step's global loss over 14 steps; measured, see docs/design/engine.md."""


def _losses(run: Run) -> list[float]:
    return [line["loss"] for line in run.metrics()]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stages_give_the_loss_curve_of_ddp(new_run: Callable[..., Run], precision: str) -> None:
    reference = new_run("ddp", "engine.name=ddp", f"engine.precision={precision}")
    reference.finish()
    expected = _losses(reference)
    assert expected[-1] < 0.95 * expected[0], "the curve must move, or equality says nothing"
    stages = (0, 1, 2, 3) if precision == "fp32" else (1, 2, 3)
    for stage in stages:
        run = new_run(f"zero{stage}", f"engine.zero_stage={stage}", f"engine.precision={precision}")
        run.finish()
        worst = max(abs(a - b) / b for a, b in zip(_losses(run), expected, strict=True))
        print(f"stage {stage} {precision}: worst relative difference {worst:.2e}")
        assert worst <= TOLERANCE[precision]


def test_webdataset_reader_trains_the_same_curve(new_run: Callable[..., Run]) -> None:
    exact, oracle = (
        new_run("exact", "train.steps=5"),
        new_run("oracle", "train.steps=5", "data.reader=webdataset"),
    )
    exact.finish()
    oracle.finish()
    assert oracle.trace(0) == exact.trace(0) and oracle.trace(1) == exact.trace(1)
    assert oracle.weights() == exact.weights()
