"""The attempts of a run, as slurm/attempt.sh records them in `attempts.tsv`."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pipeline.errors import DataError
from pipeline.report.time_lines import TimeLine, read_time_lines

ENDS = {
    "done": "finished",
    "saved": "saved on a warning, went back into the queue",
    "stopped": "stopped by the file STOP",
    "failed": "a rank failed or hung",
    "preflight": "nodes failed the preflight; no rank was started",
    "fatal": "settings that cannot work; not tried again",
    "interrupted": "killed before it could say: its node or SLURM ended it",
    "unknown": "the ranks left no word",
}
RUNNING = "running"
_LAST_SLURM_JOB = 2**26 - 1
"""SLURM's numbers of jobs end here; `slurm/pretrain.sh --local` takes the second at which it was started."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One line of the ledger, and what the run's own clock adds to it."""

    job: str
    restart: int
    nodes: str
    began: datetime
    ended: datetime | None
    first_step: int
    last_step: int
    """The last that is known to be done."""
    steps_lost: int
    """Those that the next attempt does again."""
    end: str
    """A word of `ENDS`, or `running`."""
    suspect: str | None
    """The node that is blamed for a failure, where that is clear; a run keeps away from one that was blamed twice. The
    nodes that failed a preflight, with commas; a run keeps away from them at once."""

    @property
    def is_local(self) -> bool:
        """Not of a job of SLURM's."""
        return int(self.job) > _LAST_SLURM_JOB


def read_attempts(run_dir: Path) -> list[Attempt]:
    """The attempts in order; empty when there was none under SLURM. The last may still be running.

    Raises:
        DataError: a line is none of ours.
    """
    path = run_dir / "attempts.tsv"
    rows = [line.split("\t") for line in path.read_text().splitlines()] if path.exists() else []
    for number, row in enumerate(rows, start=1):
        if len(row) == 8:
            row.append("-")  # written before there were suspects
        if len(row) != 9:
            raise DataError(f"{path}, line {number}: {len(row)} columns where 9 belong; is it a run's ledger?")
    # By time, not by job: a number of a new cluster may be lower than that of an old one.
    rows.sort(key=lambda row: (row[3], int(row[0]), int(row[1])))
    begins = [_time(row[3]) for row in rows]
    lines = [line for part in read_time_lines(run_dir / "time-rank00000.jsonl")[0] for line in part]
    attempts = []
    for number, row in enumerate(rows):
        until = begins[number + 1] if number + 1 < len(rows) else None
        last = max(int(row[6]), _last_step(lines, begins[number], until))
        following = int(rows[number + 1][5]) if until is not None else last
        is_open = row[7] == "interrupted" and until is None
        attempts.append(
            Attempt(
                job=row[0],
                restart=int(row[1]),
                nodes=row[2],
                began=begins[number],
                ended=None if row[4] == "-" else _time(row[4]),
                first_step=int(row[5]),
                last_step=last,
                steps_lost=max(0, last - following),
                end=RUNNING if is_open else row[7],
                suspect=None if row[8] == "-" else row[8],
            )
        )
    return attempts


def _time(text: str) -> datetime:
    """The batch script's local time."""
    return datetime.fromisoformat(text).astimezone()


def _last_step(lines: list[TimeLine], began: datetime, until: datetime | None) -> int:
    return max((line.step for line in lines if line.time >= began and (until is None or line.time < until)), default=0)
