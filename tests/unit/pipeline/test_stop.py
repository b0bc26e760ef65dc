"""What ends or saves a run: signals and files, agreed by all ranks one step later."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import stop
from pipeline.stop import Reason, StopRequest


@pytest.fixture
def request_of(group: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StopRequest]:
    monkeypatch.setattr(stop, "_LOOKS_S", 0.0)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)}
    made = StopRequest()
    made.listen()
    made.connect(group)
    made.watch(tmp_path)
    yield made
    made.finish()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "reason"),
    [(signal.SIGTERM, Reason.SIGNAL), (signal.SIGUSR2, Reason.SIGNAL), (signal.SIGINT, Reason.INTERRUPT)],
)
def test_signal_is_agreed_a_step_later_and_stays(request_of: StopRequest, number: int, reason: Reason) -> None:
    assert request_of.agreed() is None
    os.kill(os.getpid(), number)
    assert [request_of.agreed() for _ in range(3)] == [None, reason, reason]
    assert reason.stops


def test_file_save_asks_for_one_save(request_of: StopRequest, tmp_path: Path) -> None:
    (tmp_path / "SAVE").touch()
    assert [request_of.agreed(), request_of.agreed()] == [None, Reason.SAVE_FILE]
    assert (tmp_path / "SAVE").exists() and not Reason.SAVE_FILE.stops  # until the save is done
    request_of.honoured(Reason.SAVE_FILE)
    assert not (tmp_path / "SAVE").exists()
    assert [request_of.agreed() for _ in range(3)] == [None, None, None]
    (tmp_path / "SAVE").touch()
    assert [request_of.agreed(), request_of.agreed()] == [None, Reason.SAVE_FILE]


def test_file_stop_that_comes_during_a_save_is_not_lost(request_of: StopRequest, tmp_path: Path) -> None:
    (tmp_path / "SAVE").touch()
    assert [request_of.agreed(), request_of.agreed()] == [None, Reason.SAVE_FILE]
    (tmp_path / "STOP").touch()
    request_of.honoured(Reason.SAVE_FILE)
    assert [request_of.agreed(), request_of.agreed()] == [None, Reason.STOP_FILE]
    request_of.honoured(Reason.STOP_FILE)
    assert list(tmp_path.iterdir()) == []


def test_signal_outranks_a_save_and_leaves_the_stop_file(request_of: StopRequest, tmp_path: Path) -> None:
    (tmp_path / "SAVE").touch()
    os.kill(os.getpid(), signal.SIGTERM)
    assert [request_of.agreed(), request_of.agreed()] == [None, Reason.SIGNAL]
    (tmp_path / "STOP").touch()
    request_of.honoured(Reason.SIGNAL)
    assert [path.name for path in tmp_path.iterdir()] == ["STOP"]


def test_files_are_looked_for_once_a_second(request_of: StopRequest, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(stop, "_LOOKS_S", 1.0)
    looks = []
    monkeypatch.setattr(Path, "exists", lambda path: bool(looks.append(path)))
    for _ in range(50):
        request_of.agreed()
    assert len(looks) <= 4  # two files, at the first step and, on a slow machine, a second later
