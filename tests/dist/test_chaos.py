"""Killed at random moments, inside a save, resumed on other ranks: the run ends as the undisturbed one."""

import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.dist.conftest import SAVES_EVERY, Run, ranks_of

pytestmark = [pytest.mark.dist, pytest.mark.chaos]

NewRun = Callable[..., Run]
STEPS = 26
KINDS = ("save", "rank", "launcher")
IN_CI, ALL = range(len(KINDS)), range(20)
TORN = """
import os, signal
import torch
from pipeline import pretrain
from pipeline.command import run_rank_command
write = torch.save
def torn(state, path, *more, **named):
    write(state, path, *more, **named)
    if os.environ["RANK"] == "{rank}" and ".tmp-{step:08d}" in str(path):
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = torn
run_rank_command(pretrain.main)
"""
"""A rank that is killed when half of its first file of a save is written."""


def _newest(run: Run) -> int:
    """Step of the newest committed checkpoint; 0: none."""
    folder = run.dir / "checkpoints"
    return max((int(path.name[5:]) for path in folder.glob("step-*") if (path / "manifest.json").exists()), default=0)


def _traced(run: Run) -> int:
    return max(len(run.trace(rank)) for rank in (0, 1))


def _kill(run: Run, kind: str, chance: random.Random, overrides: list[str]) -> None:
    """Start the run where it stands, and kill it at a moment that chance draws."""
    rank, began = chance.randrange(2), _newest(run)
    if kind == "save":
        saves = range(began + SAVES_EVERY, STEPS, SAVES_EVERY)
        step = chance.choice(saves) if saves else STEPS
        process = run.start(*overrides, program=TORN.format(rank=rank, step=step))
    else:
        step = chance.randrange(began, STEPS)
        process = run.start(*overrides)
        deadline = time.monotonic() + 240
        while _traced(run) < step or len(ranks_of(process)) < 2:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
            time.sleep(0.005)
        time.sleep(chance.random() * 0.2)
        os.kill(ranks_of(process).get(rank, process.pid) if kind == "rank" else process.pid, signal.SIGKILL)
    process.communicate(timeout=240)
    run.wait_until_left()
    assert process.returncode != 0 or _newest(run) == STEPS


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=() if seed in IN_CI else pytest.mark.slow, id=f"seed{seed}") for seed in ALL]
)
def test_killed_twice_at_random_moments_it_ends_as_the_undisturbed_run(
    new_run: NewRun, undisturbed: NewRun, seed: int
) -> None:
    chance, kind = random.Random(seed), KINDS[seed % len(KINDS)]
    is_background = seed % 2 == 0
    overrides = [f"train.steps={STEPS}", f"checkpoint.background={is_background}"]
    straight, run = undisturbed(f"train.steps={STEPS}"), new_run("run")
    for _ in range(2):
        _kill(run, kind, chance, overrides)
        traced, committed = _traced(run), _newest(run)
        # What was committed is never lost. A save in the background is committed before the next one begins.
        assert traced - committed <= SAVES_EVERY * (2 if is_background else 1)
        before = [run.trace(rank) for rank in (0, 1)]
        for rank in (0, 1):
            assert before[rank] == straight.trace(rank)[: len(before[rank])]
    committed = _newest(run)
    said = run.finish(*overrides)
    if committed:
        assert re.search(rf"resumed at step {committed} ", said)
    for rank in (0, 1):
        assert run.trace(rank) == straight.trace(rank)
    names = ("step", "samples", "loss", "loss_s1", "loss_s2", "lr", "grad_norm")
    assert [[m[n] for n in names] for m in run.metrics()] == [[m[n] for n in names] for m in straight.metrics()]
    assert run.weights() == straight.weights()
    assert not any(name.startswith(".tmp") for name in run.checkpoints())


@pytest.mark.slow
def test_half_written_checkpoint_that_counted_as_whole_would_end_the_run(new_run: NewRun) -> None:
    run = new_run("run", f"train.steps={STEPS}")
    process = run.start(program=TORN.format(rank=1, step=8))
    process.communicate(timeout=240)
    run.wait_until_left()
    (torn,) = (run.dir / "checkpoints").glob(".tmp-00000008-*")
    _commit_as_it_is(torn, run.dir / "checkpoints" / "step-00000004")
    said = run.finish(code=1)
    assert "resumed" not in said


def _commit_as_it_is(torn: Path, earlier: Path) -> None:
    """What a format without checksums would do: half a file counts."""
    import json

    from pipeline.checkpoint.files import checksum

    manifest = json.loads((earlier / "manifest.json").read_text())
    (torn / "state.json").write_bytes((earlier / "state.json").read_bytes())
    names = [str(path.relative_to(torn)) for path in torn.rglob("*") if path.is_file()]
    manifest["files"] = {name: checksum(torn / name, sync=False) for name in names}
    (torn / "manifest.json").write_text(json.dumps(manifest | {"step": 8}))
    torn.rename(torn.parent / "step-00000008")


@pytest.mark.slow
def test_killed_and_resumed_on_2_1_3_and_2_ranks_it_follows_the_undisturbed_curve(new_run: NewRun) -> None:
    settings = ("train.global_batch=12", "train.steps=20", "engine.precision=fp32", "checkpoint.background=false")
    straight, moved = new_run("straight", *settings), new_run("moved", *settings)
    straight.finish()
    for num_ranks, stops_at in ((2, 5), (1, 9), (3, 13)):
        process = moved.start(f"run.num_processes={num_ranks}")
        deadline = time.monotonic() + 240
        while len(moved.trace(0)) < stops_at:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
            time.sleep(0.005)
        process.kill()
        process.communicate(timeout=60)
        moved.wait_until_left()
    assert "saved by 3 ranks" in moved.finish("run.num_processes=2")
    assert [m["step"] for m in moved.metrics()] == list(range(1, 21))
    for ours, theirs in zip(moved.metrics(), straight.metrics(), strict=True):
        assert ours["samples"] == theirs["samples"] and ours["lr"] == theirs["lr"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
