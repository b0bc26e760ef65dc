"""How the commands of `pipeline` and `slurm` end; see `sharding.command`."""

import os
import sys
from collections.abc import Callable

from sharding.command import exit_code, run_command

__all__ = ["end_process", "exit_code", "run_command", "run_rank_command"]


def run_rank_command(main: Callable[[list[str] | None], int]) -> None:
    """Run `main` as a program that may have been a rank of a job, and end the process with its code."""
    end_process(exit_code(main))


def end_process(code: int) -> None:
    """End the process at once, without unwinding torch.

    All that is ours is closed by then. After an error, unwinding a process group whose other ranks are in a collective
    can wait for ever; after success, torch's threads were seen to abort the process now and then ("terminate called
    without an active exception"), which made a failed run of a finished one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
