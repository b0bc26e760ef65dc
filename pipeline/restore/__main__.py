"""`python -m pipeline.restore`: see `pipeline.restore.command`."""

from pipeline.command import run_command
from pipeline.restore.command import main

if __name__ == "__main__":
    run_command(main)
