"""What runs in each rank: the distributed environment, then the trainer in the same process.

`python -m slurm.task CONFIG.yaml [key.sub=value ...]` is one rank of slurm/pretrain.sh.
"""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.command import exit_code, run_rank_command
from slurm.environment import from_local, from_slurm


def pretrain(argv: list[str] | None) -> int:
    """The trainer's own main, imported where a rank runs and nowhere else."""
    from pipeline import pretrain

    return pretrain.main(argv)


@dataclass(frozen=True, kw_only=True)
class Rank:
    """The callable that submitit runs once in each rank.

    It has no checkpoint(): submitit would call that on rank 0 alone, where a sharded save waits for the
    others for ever. The trainer saves on all ranks, and the batch script requeues.
    """

    argv: tuple[str, ...]
    """Arguments of the trainer."""
    master_port: int | None = None
    """Where the ranks meet on this machine; None under SLURM, where the batch script says it."""
    main: Callable[[list[str] | None], int] = pretrain
    """What runs."""

    def __call__(self) -> None:
        """Run the trainer; end the process with its code when that is not 0, so that srun ends the others."""
        # submitit has taken these signals: for SIGTERM to be ignored and SIGUSR2 to requeue from rank 0.
        for taken in (signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT):
            signal.signal(taken, signal.SIG_DFL)
        code = exit_code(self._run, list(self.argv))
        if code:
            sys.exit(code)

    def _run(self, argv: list[str] | None) -> int:
        if self.master_port is None:
            os.environ.update(from_slurm(os.environ))
        else:
            from submitit import JobEnvironment

            os.environ.update(from_local(JobEnvironment(), self.master_port))
        return self.main(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the trainer as the rank that srun started."""
    arguments = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(arguments):
        print("usage: srun python -m slurm.task CONFIG.yaml [key.sub=value ...]   (see slurm/pretrain.sh)")
        sys.exit(0)
    os.environ.update(from_slurm(os.environ))
    return pretrain(arguments)


if __name__ == "__main__":
    run_rank_command(main)
