"""`python -m pipeline.export`: see `pipeline.export.command`."""

from pipeline.command import run_command
from pipeline.export.command import main

if __name__ == "__main__":
    run_command(main)
