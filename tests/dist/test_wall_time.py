"""Where the time of a run went is told to 1 %, a kill included; a profile tells more of some steps."""

import json
from collections.abc import Callable

import pytest

from pipeline.metrics import read_lines
from pipeline.report import account
from tests.dist.conftest import Run

pytestmark = pytest.mark.dist

NewRun = Callable[..., Run]
PARTS = {"start", "data", "prepare", "forward", "backward", "optimiser", "log", "agree", "collect", "checkpoint", "end"}


def test_every_part_is_timed_and_less_than_one_percent_is_not_attributed(new_run: NewRun) -> None:
    run = new_run("run")
    run.kill_at(6)
    run.finish()
    for rank in (0, 1):
        lines = read_lines(run.dir / f"time-rank{rank:05d}.jsonl")
        attempts = {line["attempt"]: line for line in lines}
        assert len(attempts) == 2
        for line in attempts.values():
            left_s = line["wall_s"] - sum(line["parts"].values())
            assert abs(left_s) < 0.01 * line["wall_s"], line
        last = list(attempts.values())[-1]
        assert set(last["parts"]) == PARTS and last["step"] == 14 and last["read_bytes"] > 0
        steps = [line["step"] for line in lines if line["attempt"] == last["attempt"]]
        assert steps[0] == 4 and steps[-1] == 14
    first, second = account(run.dir).attempts
    assert (first.first_step, second.first_step, second.last_step) == (0, 4, 14)
    assert second.restart_s > 0


def test_profile_holds_the_steps_asked_for_and_changes_no_number(
    new_run: NewRun, undisturbed: NewRun
) -> None:
    masters = "engine.precision=bf16"
    plain, profiled = undisturbed(masters), new_run("profiled", masters, "log.profile_steps=2")
    said = profiled.finish()
    trace = profiled.dir / "profile" / "step-00000004-00000005.json"
    assert f"profile: {trace}" in said
    names = [event.get("name") for event in json.loads(trace.read_text())["traceEvents"]]
    optimiser = [name for name in names if name and name.startswith("Optimizer.step#")]
    assert len(optimiser) == 2, "two steps"
    assert "Self CPU" in trace.with_suffix(".txt").read_text()
    assert sorted(path.suffix for path in trace.parent.iterdir()) == [".json", ".txt"]
    assert profiled.weights() == plain.weights()
    assert not (plain.dir / "profile").exists()
