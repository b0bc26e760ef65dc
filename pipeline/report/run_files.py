"""What a run folder holds, read once for all parts of a report."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, DataError
from pipeline.metrics import read_lines
from pipeline.report.events import read_events

if TYPE_CHECKING:
    from pipeline.settings import Settings


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """The files of one run; what it has not written is None or empty."""

    dir: Path
    settings: "Settings"
    settings_text: str
    """config.yaml as it lies there."""
    environment: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    events: list[dict[str, Any]]
    linear: dict[str, Any] | None
    knn: dict[str, Any] | None
    finetune: dict[str, Any] | None
    segment: dict[str, Any] | None
    regress: dict[str, Any] | None
    reconstruction: dict[str, Any] | None

    @property
    def settings_hash(self) -> str:
        """The first 16 hex digits of the SHA-256 of config.yaml."""
        return hashlib.sha256(self.settings_text.encode()).hexdigest()[:16]

    @property
    def fingerprint(self) -> str | None:
        """Of what the run was trained on: of a data set, or of a mixture as a whole."""
        return (self.environment or {}).get("data_fingerprint")

    @property
    def commit(self) -> str | None:
        """The git commit that trained."""
        return (self.environment or {}).get("git")


def open_run(run_dir: Path) -> RunFiles:
    """The files of the run in `run_dir`; ConfigError when it is no run folder, DataError when a file is not JSON."""
    from pipeline.config import load_settings

    config = run_dir / "config.yaml"
    if not config.exists():
        raise ConfigError(
            f"{run_dir} is no run folder (it has no config.yaml); give the run.dir of python -m pipeline.pretrain"
        )
    return RunFiles(
        dir=run_dir,
        settings=load_settings(config, []),
        settings_text=config.read_text(),
        environment=read_json(run_dir / "environment.json"),
        metrics=read_lines(run_dir / "metrics.jsonl"),
        events=read_events(run_dir),
        linear=read_json(run_dir / "evaluation" / "linear.json"),
        knn=read_json(run_dir / "evaluation" / "knn.json"),
        finetune=read_json(run_dir / "evaluation" / "finetune.json"),
        segment=read_json(run_dir / "evaluation" / "segment.json"),
        regress=read_json(run_dir / "evaluation" / "regress.json"),
        reconstruction=read_json(run_dir / "evaluation" / "reconstruction.json"),
    )


def read_json(path: Path) -> Any:
    """What the file holds; None when it is not there."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); delete it and make it again") from error
