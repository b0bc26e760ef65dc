"""`python -m pipeline.probe` with real ranks: all well, one that does not come, one that is slow, one that falls silent."""

import json
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.distributed import free_port
from tests.dist.conftest import ROOT

pytestmark = [pytest.mark.dist, pytest.mark.timeout(300)]

SMALL = ("--device", "cpu", "--mib", "1", "--rounds", "3", "--matmul-s", "0.3")


def start(rank: int, port: int, *options: str) -> subprocess.Popen[str]:
    """One rank of two."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    own = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pipeline.probe", *SMALL, "--host", f"n{rank + 1}", *options]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **address, **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def both_came(first: subprocess.Popen[str]) -> None:
    assert first.stderr is not None
    for line in first.stderr:
        if "2 of 2 ranks came" in line:
            return
    raise AssertionError("the ranks never met")


def end(*ranks: subprocess.Popen[str]) -> None:
    for rank in ranks:
        rank.kill()
        rank.communicate()


def test_two_ranks_reduce_and_are_well(tmp_path):
    command = [sys.executable, "-m", "pipeline.probe", "--ranks", "2", *SMALL, "--json", "--folder", str(tmp_path)]
    environ = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads((tmp_path / "probe.json").read_text())
    assert (result["backend"], result["world_size"], result["num_bytes"]) == ("gloo", 2, 2**20)
    assert result["algbw_gb_s"] == pytest.approx(2**20 / result["time_s"] / 1e9)
    assert result["busbw_gb_s"] == result["algbw_gb_s"]  # 2 (n-1) / n is 1 for two
    assert [rank["host"] for rank in result["ranks"]] == [platform.node()] * 2
    assert all(rank["is_right"] and len(rank["all_reduce_s"]) == 3 for rank in result["ranks"])
    assert result["missing"] == result["wrong"] == []


@pytest.mark.slow
def test_torchrun_starts_it_too(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "pipeline.probe", *SMALL, "--folder", str(tmp_path)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "probe.json").read_text())["busbw_gb_s"] > 0


def test_a_rank_that_does_not_come_is_named_with_those_that_did(tmp_path):
    first = start(0, free_port(), "--wait-s", "2", "--folder", str(tmp_path))
    output, _ = first.communicate(timeout=150)
    assert first.returncode == 1
    assert "missing of 2: rank 1; these came: rank 0 (n1)" in output
    result = json.loads((tmp_path / "probe.json").read_text())
    assert result["missing"] == [1] and result["came"] == {"0": "n1"} and result["busbw_gb_s"] is None


def test_without_the_first_rank_the_others_say_that_they_came(tmp_path):
    port = free_port()
    second = start(1, port, "--wait-s", "2", "--folder", str(tmp_path))
    _, errors = second.communicate(timeout=150)
    assert second.returncode == 1
    assert f"error: rank 1 of 2 on n2 came, but rank 0 did not come to 127.0.0.1:{port} within 2 s" in errors
    assert json.loads((tmp_path / "alone-rank00001.json").read_text())["host"] == "n2"


@contextmanager
def slowed_down(process: subprocess.Popen[str]) -> Iterator[None]:
    """Let a process run for 20 ms of every 320 ms."""
    over = threading.Event()

    def hold() -> None:
        while not over.is_set():
            os.killpg(process.pid, signal.SIGSTOP)
            over.wait(0.3)
            os.killpg(process.pid, signal.SIGCONT)
            over.wait(0.02)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_slow_rank_is_named_with_its_host(tmp_path):
    port = free_port()
    longer = ("--matmul-s", "1", "--rounds", "1")
    first, second = start(0, port, *longer, "--folder", str(tmp_path)), start(1, port, *longer)
    try:
        both_came(first)
        with slowed_down(second):
            output, errors = first.communicate(timeout=200)
        second.communicate(timeout=150)
        assert first.returncode == second.returncode == 1, output + errors
        assert "slow: rank 1 (n2)" in output
        result = json.loads((tmp_path / "probe.json").read_text())
        assert result["slow"] == [1] and result["missing"] == result["wrong"] == []
    finally:
        end(first, second)


def test_a_rank_that_falls_silent_is_named_after_the_limit(tmp_path):
    port, limit = free_port(), ("--limit-s", "4")
    first, second = start(0, port, *limit, "--folder", str(tmp_path)), start(1, port, *limit, "--matmul-s", "3")
    try:
        both_came(first)
        os.killpg(second.pid, signal.SIGSTOP)
        output, _ = first.communicate(timeout=150)
        assert first.returncode == 1 and "missing of 2: rank 1 (n2)" in output
        result = json.loads((tmp_path / "probe.json").read_text())
        assert result["missing"] == [1] and result["ranks"][0]["is_victim"]
    finally:
        os.killpg(second.pid, signal.SIGCONT)
        end(first, second)


@pytest.mark.slow
def test_a_rank_that_computes_past_the_limit_is_told_from_those_that_wait_for_it(tmp_path):
    port, limit = free_port(), ("--limit-s", "4")
    first = start(0, port, *limit, "--folder", str(tmp_path))
    second = start(1, port, *limit, "--matmul-s", "30")
    try:
        output, _ = first.communicate(timeout=150)
        assert second.wait(timeout=150) == first.returncode == 1
        waits, computes = json.loads((tmp_path / "probe.json").read_text())["ranks"]
        assert computes["error"] == "still computing after 4 s" and not computes["is_victim"], output
        assert waits["error"] and waits["is_victim"], output
    finally:
        end(first, second)


def test_a_size_that_is_none_is_wrong_usage():
    command = [sys.executable, "-m", "pipeline.probe", "--rounds", "0"]
    done = subprocess.run(command, cwd=Path(ROOT), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "--rounds is 0; give at least 1" in done.stderr
