"""Masks with varying numbers of visible patches: every engine and number of ranks trains the same curve."""

from collections.abc import Callable

import pytest

from tests.dist.conftest import Run

pytestmark = pytest.mark.dist

VARYING = {
    "dropout": ("model.modality_dropout=0.7", "model.decode_global_token=true", "model.share_cross_attention=false"),
    "multimae": ("model.masking=dirichlet", "model.decoder_fusion=multimae", "model.positions=learned"),
}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(VARYING["dropout"], marks=pytest.mark.slow, id="dropout"),
        pytest.param(VARYING["multimae"], id="multimae"),
    ],
)
def test_ranks_and_stages_train_the_same_curve(new_run: Callable[..., Run], changes: tuple[str, ...]) -> None:
    """Two samples a rank and step, so that a rank often has none with both sensors."""
    options = ("engine.precision=fp32", "train.steps=6", *changes)
    one = new_run("one", *options, "engine.name=ddp", "run.num_processes=1")
    others = [new_run("two", *options, "engine.name=ddp"), new_run("sharded", *options, "engine.zero_stage=3")]
    one.finish()
    expected = [line["loss"] for line in one.metrics()]
    assert expected[-1] < expected[0]
    for run in others:
        run.finish()
        assert [line["loss"] for line in run.metrics()] == pytest.approx(expected, rel=1e-5)
