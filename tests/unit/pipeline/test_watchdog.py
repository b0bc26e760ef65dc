"""A rank without progress writes its stacks and ends; one that works, or was stopped for a while, does not."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import hang, watchdog
from pipeline.hang import Phase, Roll
from pipeline.metrics import read_lines
from pipeline.settings import WatchdogSettings
from pipeline.watchdog import Watchdog

ALONE = Roll(attempt="now", owners=("host here, pid 1",))
PAIR = Roll(attempt="now", owners=("host here, pid 1", "host there, pid 2"))

PROGRAM = """
import os, re, sys, time
from pathlib import Path
from pipeline import watchdog
from pipeline.hang import Phase, Roll
from pipeline.settings import WatchdogSettings
run_dir, kind = Path(sys.argv[1]), sys.argv[2]
watchdog.SUSPENDED_S, watchdog.GRACE_S = 1.0, 1.0
roll = Roll(attempt="now", owners=("host here, pid 1",))
with watchdog.Watchdog(run_dir, 0, roll, WatchdogSettings(start_s=20, data_s=1.5, step_s=1.5, checkpoint_s=1.5)) as dog:
    for step in (1, 2, 3):
        dog.enter(Phase.STEP, step)
    if kind == "held":
        time.sleep(1)  # until the thread has seen the place
        re.match(r"(a+)+$", "a" * 60 + "b")  # in machine code, with the interpreter's lock
    if kind == "disk":
        os.fsync = lambda file: time.sleep(1000)
        time.sleep(1000)
    for step in range(4, 45):
        dog.enter(Phase.STEP, step)
        if step == 5:
            (run_dir / "ready").touch()
        time.sleep(0.1)
