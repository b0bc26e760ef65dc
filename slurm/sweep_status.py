"""`python -m slurm.sweep status RUNS`: where each run of a sweep stands."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.metrics import read_lines
from slurm.status import read_status, table
from slurm.sweep_elements import INDEX_NAME, Element, read_index
from slurm.watch import FINAL, outcome, slurm_state

_PROBE_SCORES = ("knn_map_macro", "ridge_map_macro")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run."""

    name: str
    differs: dict[str, str]
    """Settings that tell it from the others."""
    state: str
    """As slurm.status says it; the word of the trainer once the run is over; `not begun`."""
    step: int
    steps: int | None
    """None before the run began."""
    attempts: int
    loss: float | None
    probe: dict[str, float]
    """Scores of the last probe while it trained; empty without."""


def is_over(element: Element, runs: Path) -> bool:
    """Whether the run has done all the steps that its settings now ask for."""
    from pipeline.config import load_settings

    word, step = outcome(runs / element.name)
    if word != "done":
        return False
    return step >= load_settings(element.config, [*element.overrides, f"run.dir={runs}"]).train.steps


def is_active(element: Element, runs: Path) -> bool:
    """Whether a job of SLURM runs it or waits to."""
    return _state(element, runs / element.name) not in (*FINAL, "") or _goes_on(runs / element.name)


def read_rows(runs: Path) -> list[Row]:
    """The runs in the order in which they were named.

    Raises:
        ConfigError: no sweep is in the folder.
    """
    found = read_index(runs)
    if not found:
        raise ConfigError(f"no sweep in {runs}: it has no {INDEX_NAME}; give the --runs of a sweep")
    return [_row(element, runs / element.name) for element in found]


def _row(element: Element, run_dir: Path) -> Row:
    if not (run_dir / "config.yaml").exists():
        state = _state(element, run_dir) or "not begun"
        return Row(
            name=element.name,
            differs=element.differs,
            state=state,
            step=0,
            steps=None,
            attempts=0,
            loss=None,
            probe={},
        )
    status = read_status(run_dir)
    probes = read_lines(run_dir / "probe.jsonl")
    word, _ = outcome(run_dir)
    return Row(
        name=element.name,
        differs=element.differs,
        state=word if word == "done" and status.state in FINAL else status.state,
        step=status.step,
        steps=status.steps,
        attempts=len(status.attempts),
        loss=status.loss,
        probe={name: probes[-1][name] for name in _PROBE_SCORES if name in probes[-1]} if probes else {},
    )


def _state(element: Element, run_dir: Path) -> str:
    """SLURM's word for the job that the element was submitted as; '' without."""
    return slurm_state(element.job) if element.job and shutil.which("squeue") is not None else ""


def _goes_on(run_dir: Path) -> bool:
    if not (run_dir / "config.yaml").exists() or shutil.which("squeue") is None:
        return False
    status = read_status(run_dir)
    return status.next_job is not None or status.state in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING")


def describe(rows: list[Row]) -> str:
    """The table for a person."""
    keys = list(dict.fromkeys(key for row in rows for key in row.differs))
    scores = [name for name in _PROBE_SCORES if any(name in row.probe for row in rows)]
    lines = [("run", *keys, "state", "steps", "attempts", "loss", *scores)]
    for row in rows:
        steps = f"{row.step}" if row.steps is None else f"{row.step} of {row.steps}"
        loss = "-" if row.loss is None else f"{row.loss:.4f}"
        probe = [f"{row.probe[name]:.4f}" if name in row.probe else "-" for name in scores]
        settings = [row.differs.get(key, "-") for key in keys]
        lines.append((row.name, *settings, row.state, steps, str(row.attempts), loss, *probe))
    return "\n".join(table(lines))


def as_json(rows: list[Row]) -> str:
    """The same for a program."""
    return json.dumps([asdict(row) for row in rows], indent=1)
