"""python -m pipeline.search."""

from pipeline.command import run_command
from pipeline.search.command import main

if __name__ == "__main__":
    run_command(main)
