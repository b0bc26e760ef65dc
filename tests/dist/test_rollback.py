"""A run goes back by itself to before the trouble, leaves its samples out, and stays reproducible whatever kills it."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.dist.conftest import Run

pytestmark = [pytest.mark.dist, pytest.mark.chaos]

NewRun = Callable[..., Run]
SAMPLES, BATCH = 25, 8
PROGRAM = """
import os, signal
from pathlib import Path
from pipeline import pretrain, session
from pipeline.command import run_rank_command
prepare_of = session._preparation
def preparation(*arguments):
    prepare = prepare_of(*arguments)
    def spoil(batch):
        images, valid, draws = prepare(batch)
        number = int(batch.epoch[0] * {samples} + batch.position[0]) // {batch}  # of the global batch, from 0
        if os.environ["RANK"] == "1" and number in {bad}:
            images['s2'][0] *= {factor}
        killed = Path({killed!r})
        if os.environ["RANK"] == "1" and number == {kills} and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return images, valid, draws
    return spoil
session._preparation = preparation
run_rank_command(pretrain.main)
"""


def _run(
    run: Run, bad: range, factor: str = "float('nan')", kills: int = -1, code: int = 0
) -> str:
    killed = str(run.dir.with_suffix(".killed"))
    said = dict(samples=SAMPLES, batch=BATCH, bad=list(bad), factor=factor, kills=kills, killed=killed)
    return run.finish(program=PROGRAM.format(**said), code=code)


def _rollbacks(run: Run) -> list[dict[str, Any]]:
    return [event for event in run.events() if event["event"] == "rollback"]


def _without_times(run: Run) -> list[dict[str, Any]]:
    names = ("step", "samples", "loss", "lr", "grad_norm", "skipped_steps")
    return [{name: line[name] for name in names} for line in run.metrics()]


@pytest.mark.parametrize(
    "engine",
    [
        "engine.zero_stage=1",
        pytest.param("engine.zero_stage=2", marks=pytest.mark.slow),
        pytest.param("engine.zero_stage=3", marks=pytest.mark.slow),
        pytest.param("engine.name=ddp", marks=pytest.mark.slow),
    ],
)
def test_rolled_back_run_that_is_killed_equals_one_that_is_not(new_run: NewRun, engine: str) -> None:
    bad = range(8, 11)  # steps 9 to 11: the third one would end the run
    straight, killed = new_run("straight", engine, "guard.rollback=1"), new_run("killed", engine, "guard.rollback=1")
    said = _run(straight, bad)
    assert "rolled back from step 11 to step 8, rollback 1 of 1; the 3 global batches since are left out" in said
    (event,) = _rollbacks(straight)
    assert (event["step"], event["from_step"], event["to_step"], event["skipped_batches"]) == (11, 11, 8, 3)
    assert json.loads((straight.dir / "rollbacks.json").read_text()) == {
        "done": 1,
        "skips": [{"step": 8, "begin": 64, "end": 88}],
    }
    assert [line["step"] for line in straight.trace()] == list(range(1, 15))
    assert [line["skipped_steps"] for line in straight.metrics()] == [0] * 14

    said = _run(killed, bad, kills=12, code=1)  # step 10 after the rollback, before the next save
    assert len(_rollbacks(killed)) == 1 and killed.checkpoints()[-1] == "step-00000008"
    said = _run(killed, bad, kills=12)
    assert "resumed at step 8" in said and len(_rollbacks(killed)) == 1
    for rank in (0, 1):
        assert killed.trace(rank) == straight.trace(rank)
    assert _without_times(killed) == _without_times(straight) and killed.weights() == straight.weights()


def test_checkpoint_behind_the_trouble_is_undone_and_a_run_that_finds_no_end_of_it_stops(
    new_run: NewRun
) -> None:
    run = new_run("run", "engine.name=ddp", "guard.rollback=1", "checkpoint.keep=9")
    said = _run(run, range(6, 99), code=1)  # steps 7 to 9, with a save at 8
    assert "rolled back from step 9 to step 4" in said
    assert run.checkpoints() == ["step-00000004"]  # that of step 8 was saved between
    assert "trouble again at step 7 after 1 rollbacks (guard.rollback=1), of rank 1 with samples " in said
    assert json.loads((run.dir / "outcome.json").read_text())["outcome"] == "failed"


def test_loss_that_leaps_rolls_back_where_that_is_asked_for(new_run: NewRun) -> None:
    settings = ("engine.name=ddp", "train.steps=28", "checkpoint.every=10", "log.every=5")
    run, told = new_run("run", *settings, "guard.rollback=2"), new_run("told", *settings)
    said = _run(run, range(22, 23), factor="50.0")
    assert "the loss of step 23 leapt" in said and "rolled back from step 25 to step 20, rollback 1 of 2" in said
    assert json.loads((run.dir / "outcome.json").read_text()) == {"outcome": "done", "step": 28, "attempt": "local.0"}
    said = _run(told, range(22, 23), factor="50.0")
    assert "the loss of step 23 leapt" in said and "rolled back" not in said and not _rollbacks(told)
    assert not (told.dir / "rollbacks.json").exists()
    assert run.trace()[:20] == told.trace()[:20]
    after = [line["keys"] for line in told.trace()[25:]]
    assert [line["keys"] for line in run.trace()[20:23]] == after
