"""Starts the ranks of this machine when nothing else (torchrun, SLURM) did, and ends them together."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from pipeline.distributed import free_port
from pipeline.errors import ConfigError

_PR_SET_PDEATHSIG = 1
_PARENT = "FUSMAE_LAUNCHER_PID"
_GRACE_S = 10.0


def count_processes(setting: int, device: str) -> int:
    """Ranks to start for `run.num_processes`: 0 is one for each GPU, and one without any or on the CPU.

    Raises ConfigError when there are GPUs, but fewer than ranks.
    """
    num_gpus = 0
    if device != "cpu" and any(Path("/dev").glob("nvidia[0-9]*")):  # importing torch takes a second
        import torch

        num_gpus = torch.cuda.device_count()
    if num_gpus and setting > num_gpus:
        raise ConfigError(
            f"run.num_processes={setting}, but this machine has {num_gpus} GPUs; write run.num_processes={num_gpus}, "
            "or engine.device=cpu"
        )
    return setting or max(1, num_gpus)


def start_ranks(module: str, arguments: list[str], num_processes: int) -> int:
    """Run `python -m module arguments` as `num_processes` ranks; returns 0, or the first bad exit code.

    Signals to this process reach every rank once; a second interrupt, or a rank that died, ends all of them. Ranks
    end with their launcher, whatever kills it (`follow_launcher`).
    """
    environment = dict(
        os.environ,
        WORLD_SIZE=str(num_processes),
        LOCAL_WORLD_SIZE=str(num_processes),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
        **{_PARENT: str(os.getpid())},
    )
    ranks: list[subprocess.Popen[bytes]] = []
    interrupts = 0

    def forward(number: int, _frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(signal.SIGKILL if interrupts > 1 else number)

    forwarded = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    previous = {number: signal.signal(number, forward) for number in forwarded}
    try:
        for rank in range(num_processes):
            ranks.append(
                subprocess.Popen(
                    [sys.executable, "-m", module, *arguments],
                    env=dict(environment, RANK=str(rank), LOCAL_RANK=str(rank)),
                    process_group=0,  # a terminal's Ctrl-C reaches the launcher alone, which passes it on once
                )
            )
        return _wait(ranks)
    finally:
        for process in ranks:
            if process.poll() is None:
                process.kill()
                process.wait()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all; when one fails, give the others a moment to say why, then end them."""
    deadline: float | None = None
    first_bad = 0
    while None in [process.poll() for process in ranks]:
        if not first_bad:
            codes = [process.returncode for process in ranks if process.returncode]
            if codes:
                first_bad, deadline = codes[0], time.monotonic() + _GRACE_S
        elif deadline is not None and time.monotonic() > deadline:
            for process in ranks:
                if process.poll() is None:
                    process.kill()
        time.sleep(0.05)
    codes = [process.returncode for process in ranks if process.returncode]
    for rank, process in enumerate(ranks):
        if process.returncode < 0:
            print(f"rank {rank} was killed by {signal.Signals(-process.returncode).name}", file=sys.stderr)
    code = first_bad or (codes[0] if codes else 0)
    return code if code >= 0 else 1


def follow_launcher() -> None:
    """In a rank: die when the launcher dies, so that no orphan goes on writing into the run folder."""
    parent = os.environ.get(_PARENT)
    if not parent:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit(1)
