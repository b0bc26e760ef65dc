"""`--slurm`: the same data set from a job array, here by submitit's local executor, whose tasks are processes."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sharding import array_job
from sharding.errors import StorageError
from tests.trees import make_reben
from tests.unit.sharding.conftest import ROOT, contents, run_build


@pytest.mark.dist
def test_a_job_array_builds_the_same_bytes(v1, reben, tmp_path):
    arguments = [*v1.arguments, *reben.arguments]
    assert run_build(*arguments, "--out", tmp_path / "one").code == 0
    logs = ["--slurm-logs", tmp_path / "logs"]
    ended = run_build(*arguments, "--out", tmp_path / "array", "--slurm", 2, "--cluster", "local", *logs)
    assert ended.code == 0, ended.err
    assert contents(tmp_path / "array") == contents(tmp_path / "one")


def processes_of(folder: Path) -> list[int]:
    """The jobs that submitit has started with `folder` on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode().split("\0")
                if "submitit.core._submit" in words and any(str(folder) in word for word in words):
                    found.append(int(entry.name))
    return found


@pytest.mark.chaos
def test_an_element_that_is_killed_is_submitted_again(tmp_path):
    root = tmp_path / "archive"
    make_reben(root, 60)
    options = ["--source", "reben", "--root", root, "--shard-mib", "1", "--codec", "none"]
    array = ["--slurm", "1", "--workers", "1", "--cluster", "local", "--slurm-logs", tmp_path / "logs"]
    command = [sys.executable, "-m", "sharding.build", *options, "--out", tmp_path / "out", *array]
    process = subprocess.Popen([str(word) for word in command], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob(".build/*.json")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)
    for number in processes_of(tmp_path / "logs"):
        os.kill(number, signal.SIGKILL)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert "shards are unfinished, 1 of 1 jobs failed" in told and "submitted again" in told
    assert run_build(*options, "--out", tmp_path / "whole").code == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


class Died:
    """A job that ended without having done anything."""

    job_id = "7_0"

    def done(self) -> bool:
        return True

    def exception(self) -> Exception:
        return RuntimeError("slurmstepd: node lost")


def test_elements_that_always_die_end_the_build(v1, tmp_path, monkeypatch):
    monkeypatch.setattr(array_job, "_submit", lambda tasks, array: [Died()])
    logs = ["--slurm-logs", tmp_path / "logs"]
    ended = run_build(*v1.arguments, "--out", tmp_path / "out", "--slurm", 1, "--cluster", "local", *logs)
    assert ended.code == StorageError.exit_code
    assert "1 of 1 jobs failed; 7_0: slurmstepd: node lost; submitted again" in ended.err
    assert "shards are unfinished after 3 job arrays, the first train-000000" in ended.err
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slurm", 0], "--slurm is 0"),
        (["--slurm-option", "partition=cpu"], "give --slurm too"),
        (["--slurm", 2, "--slurm-option", "partition"], "write NAME=VALUE"),
        (["--slurm", 2], "which nodes do not share"),
    ],
)
def test_wrong_usage(v1, tmp_path, arguments, message):
    ended = run_build(*v1.arguments, "--out", tmp_path / "out", *arguments)
    assert ended.code == 2
    assert message in ended.err
