"""A run of which one rank stands still ends, names it, and goes on by the same command, bit for bit."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.dist.conftest import Run, ranks_of

pytestmark = [pytest.mark.dist, pytest.mark.chaos]

NewRun = Callable[..., Run]
SAVED, STOPPED, STEPS = 8, 10, 14
LIMIT_S, GRACE_S, LAUNCHERS_GRACE_S = 6, 5, 10
LIMIT = [f"watchdog.step_s={LIMIT_S}", f"watchdog.data_s={LIMIT_S}"]
NO_LIMIT = [f"watchdog.{phase}_s=0" for phase in ("start", "data", "step", "checkpoint", "probe")]

SLOW_DATA = """
import os, time
from pipeline import pretrain
from pipeline.command import run_rank_command
from pipeline.stream.exact import Stream
inner = Stream.__iter__
def hesitate(stream):
    for number, batch in enumerate(inner(stream)):
        if number == 5 and os.environ["RANK"] == "1":
            time.sleep(1000)
        yield batch
Stream.__iter__ = hesitate
run_rank_command(pretrain.main)
"""


def _started(run: Run, *overrides: str) -> tuple[subprocess.Popen[str], dict[int, int]]:
    """The launcher of a run whose ranks have both traced step `STOPPED`, and the ranks."""
    process = run.start(*overrides)
    deadline = time.monotonic() + 240
    while not run.has_reached(STOPPED):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"ended before step {STOPPED}: {process.communicate()[0]}")
        time.sleep(0.005)
    return process, ranks_of(process)


@pytest.fixture
def freeze() -> Iterator[Callable[[int], None]]:
    """Stops a process, which goes on or ends after the test."""
    pids: list[int] = []

    def stop(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        pids.append(pid)

    yield stop
    for pid in pids:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("stopped", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_stopped_rank_is_named_and_the_same_command_goes_on(
    new_run: NewRun, undisturbed: NewRun, freeze: Callable[[int], None], stopped: int
) -> None:
    straight, hung = undisturbed(), new_run("hung")
    process, pids = _started(hung, *LIMIT)
    freeze(pids[stopped])
    began = time.monotonic()
    said, _ = process.communicate(timeout=120)
    took = time.monotonic() - began
    assert process.returncode == 1, said
    assert len(hung.trace(stopped)) < STEPS, "the stop came too late; the test shows nothing"
    assert LIMIT_S < took < LIMIT_S + GRACE_S + LAUNCHERS_GRACE_S + 8
    other = 1 - stopped
    assert f"rank {other} made no progress for" in said and f"rank {stopped} wrote nothing" in said
    assert f"pid {pids[stopped]})" in said and f"rank {stopped} was killed by SIGKILL" in said
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids.values())
    stacks = (hung.dir / "stacks" / f"rank{other:05d}.txt").read_text()
    assert "loop.py" in stacks and f"pid {pids[other]}\n" in stacks and "phase: " in stacks
    assert json.loads((hung.dir / "outcome.json").read_text())["outcome"] == "failed"

    said = hung.finish()
    assert f"resumed at step {SAVED}" in said
    assert json.loads((hung.dir / "outcome.json").read_text())["outcome"] == "done"
    for rank in (0, 1):
        assert hung.trace(rank) == straight.trace(rank)
    assert [m["loss"] for m in hung.metrics()] == [m["loss"] for m in straight.metrics()]
    assert hung.weights() == straight.weights()
    (earlier,) = (hung.dir / "stacks").iterdir()
    assert (earlier / f"rank{other:05d}.txt").read_text() == stacks


@pytest.mark.slow
def test_without_limits_a_stopped_rank_stops_the_run_for_good(new_run: NewRun, freeze: Callable[[int], None]) -> None:
    process, pids = _started(new_run("run"), *NO_LIMIT)
    freeze(pids[1])
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(LIMIT_S + GRACE_S + LAUNCHERS_GRACE_S + 8)
    process.kill()
    process.communicate(timeout=60)


def test_run_that_is_stopped_as_a_whole_goes_on(new_run: NewRun, undisturbed: NewRun) -> None:
    straight, stopped = undisturbed(), new_run("stopped")
    process, pids = _started(stopped, *LIMIT)
    for pid in pids.values():
        os.kill(pid, signal.SIGSTOP)
    time.sleep(LIMIT_S + 4)
    for pid in pids.values():
        os.kill(pid, signal.SIGCONT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert stopped.trace() == straight.trace() and stopped.weights() == straight.weights()
    assert not (stopped.dir / "stacks").exists()


def test_rank_whose_data_does_not_come_is_named(new_run: NewRun) -> None:
    run = new_run("run", *LIMIT)
    said = run.finish(program=SLOW_DATA, code=1)
    assert "in step 6: rank 0 is in 'step', rank 1 (host " in said
    assert "is in 'waiting for data'; stacks in" in said
    for rank, place in ((0, "loop.py"), (1, "in hesitate")):
        assert place in (run.dir / "stacks" / f"rank{rank:05d}.txt").read_text()
    (event,) = [event for event in run.events() if event["event"] == "hang"]
    assert event["step"] == 6 and "waiting for data" in event["reason"]
