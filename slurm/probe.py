"""`python -m slurm.probe`: one rank of `pipeline.probe`, as srun starts it; takes the same options."""

import os
import sys

from pipeline import probe
from pipeline.command import run_rank_command
from slurm.environment import from_slurm
from slurm.preflight import node_name


def main(argv: list[str] | None = None) -> int:
    """Probe as the rank that srun started, under the node's name."""
    arguments = sys.argv[1:] if argv is None else argv
    if not {"-h", "--help"} & set(arguments):
        os.environ.update(from_slurm(os.environ))
    return probe.main(["--host", node_name(os.environ), *arguments])


if __name__ == "__main__":
    run_rank_command(main)
