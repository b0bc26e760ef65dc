"""`python -m pipeline.report`: see `pipeline.report.command`."""

from pipeline.command import run_command
from pipeline.report.command import main

run_command(main)
