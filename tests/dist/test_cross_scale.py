"""A run at two scales: the contrastive loss sees all ranks, and what is kept of it is an ordinary model."""

from collections.abc import Callable

import pytest

from pipeline.weights import load_model
from tests.dist.conftest import Run

pytestmark = pytest.mark.dist

SCALES = ("model.cross_scale={min_area: 0.3}", "engine.precision=fp32", "train.steps=5", "train.micro_batch=0")


def test_two_ranks_train_what_one_trains(new_run: Callable[..., Run]) -> None:
    one = new_run("one", *SCALES, "engine.name=ddp", "run.num_processes=1")
    two = new_run("two", *SCALES, "engine.name=ddp")
    sharded = new_run("sharded", *SCALES, "engine.zero_stage=3")
    for run in (one, two, sharded):
        run.finish()
    for mine, sharded_line, other in zip(two.metrics(), sharded.metrics(), one.metrics(), strict=True):
        for key in ("loss", "loss_s1", "loss_s2", "loss_contrast", "loss_prediction"):
            assert mine[key] == pytest.approx(other[key], rel=1e-5)
            assert sharded_line[key] == pytest.approx(other[key], rel=1e-5)
    assert "cross_scale:\n    min_area: 0.3\n    max_area: 0.75" in (one.dir / "config.yaml").read_text()
    loaded = load_model(str(two.dir))
    assert type(loaded.model).__name__ == "FusMAE" and loaded.step == 5


def test_without_the_other_ranks_samples_it_would_be_another_loss(new_run: Callable[..., Run]) -> None:
    together = new_run("together", *SCALES, "engine.name=ddp", "run.num_processes=1")
    parts = new_run("parts", *SCALES, "engine.name=ddp", "run.num_processes=1", "train.micro_batch=4")
    for run in (together, parts):
        run.finish()
    first, other = together.metrics()[0], parts.metrics()[0]
    assert other["loss_s1"] == pytest.approx(first["loss_s1"], rel=1e-5)
    assert other["loss_contrast"] < first["loss_contrast"] - 0.1  # fewer negatives


def test_a_model_that_cannot_be_trained_so_is_refused(new_run: Callable[..., Run]) -> None:
    said = new_run("varying", *SCALES, "model.masking=dirichlet").finish(code=2)
    assert "key 'model.cross_scale': cross_scale needs the same number of visible patches" in said
    said = new_run("typo", "model.cross_scale={min_aera: 0.3}").finish(code=2)
    assert "unknown key 'model.cross_scale.min_aera'; did you mean 'model.cross_scale.min_area'?" in said
