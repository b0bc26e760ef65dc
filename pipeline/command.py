"""How the commands of `pipeline` and `slurm` end; see `sharding.command`."""

from sharding.command import exit_code, run_command

__all__ = ["exit_code", "run_command"]