"""


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "GRACE_S", 0.3)


def _until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def _settings(
    start_s: float = 30.0, data_s: float = 30.0, step_s: float = 30.0, checkpoint_s: float = 30.0
) -> WatchdogSettings:
    return WatchdogSettings(start_s=start_s, data_s=data_s, step_s=step_s, checkpoint_s=checkpoint_s)


def _two_steps(dog: Watchdog, last: int) -> None:
    """The first two steps of an attempt, which belong to the start."""
    for step in (last - 1, last):
        dog.enter(Phase.DATA, step)
        dog.enter(Phase.STEP, step)


def _start(tmp_path: Path, kind: str) -> subprocess.Popen[str]:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path), kind]
    environment = dict(os.environ, PYTHONPATH=os.getcwd())
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_rank_that_stands_still_writes_its_stacks_speaks_and_ends(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ended: list[int] = []
    with Watchdog(tmp_path, 0, PAIR, _settings(data_s=0.5), end=ended.append) as dog:
        _two_steps(dog, 40)
        dog.enter(Phase.DATA, 41)
        _until(lambda: ended)
    assert ended == [1]
    stacks = hang.path_of(tmp_path, 0).read_text()
    assert "step: 41\nphase: waiting for data\n" in stacks and "rank: 0 of 2, host here, pid 1\n" in stacks
    assert "test_watchdog.py" in stacks and "in _until" in stacks
    said = capfd.readouterr().err
    assert "rank 0 made no progress for" in said and "in 'waiting for data' of step 41; its stacks are in" in said
    assert "error: no progress" in said and "rank 1 wrote nothing" in said
    (event,) = read_lines(tmp_path / "events-rank00000.jsonl")
    assert (event["event"], event["step"]) == ("hang", 41) and "rank 1 wrote nothing" in event["reason"]
    assert json.loads((tmp_path / "outcome.json").read_text())["outcome"] == "failed"


def test_first_two_steps_belong_to_the_start_and_the_next_does_not(tmp_path: Path) -> None:
    ended: list[int] = []
    with Watchdog(tmp_path, 0, ALONE, _settings(data_s=0.3, step_s=0.3), end=ended.append) as dog:
        for step in (8, 9):
            dog.enter(Phase.DATA, step)
            time.sleep(0.8)
            dog.enter(Phase.STEP, step)
            time.sleep(0.1)
        assert not ended
        dog.enter(Phase.DATA, 10)
        _until(lambda: ended)
    assert "step: 10\nphase: waiting for data\n" in hang.path_of(tmp_path, 0).read_text()


def test_a_micro_batch_may_take_five_times_as_long_as_one_of_the_second_step(tmp_path: Path) -> None:
    ended: list[int] = []
    with Watchdog(tmp_path, 0, ALONE, _settings(step_s=0.3), end=ended.append) as dog:
        _two_steps(dog, 9)
        time.sleep(0.4)
        dog.enter(Phase.DATA, 10)
        dog.enter(Phase.STEP, 10)
        time.sleep(1.2)
        assert not ended
        _until(lambda: ended)


def _wait_for_another(tmp_path: Path, claimed: tuple[int, Phase] | None, roll: Roll = PAIR) -> float:
    """Seconds until a rank in step 9 ends that may wait 0.4 s, or 1.6 s for data."""
    ended: list[int] = []
    with Watchdog(tmp_path, 0, PAIR, _settings(data_s=1.6, step_s=0.4), end=ended.append) as dog:
        _two_steps(dog, 8)
        if claimed is not None:
            hang.claim(tmp_path, roll, 1, *claimed)
        dog.enter(Phase.STEP, 9)
        began = time.monotonic()
        _until(lambda: ended)
    return time.monotonic() - began - watchdog.GRACE_S


def test_rank_waits_as_long_as_the_one_that_waits_for_its_data_may(tmp_path: Path) -> None:
    assert _wait_for_another(tmp_path, (9, Phase.DATA)) >= 1.6


@pytest.mark.parametrize(
    ("claimed", "attempt"),
    [
        (None, "now"),
        ((10, Phase.DATA), "now"),
        ((8, Phase.CHECKPOINT), "then"),
        ((7, Phase.CHECKPOINT), "now"),
        ((0, Phase.START), "now"),
    ],
)
def test_rank_waits_no_longer_for_one_that_is_ahead_or_was_there_long_ago_or_in_another_attempt(
    tmp_path: Path, claimed: tuple[int, Phase] | None, attempt: str
) -> None:
    assert _wait_for_another(tmp_path, claimed, Roll(attempt=attempt, owners=PAIR.owners)) < 1.6


def test_rank_that_waits_for_long_says_where_it_stands_until_it_ends(tmp_path: Path) -> None:
    with Watchdog(tmp_path, 1, PAIR, _settings(data_s=20, step_s=0.4)) as dog:
        _two_steps(dog, 8)
        dog.enter(Phase.DATA, 9)
        _until(lambda: hang.claims(tmp_path, PAIR, but=0) == [(9, Phase.DATA)])
        assert hang.claims(tmp_path, PAIR, but=1) == []
        dog.enter(Phase.DATA, 10)
        _until(lambda: hang.claims(tmp_path, PAIR, but=0) != [(9, Phase.DATA)])
    assert list(tmp_path.iterdir()) == []


def test_start_that_takes_too_long_ends(tmp_path: Path) -> None:
    ended: list[int] = []
    with Watchdog(tmp_path, 0, ALONE, _settings(start_s=0.6), end=ended.append) as dog:
        dog.enter(Phase.STEP, 8)
        _until(lambda: ended)
    assert "limit: watchdog.start_s=0.6\n" in hang.path_of(tmp_path, 0).read_text()


def test_save_has_a_limit_of_its_own(tmp_path: Path) -> None:
    ended: list[int] = []
    with Watchdog(tmp_path, 0, ALONE, _settings(step_s=0.3, checkpoint_s=1.2), end=ended.append) as dog:
        _two_steps(dog, 2)
        dog.enter(Phase.CHECKPOINT, 2)
        time.sleep(0.8)
        assert not ended
        _until(lambda: ended)
    stacks = hang.path_of(tmp_path, 0).read_text()
    assert "phase: checkpoint\n" in stacks and "limit: watchdog.checkpoint_s=1.2\n" in stacks


def test_phase_without_a_limit_may_take_for_ever(tmp_path: Path) -> None:
    ended: list[int] = []
    with Watchdog(tmp_path, 0, ALONE, _settings(step_s=0.3, checkpoint_s=0), end=ended.append) as dog:
        dog.enter(Phase.CHECKPOINT, 1)
        time.sleep(1.0)
    assert not ended and list(tmp_path.iterdir()) == []  # nothing is left of a run that went well


def test_without_limits_nothing_looks_on(tmp_path: Path) -> None:
    with Watchdog(tmp_path, 0, ALONE, replace(_settings(0, 0, 0, 0), probe_s=0.0)) as dog:
        dog.enter(Phase.STEP, 1)
        assert list(tmp_path.iterdir()) == []


def test_progress_in_time_keeps_the_run_alive(tmp_path: Path) -> None:
    ended: list[int] = []
    with Watchdog(tmp_path, 0, ALONE, _settings(step_s=1.5), end=ended.append) as dog:
        for step in range(30):
            dog.enter(Phase.STEP, step)
            time.sleep(0.1)
    assert not ended


def test_rank_writes_when_another_has_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_WAITS_S", 0.3)
    ended: list[int] = []
    with Watchdog(tmp_path, 1, PAIR, _settings(), end=ended.append) as dog:
        _two_steps(dog, 8)
        dog.enter(Phase.STEP, 9)
        time.sleep(1.2)
        assert not ended
        hang.mark(tmp_path, PAIR)
        _until(lambda: ended)
    assert "step: 9\n" in hang.path_of(tmp_path, 1).read_text()


def test_rank_leaves_the_last_word_to_a_lower_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ended: list[int] = []
    with Watchdog(tmp_path, 1, PAIR, _settings(start_s=0.5), end=ended.append):
        account = hang.Account(step=1, phase=Phase.STEP, idle_s=1.0, limit="watchdog.start_s=0.5")
        hang.path_of(tmp_path, 0).write_text(hang.header(tmp_path, PAIR, 0, account))
        _until(lambda: ended)
    assert "rank 1 made no progress" in (said := capfd.readouterr().err) and "error:" not in said
    assert not (tmp_path / "outcome.json").exists()


@pytest.mark.parametrize("suspended_s", [5.0, float("inf")])
def test_gap_in_the_clock_is_no_hang_unless_nobody_notices_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suspended_s: float
) -> None:
    monkeypatch.setattr(watchdog, "SUSPENDED_S", suspended_s)
    ended: list[int] = []
    gap = [0.0]
    clock = lambda: time.monotonic() + gap[0]  # noqa: E731
    with Watchdog(tmp_path, 0, ALONE, _settings(step_s=20.0), clock=clock, end=ended.append) as dog:
        _two_steps(dog, 2)
        dog.enter(Phase.STEP, 3)
        gap[0] = 1000.0
        if suspended_s == 5.0:
            time.sleep(3.0)
            assert not ended
        else:
            _until(lambda: ended)


def test_folder_that_takes_nothing_ends_the_run_all_the_same(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ended: list[int] = []
    with Watchdog(tmp_path, 0, ALONE, _settings(start_s=0.5), end=ended.append) as dog:
        full = Path("/dev/full").open("w")
        dog._file.close()
        dog._file = full
        _until(lambda: ended)
        dog._file = (tmp_path / "other").open("w")
    with pytest.raises(OSError, match="No space left"):
        full.close()
    assert "its stacks could not be written: No space left on device" in capfd.readouterr().err


def test_a_call_costs_under_20_microseconds(tmp_path: Path) -> None:
    with Watchdog(tmp_path, 0, ALONE, _settings()) as dog:
        began = time.thread_time()
        for step in range(20_000):
            dog.enter(Phase.STEP, step)
        assert (time.thread_time() - began) / 20_000 < 20e-6


@pytest.mark.chaos
def test_process_whose_python_cannot_run_is_ended_with_its_stacks(tmp_path: Path) -> None:
    process = _start(tmp_path, "held")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1, said
    stacks = hang.path_of(tmp_path, 0).read_text()
    assert "Current thread" in stacks and "program.py" in stacks and "in match" in stacks
    (account,) = hang.read_accounts(tmp_path, ALONE, [0]).values()
    assert account.is_held and account.phase is Phase.STEP
    assert "python: cannot run, machine code holds its lock" in said


@pytest.mark.chaos
def test_thread_that_hangs_in_the_run_folder_is_ended(tmp_path: Path) -> None:
    process = _start(tmp_path, "disk")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1, said


@pytest.mark.chaos
def test_process_that_was_stopped_for_longer_than_its_limit_goes_on(tmp_path: Path) -> None:
    process = _start(tmp_path, "fine")
    _until(lambda: (tmp_path / "ready").exists(), 60)
    process.send_signal(signal.SIGSTOP)
    time.sleep(5.0)
    process.send_signal(signal.SIGCONT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said


@pytest.mark.chaos
def test_sigquit_writes_the_stacks_and_the_run_goes_on(tmp_path: Path) -> None:
    process = _start(tmp_path, "fine")
    _until(lambda: (tmp_path / "ready").exists(), 60)
    process.send_signal(signal.SIGQUIT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "program.py" in hang.path_of(tmp_path, 0).read_text()


def test_after_going_back_the_next_step_has_the_time_of_a_first_one(tmp_path: Path) -> None:
    now = 0.0
    dog = Watchdog(tmp_path, 0, ALONE, _settings(start_s=100, step_s=10), clock=lambda: now)
    _two_steps(dog, 12)
    now = 1000.0
    dog.enter(Phase.STEP, 5)
    name, limit, since = dog._limit(dog._place)
    assert (name, now - since > limit) == ("start_s", True)  # a step before the first one would be over time at once
    dog.begin_anew()
    dog.enter(Phase.STEP, 5)
    assert dog._limit(dog._place) == ("start_s", 100, now)
