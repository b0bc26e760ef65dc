"""Writes `report.html`: one self-contained file that says what was trained on what, how it went and how good it is.

Works with whatever a run folder holds; what is missing is named, with the command that makes it.
"""

from pathlib import Path
from typing import Any, Final

from pipeline.report.data_set import describe_data, fingerprints
from pipeline.report.faults import faults
from pipeline.report.loss import describe_loss
from pipeline.report.pictures import describe_pictures, describe_strips
from pipeline.report.probe_curve import describe_probe
from pipeline.report.rendering import render
from pipeline.report.run_files import open_run
from pipeline.report.throughput import describe_throughput
from pipeline.report.time_rows import STEP_PARTS, attempt_rows, part_names, time_rows
from pipeline.report.wall_time import account

_EVENT_TITLES: Final = {
    "start": "started",
    "resume": "resumed",
    "checkpoint": "checkpoint saved",
    "stop": "stopped on request",
    "done": "finished",
    "init_weights": "initial weights loaded",
    "kill": "killed (SIGKILL)",
    "lost": "ended without a word",
    "hang": "hung",
    "save_failed": "checkpoint not saved",
    "samples_replaced": "damaged samples replaced",
    "skipped": "step skipped",
    "not_finite": "loss not finite",
    "spike": "loss spike",
    "rollback": "rolled back",
}


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write the report of `run_dir` to `out` (default: report.html in it) and return where it is.

    Raises ConfigError when `run_dir` is no run folder.
    """
    run = open_run(run_dir)
    return render(
        "run.html.j2",
        out or run_dir / "report.html",
        run=run,
        run_dir=str(run_dir),
        settings=run.settings,
        environment=run.environment,
        trained=fingerprints(run.environment, run.settings.data.url),
        data=describe_data(run.settings.data.url),
        loss=describe_loss(run),
        throughput=describe_throughput(run.metrics),
        time=_describe_time(run_dir),
        online=describe_probe(run_dir),
        strips=describe_strips(run_dir),
        pictures=describe_pictures(run_dir / "evaluation" / "reconstructions.npz"),
        faults=faults(run.events),
        event_titles=_EVENT_TITLES,
    )


def _describe_time(run_dir: Path) -> dict[str, Any] | None:
    """The account of the wall time as rows; None when the run did not record it."""
    time = account(run_dir)
    if not time.attempts:
        return None
    names = part_names(time.parts)
    return {
        "account": time,
        "useful": sum(time.parts.get(part, 0.0) for part in STEP_PARTS) / time.total_s if time.total_s else 0.0,
        "rows": time_rows(time.parts, time.total_s, names),
        "attempts": [(attempt, attempt_rows(attempt, names)) for attempt in time.attempts],
    }
