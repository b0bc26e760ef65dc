"""One rank of several that is not as the others: a bad micro-batch is skipped by all, a slow rank is named."""

import json
import statistics
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.metrics import read_lines
from tests.dist.conftest import Run
from tests.unit.pipeline.test_terminal import in_terminal, screen

pytestmark = pytest.mark.dist

NewRun = Callable[..., Run]
BAD_STEP = 6
PROGRAM = """
import os, time
from pipeline import pretrain, session
from pipeline.command import run_rank_command
prepare_of = session._preparation
def preparation(*arguments):
    prepare = prepare_of(*arguments)
    calls = 0
    def spoil(batch):
        nonlocal calls
        images, valid, draws = prepare(batch)
        calls += 1
        if os.environ["RANK"] == "1":
            {does}
        return images, valid, draws
    return spoil
session._preparation = preparation
run_rank_command(pretrain.main)
"""


def _events(run: Run, rank: int) -> list[dict[str, Any]]:
    lines = read_lines(run.dir / f"events-rank{rank:05d}.jsonl")
    return [line for line in lines if line["event"] == "skipped"]


@pytest.mark.parametrize("engine", [("engine.name=ddp",), ("engine.zero_stage=1",), ("engine.zero_stage=3",)])
def test_bad_micro_batch_on_one_rank_is_skipped_by_all_and_its_samples_are_named(
    new_run: NewRun, engine: tuple[str, ...]
) -> None:
    run = new_run("run", *engine)
    spoil = f"if calls == 2 * {BAD_STEP}: images['s2'][0] = float('nan')"  # two micro-batches a step
    said = run.finish(program=PROGRAM.format(does=spoil))
    (here,), (there,) = _events(run, 0), _events(run, 1)
    assert (here["step"], here["keys"]) == (BAD_STEP, [])
    spoilt = run.trace(1)[BAD_STEP - 1]
    assert there["step"] == BAD_STEP and there["keys"] == spoilt["keys"][2:]
    skipped = [line["skipped_steps"] for line in run.metrics()]
    assert skipped == [0] * (BAD_STEP - 1) + [1] * (14 - BAD_STEP + 1)
    assert f"the loss of step {BAD_STEP} is not finite" in said
    assert json.loads((run.dir / "outcome.json").read_text())["outcome"] == "done"


@pytest.mark.parametrize("does", ["time.sleep(0.2)", "pass"])
def test_rank_that_holds_up_the_others_is_named(new_run: NewRun, does: str) -> None:
    run = new_run("run")
    said = run.finish(program=PROGRAM.format(does=does))
    lags = [line["slowest_lag_s"] for line in run.metrics() if line["slowest_rank"] == 1]
    if does == "pass":
        assert not lags or statistics.median(lags) < 0.3
    else:
        assert len(lags) >= 13 and min(lags[1:]) > 0.3, "two micro-batches of 0.2 s"
        assert "slowest rank 1 (by " in said


def test_terminal_of_the_launcher_shows_the_bar_of_rank_0(new_run: NewRun) -> None:
    said = in_terminal(new_run("run", "engine.name=ddp", "train.steps=4").command)
    lines = screen(said)
    assert "step 0/4   0% |" in said
    assert [line.split(" loss")[0] for line in lines if " loss " in line] == [f"step {n}/4" for n in range(1, 5)]
    assert any(line.startswith("step 4/4 100% |") for line in lines)
