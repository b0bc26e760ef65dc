"""slurm/pretrain.sh --local with the real trainer: a killed rank costs nothing but time."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from slurm.ledger import read_attempts
from tests.dist.conftest import ROOT, Run, ranks_of_pid

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_a_killed_rank_comes_back_by_itself_and_the_weights_are_those_of_an_undisturbed_run(
    new_run: Callable[..., Run], undisturbed: Callable[..., Run]
) -> None:
    whole, hurt = undisturbed(), new_run("hurt")
    words = [word for word in hurt.command if word.endswith(".yaml") or "=" in word]
    process = subprocess.Popen(
        ["bash", str(ROOT / "slurm" / "pretrain.sh"), "--local", *words],
        env=os.environ | {"FUSMAE_PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 200
    while not hurt.has_reached(6):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    with open(children) as file:
        launchers = [int(pid) for pid in file.read().split()]
    ranks = {rank: pid for launcher in launchers for rank, pid in ranks_of_pid(launcher).items()}
    os.kill(ranks[1], signal.SIGKILL)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert [attempt.end for attempt in read_attempts(hurt.dir)] == ["failed", "done"]
    assert hurt.weights() == whole.weights()

