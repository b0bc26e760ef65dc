"""`python -m pipeline.probe`: how fast the ranks of a job reduce and compute, whether the sum is right, who is slow.

One process a rank, as torchrun or SLURM start them; alone it starts the ranks of this machine. A rank that does not
come, or falls silent, is named, and nobody waits for it longer than the time limits. Exit code 0: all is well.
"""

import argparse
import json
import os
import platform
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Final

from pipeline.all_reduce import COMPUTING, RankFigures, measure
from pipeline.command import run_rank_command
from pipeline.distributed import Ranks, ranks_from
from pipeline.errors import ConfigError, RankError
from pipeline.launch import count_processes, follow_launcher, start_ranks
from pipeline.metrics import write_whole
from pipeline.probe_result import describe, judge
from pipeline.rank_meeting import Meeting

RESULT_NAME: Final = "probe.json"
ALONE_NAME: Final = "alone-rank{rank:05d}.json"
_GRACE_S: Final = 5.0
"""Ranks do not begin to measure at the same moment."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.probe", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--mib", type=float, default=64.0, metavar="M", help="size of the tensor that is reduced (default 64)")
    add("--rounds", type=int, default=5, metavar="N", help="all-reduces that are timed (default 5)")
    add("--matmul-s", type=float, default=1.0, metavar="S", help="how long matrix products are timed (default 1)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes the GPU when there is one")
    add("--ranks", type=int, default=0, metavar="N", help="ranks to start where no launcher did (default: one a GPU)")
    add("--wait-s", type=float, default=60.0, metavar="S", help="longest wait for a rank to come (default 60)")
    add("--limit-s", type=float, default=60.0, metavar="S", help="longest time to measure (default 60)")
    add("--host", default=platform.node(), metavar="NAME", help="what this machine is called in the result")
    add("--folder", type=Path, metavar="DIR", help=f"the first rank writes DIR/{RESULT_NAME} too")
    add("--json", action="store_true", help="print JSON")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure as one of the ranks; the first of them says what was found."""
    options = build_parser().parse_args(argv)
    for name, value, least in (
        ("--mib", options.mib, 1e-5),
        ("--rounds", options.rounds, 1),
        ("--matmul-s", options.matmul_s, 0.01),
        ("--wait-s", options.wait_s, 1),
        ("--limit-s", options.limit_s, 1),
    ):
        if value < least:
            raise ConfigError(f"{name} is {value}; give at least {least}")
    ranks = ranks_from(os.environ)
    if ranks is None:
        arguments = sys.argv[1:] if argv is None else argv
        return start_ranks("pipeline.probe", arguments, count_processes(options.ranks, options.device))
    follow_launcher()
    try:
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        meeting = Meeting(ranks, *place, options.host, options.wait_s)
    except RankError as error:
        if options.folder:
            alone = {"rank": ranks.rank, "host": options.host, "error": str(error)}
            _write(options.folder, ALONE_NAME.format(rank=ranks.rank), json.dumps(alone))
        raise RankError(f"rank {ranks.rank} of {ranks.world_size} on {options.host} came, but {error}") from error
    if ranks.is_first:
        print(f"{len(meeting.came)} of {ranks.world_size} ranks came", file=sys.stderr, flush=True)
    deadline = time.monotonic() + options.limit_s + _GRACE_S
    if meeting.is_whole:
        meeting.hand_in(asdict(_figures(ranks, options, meeting)))
    if not ranks.is_first:
        return 0 if meeting.well(options.limit_s + 2 * _GRACE_S) else 1
    handed = meeting.handed_in(deadline - time.monotonic()) if meeting.is_whole else []
    figures = [RankFigures(**figures) for figures in handed]
    result = judge(figures, meeting.came, ranks.world_size, _num_bytes(options))
    if options.folder:
        _write(options.folder, RESULT_NAME, json.dumps(asdict(result), indent=1))
    print(json.dumps(asdict(result), indent=1) if options.json else describe(result), flush=True)
    meeting.close(result.is_well)
    return 0 if result.is_well else 1


def _figures(ranks: Ranks, options: argparse.Namespace, meeting: Meeting) -> RankFigures:
    """What this rank measured; in a thread, as a rank in a collective that hangs never comes back from it."""
    found: list[RankFigures] = []
    stages = ["joining"]

    def run() -> None:
        found.append(
            measure(
                ranks,
                options.host,
                options.device,
                meeting.group_store(),
                num_bytes=_num_bytes(options),
                rounds=options.rounds,
                matmul_s=options.matmul_s,
                limit_s=options.limit_s,
                begins=stages.append,
            )
        )

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(options.limit_s)
    if found:
        return found[0]
    error = f"still {stages[-1]} after {options.limit_s:g} s"
    return RankFigures(rank=ranks.rank, host=options.host, error=error, is_victim=stages[-1] != COMPUTING)


def _num_bytes(options: argparse.Namespace) -> int:
    return int(options.mib * 2**18) * 4 or 4


def _write(folder: Path, name: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / name, f"{text}\n")


if __name__ == "__main__":
    run_rank_command(main)
