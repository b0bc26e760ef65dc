"""The launcher ends its ranks together and never leaves one behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.distributed import Ranks, ranks_from
from pipeline.errors import ConfigError

PROGRAM = """
import os, pathlib, signal, sys, time
from pipeline.launch import follow_launcher
follow_launcher()
out = pathlib.Path(sys.argv[1])
rank = os.environ["RANK"]
def on_signal(number, frame):
    (out / f"signal-{rank}").write_text(signal.Signals(number).name)
    sys.exit(0)
signal.signal(signal.SIGUSR2, on_signal)
(out / f"pid-{rank}").write_text(str(os.getpid()))
if sys.argv[2] == "fail" and rank == "1":
    sys.exit(3)
time.sleep(0 if sys.argv[2] == "pass" else 60)
"""

LAUNCHER = "import sys; from pipeline.launch import start_ranks; sys.exit(start_ranks('program', sys.argv[1:], 2))"


def _launch(tmp_path: Path, kind: str) -> subprocess.Popen[bytes]:
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = dict(os.environ, PYTHONPATH=f"{tmp_path}:{os.getcwd()}")
    return subprocess.Popen([sys.executable, "-c", LAUNCHER, str(tmp_path), kind], env=environment)


def _pids(tmp_path: Path) -> list[int]:
    files = [tmp_path / "pid-0", tmp_path / "pid-1"]
    deadline = time.monotonic() + 30
    while not all(f.exists() and f.read_text() for f in files):
        assert time.monotonic() < deadline, "ranks did not start"
        time.sleep(0.02)
    return [int(f.read_text()) for f in files]


def _gone(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_all_ranks_pass(tmp_path: Path) -> None:
    assert _launch(tmp_path, "pass").wait(30) == 0


def test_one_bad_rank_ends_all_with_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = _launch(tmp_path, "fail")
    pids = _pids(tmp_path)
    assert launcher.wait(30) == 3
    assert all(_gone(pid) for pid in pids)


def test_signal_is_passed_to_every_rank(tmp_path: Path) -> None:
    launcher = _launch(tmp_path, "wait")
    _pids(tmp_path)
    launcher.send_signal(signal.SIGUSR2)
    assert launcher.wait(30) == 0
    assert [(tmp_path / f"signal-{rank}").read_text() for rank in (0, 1)] == ["SIGUSR2", "SIGUSR2"]


def test_killed_launcher_takes_its_ranks_along(tmp_path: Path) -> None:
    launcher = _launch(tmp_path, "wait")
    pids = _pids(tmp_path)
    launcher.kill()
    launcher.wait()
    assert all(_gone(pid) for pid in pids)


def test_ranks_come_from_the_launchers_variables() -> None:
    assert ranks_from({}) is None
    described = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert ranks_from(described) == Ranks(rank=1, world_size=2, local_rank=1)
    with pytest.raises(ConfigError, match="not LOCAL_RANK, MASTER_ADDR"):
        ranks_from({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1"})
