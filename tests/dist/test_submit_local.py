"""submitit's local executor starts the same run as the trainer's own launcher."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.dist.conftest import Run

pytestmark = pytest.mark.dist

ROOT = Path(__file__).parents[2]
NewRun = Callable[..., Run]


def submit(run: Run, *more: str) -> subprocess.CompletedProcess[str]:
    """`python -m slurm.submit` of a run's own config and settings: two ranks on this machine's CPUs."""
    command = [sys.executable, "-m", "slurm.submit", *run.command[3:], *more]
    options = ["--cluster", "local", "--gpus-per-node", "0", "--ranks-per-node", "2", "--wait"]
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return subprocess.run([*command, *options], cwd=ROOT, env=clean, capture_output=True, text=True, timeout=240)


def test_two_submitted_ranks_train_as_two_launched_ones(new_run: NewRun) -> None:
    launched, submitted = new_run("launched", "train.steps=6"), new_run("submitted", "train.steps=6")
    launched.finish()
    ran = submit(submitted)
    assert ran.returncode == 0, ran.stderr
    assert f"done at step 6: {submitted.dir}" in ran.stdout
    for rank in (0, 1):
        assert [line["step"] for line in submitted.trace(rank)] == list(range(1, 7))
        assert submitted.trace(rank) == launched.trace(rank)
    assert submitted.weights() == launched.weights()


@pytest.mark.slow
def test_submitting_a_finished_run_again_does_no_work(new_run: NewRun) -> None:
    run = new_run("run", "train.steps=4")
    assert submit(run).returncode == 0
    weights = run.weights()
    assert submit(run).returncode == 0
    assert run.weights() == weights
    assert [line["step"] for line in run.trace()] == [1, 2, 3, 4]


def test_settings_that_cannot_work_are_refused_before_a_rank_starts(new_run: NewRun) -> None:
    run = new_run("run")
    ran = submit(run, "train.stepps=2")
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: ")
    assert "stepps" in ran.stderr
    assert not run.dir.exists()


def test_a_run_that_fails_fails_the_wait_and_says_why(new_run: NewRun, tmp_path: Path) -> None:
    ran = submit(new_run("run"), f"data.url={tmp_path / 'nowhere'}")
    assert ran.returncode == 1
    assert "nowhere" in ran.stderr
