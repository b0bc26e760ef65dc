"""python -m pipeline.embed."""

from pipeline.command import run_rank_command
from pipeline.embed.command import main

if __name__ == "__main__":
    run_rank_command(main)
