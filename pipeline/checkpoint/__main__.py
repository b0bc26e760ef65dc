"""`python -m pipeline.checkpoint`: see `pipeline.checkpoint.command`."""

from pipeline.checkpoint.command import main
from pipeline.command import run_command

run_command(main)
