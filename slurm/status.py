"""`python -m slurm.status RUN`: the attempts of a run, what ended each, where it stands and when it will be done."""

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pipeline.command import run_command
from pipeline.config import load_settings
from pipeline.errors import ConfigError
from pipeline.metrics import read_lines
from pipeline.report.time_lines import read_time_lines
from pipeline.run_folder import may_be_in_use
from slurm.ledger import ENDS, RUNNING, Attempt, read_attempts

_RECENT_LINES = 20
"""Of the run's clock, from which its speed is told."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where a run stands."""

    run: str
    state: str
    """SLURM's word for the last job; without SLURM, or when it has forgotten the job, the last attempt's end."""
    next_job: str | None
    """The job that waits for the end of the last attempt, or took over from it and has not begun yet (FUSMAE_CHAIN)."""
    step: int
    steps: int
    """Of the whole run."""
    loss: float | None
    steps_per_s: float | None
    """Lately, saves included; None before two steps."""
    eta: datetime | None
    """When it will be done if it goes on like this; None when it is not running."""
    attempts: list[Attempt]


def read_status(run_dir: Path) -> Status:
    """Read the run folder, and ask SLURM for the job's state where there is one.

    Raises:
        ConfigError: the folder holds no run.
        DataError: its ledger is damaged.
    """
    attempts = read_attempts(run_dir)
    if not (run_dir / "config.yaml").exists():
        if attempts:
            raise ConfigError(f"{run_dir}: {len(attempts)} attempts, none of which came to train; see the job's output")
        raise ConfigError(f"no run in {run_dir}: it has neither config.yaml nor attempts.tsv; give a run.dir")
    settings = load_settings(run_dir / "config.yaml", [])
    metrics = read_lines(run_dir / "metrics.jsonl")
    speed = _steps_per_s(run_dir)
    step = max([attempt.last_step for attempt in attempts[-1:]] + [line["step"] for line in metrics[-1:]], default=0)
    state, next_job = _state(attempts, run_dir)
    eta = None
    if speed and state in ("RUNNING", RUNNING):
        eta = (datetime.now().astimezone() + timedelta(seconds=(settings.train.steps - step) / speed)).replace(
            microsecond=0
        )
    return Status(
        run=str(run_dir),
        state=state,
        next_job=next_job,
        step=step,
        steps=settings.train.steps,
        loss=metrics[-1]["loss"] if metrics else None,
        steps_per_s=speed,
        eta=eta,
        attempts=attempts,
    )


def _state(attempts: list[Attempt], run_dir: Path) -> tuple[str, str | None]:
    if not attempts:
        path = run_dir / "outcome.json"
        return (str(json.loads(path.read_text())["outcome"]) if path.exists() else "not under SLURM"), None
    last = attempts[-1]
    if last.is_local:
        return ("interrupted" if last.end == RUNNING and not may_be_in_use(run_dir) else last.end), None
    if shutil.which("squeue") is not None:
        from slurm.watch import FINAL, goes_on, slurm_state

        state = slurm_state(last.job)
        following = goes_on(run_dir, last.job)
        if following is not None and (not state or state in FINAL):
            state = following[1]
        if state:
            return state, following[0] if following else None
    return last.end, None


def _steps_per_s(run_dir: Path) -> float | None:
    parts, _, _ = read_time_lines(run_dir / "time-rank00000.jsonl")
    lines = [line for line in parts[-1] if line.step > 0][-_RECENT_LINES:] if parts else []
    if len(lines) < 2 or lines[-1].wall_s <= lines[0].wall_s:
        return None
    return (lines[-1].step - lines[0].step) / (lines[-1].wall_s - lines[0].wall_s) or None


def describe(status: Status) -> str:
    """The status for a person."""
    head = f"{status.run}: {status.state}, step {status.step} of {status.steps}"
    if status.loss is not None:
        head += f", loss {status.loss:.4f}"
    if status.steps_per_s is not None:
        head += f", {status.steps_per_s:.3g} steps/s"
    if status.eta is not None:
        head += f", done about {status.eta:%Y-%m-%d %H:%M}"
    if status.next_job is not None:
        head += f", job {status.next_job} goes on" + (" after it" if status.state == "RUNNING" else "")
    if not status.attempts:
        return head
    rows = [("attempt", "nodes", "began", "ended", "steps", "lost", "end")]
    for attempt in status.attempts:
        ended = "-" if attempt.ended is None else f"{attempt.ended:%m-%d %H:%M:%S}"
        steps = f"{attempt.first_step}-{attempt.last_step}"
        what = f"{attempt.end}: {ENDS[attempt.end]}" if attempt.end in ENDS else attempt.end
        if attempt.suspect:
            what += f": {attempt.suspect}" if attempt.end == "preflight" else f", first on {attempt.suspect}"
        name, began = f"{attempt.job}.{attempt.restart}", f"{attempt.began:%m-%d %H:%M:%S}"
        rows.append((name, attempt.nodes, began, ended, steps, str(attempt.steps_lost), what))
    return "\n".join([head, "", *table(rows)])


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with columns of even width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def main(argv: list[str] | None = None) -> int:
    """Print the status; 0 whatever it is."""
    parser = argparse.ArgumentParser(prog="python -m slurm.status", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="run.dir of the run")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    status = read_status(arguments.run)
    if arguments.json:
        print(json.dumps(asdict(status), indent=1, default=lambda moment: moment.isoformat()))
    else:
        print(describe(status))
    return 0


if __name__ == "__main__":
    run_command(main)
