"""`sharding.build --slurm` on a real cluster builds the bytes of one machine, also when an element is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.conftest import NewLab
from tests.trees import make_reben
from tests.unit.sharding.conftest import ROOT, contents, run_build

pytestmark = [pytest.mark.cluster, pytest.mark.chaos]


def elements(lab, logs: Path) -> dict[str, int]:
    """The job array's running elements, by the node: the process that submitit starts."""
    found = {}
    for node in lab.config.names:
        for pid in lab.processes(node):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            if words[1:4] == ["-u", "-m", "submitit.core._submit"] and any(str(logs) in word for word in words):
                found[node] = min(pid, found.get(node, pid))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["none", "killed"])
def test_an_array_on_the_cluster_builds_the_same_bytes(new_lab: NewLab, shared: Path, tmp_path: Path, fault: str):
    root = tmp_path / "archive"
    make_reben(root, 80)
    options = ["--source", "reben", "--root", root, "--shard-mib", "1", "--codec", "none"]
    lab = new_lab(nodes=3)
    logs = shared / "logs"
    array = ["--slurm", "2", "--workers", "1", "--slurm-logs", logs]
    command = [sys.executable, "-m", "sharding.build", *options, "--out", shared / "out", *array]
    words = [str(word) for word in command]
    process = subprocess.Popen(words, cwd=ROOT, env=lab.environ, stderr=subprocess.PIPE, text=True)
    if fault == "killed":
        deadline = time.monotonic() + 100
        while not list((shared / "out").glob(".build/*.json")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.002)
        for pid in elements(lab, logs).values():
            os.kill(pid, signal.SIGKILL)
    _, told = process.communicate(timeout=240)
    assert process.returncode == 0, told
    states = lab.run("squeue", "--noheader", "--array", "--states=all", "-o", "%T").split()
    if fault == "killed":
        assert "FAILED" in states, f"no element was seen to fail: {states}"
        assert "jobs failed" in told and "submitted again" in told
    else:
        assert states == ["COMPLETED"] * 2
    assert run_build(*options, "--out", tmp_path / "whole").code == 0
    assert contents(shared / "out") == contents(tmp_path / "whole")
