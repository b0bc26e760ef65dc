"""The examples as a user runs them: processes, killed with SIGKILL and started again."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

ROOT = Path(__file__).parents[2]
STEPS = 12
"""Three epochs of four batches of 8, which hold the 25 pairs."""
EXAMPLES = ("plain_pytorch", "lightning_module", "accelerate_loop")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")

pytestmark = pytest.mark.dist


def command(example: str, processes: int, dataset: str, out: Path) -> list[str]:
    by_torchrun = processes == 2 and example != "lightning_module"  # Lightning starts its processes by itself
    start = TORCHRUN if by_torchrun else (sys.executable, "-m")
    devices = ("--devices", str(processes)) if example == "lightning_module" else ()
    settings = ("--epochs", "3", "--global-batch", "8")
    return [*start, f"examples.{example}", dataset, "--out", str(out), *settings, *devices]


@contextlib.contextmanager
def started(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    process = subprocess.Popen(
        arguments,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "1"},
    )
    with process:
        try:
            yield process
        finally:
            kill(process)


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the launcher and all ranks."""
    with contextlib.suppress(psutil.NoSuchProcess):
        launcher = psutil.Process(process.pid)
        everyone = [launcher, *launcher.children(recursive=True)]
        for one in everyone:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(everyone, timeout=60)


def run(arguments: list[str], kill_at: int | None = None) -> dict[int, str]:
    """The loss that each step printed, of a run to its end or one that is killed as soon as `kill_at` is there."""
    losses: dict[int, str] = {}
    said = []
    with started(arguments) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if found := re.match(r"epoch (\d+) step (\d+) loss (\S+)$", line):
                epoch, step = int(found[1]), int(found[2])
                assert epoch == step // (STEPS // 3)
                assert step not in losses, f"two ranks printed: {said}"
                losses[step] = found[3]
                if step == kill_at:
                    return losses
        assert process.wait() == 0, "".join(said)
    return losses


@pytest.fixture(scope="module")
def plain(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, str], Path]:
    """The losses of the plain loop on one process, uninterrupted, and its last checkpoint, of step 10."""
    out = tmp_path_factory.mktemp("plain") / "out"
    losses = run(command("plain_pytorch", 1, dataset, out))
    assert sorted(losses) == list(range(STEPS))
    return losses, out


def run_killed_and_resumed(arguments: list[str]) -> list[dict[int, str]]:
    killed = run(arguments, kill_at=7)
    resumed = run(arguments)
    assert 0 < min(resumed) <= 7
    assert sorted(killed | resumed) == list(range(STEPS))
    return [killed, resumed]


def assert_close(losses: dict[int, str], expected: dict[int, str]) -> None:
    """The mean of two halves' means is made of the same numbers, added in another order."""
    for step, loss in losses.items():
        assert float(loss) == pytest.approx(float(expected[step]), rel=1e-4)


@pytest.mark.parametrize("example", EXAMPLES)
def test_killed_and_started_again_each_example_has_the_losses_of_the_plain_loop(example, dataset, tmp_path, plain):
    for losses in run_killed_and_resumed(command(example, 1, dataset, tmp_path / "out")):
        assert losses == {step: plain[0][step] for step in losses}


def test_two_processes_resume_too(dataset, tmp_path, plain):
    for losses in run_killed_and_resumed(command("plain_pytorch", 2, dataset, tmp_path / "out")):
        assert_close(losses, plain[0])


@pytest.mark.parametrize("example", ["lightning_module", "accelerate_loop"])
def test_two_processes_of_a_framework_share_each_batch(example, dataset, tmp_path, plain):
    losses = run(command(example, 2, dataset, tmp_path / "out"))
    assert sorted(losses) == list(range(STEPS))
    assert_close(losses, plain[0])


def test_a_checkpoint_with_another_position_continues_with_other_losses(dataset, tmp_path, plain):
    losses, out = plain
    saved = torch.load(out, weights_only=True)
    saved["dataset"]["samples_seen"] -= 8
    torch.save(saved, tmp_path / "out")
    resumed = run(command("plain_pytorch", 1, dataset, tmp_path / "out"))
    assert sorted(resumed) == [10, 11]
    assert all(abs(float(resumed[step]) / float(losses[step]) - 1) > 1e-3 for step in resumed)
