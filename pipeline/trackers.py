"""Where logged figures go beside `metrics.jsonl`: TensorBoard, Weights & Biases, MLflow, behind one interface.

The last two are packages and services of others and stay optional. What of theirs fails while a run trains is told once
and the run goes on without: `metrics.jsonl` has all figures.
"""

import hashlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from pipeline.errors import ConfigError
from pipeline.settings import LogSettings

EXPERIMENT: Final = "fusmae"
"""MLflow's experiment, unless MLFLOW_EXPERIMENT_NAME names another."""
_RUN_ID_FILE: Final = "mlflow-run-id"


class Tracker(Protocol):
    """Takes the figures of logged steps, on rank 0."""

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Figures of one step; a replayed step comes again with the same figures."""

    def pictures(self, step: int, path: Path) -> None:
        """Reconstructions, in a file of `pipeline.reconstruction.store_pictures`."""

    def close(self) -> None:
        """Send what has not been sent."""


class TensorBoard:
    """Event files under RUN/tensorboard; those of steps after a resume are purged."""

    def __init__(self, run_dir: Path, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resumed_step + 1)

    def log(self, step: int, figures: dict[str, float]) -> None:
        """A scalar for each figure."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def pictures(self, step: int, path: Path) -> None:
        """An image for each sample and modality: input, visible patches, reconstruction."""
        from pipeline.report.pictures import triptychs

        for name, pixels in triptychs(path):
            self._writer.add_image(f"reconstruction/{name}", pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Write the files."""
        self._writer.close()


class Wandb:
    """One run of Weights & Biases for each run folder, resumed with it; WANDB_MODE=offline sends nothing."""

    def __init__(self, run_dir: Path, project: str, settings: dict[str, Any]) -> None:
        import wandb

        identity = hashlib.sha256(str(run_dir.absolute()).encode()).hexdigest()[:16]
        self._last_step = 0
        self._run: Any = wandb.init(
            project=project, name=run_dir.name, id=identity, resume="allow", dir=str(run_dir), config=settings
        )

    def log(self, step: int, figures: dict[str, float]) -> None:
        """All figures at once; W&B leaves out steps before its last, so that figures of one go to the last."""
        self._last_step = max(self._last_step, step)
        self._run.log(figures, step=self._last_step)

    def pictures(self, step: int, path: Path) -> None:
        """The same images as TensorBoard's."""
        import wandb

        from pipeline.report.pictures import triptychs

        images = {f"reconstruction/{name}": wandb.Image(pixels) for name, pixels in triptychs(path)}
        self.log(step, images)

    def close(self) -> None:
        """Wait until all is sent."""
        self._run.finish()


class MLflow:
    """One run of MLflow for each run folder; its id is kept in RUN/mlflow-run-id."""

    def __init__(self, run_dir: Path, uri: str, settings: dict[str, Any]) -> None:
        from mlflow import MlflowClient

        self._client: Any = MlflowClient(tracking_uri=uri)
        self._sent: Any = None
        id_file = run_dir / _RUN_ID_FILE
        if id_file.exists():
            self._id = id_file.read_text()
            self._client.update_run(self._id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        self._id = self._client.create_run(experiment, run_name=run_dir.name).info.run_id
        id_file.write_text(self._id)
        for key, value in settings.items():
            self._client.log_param(self._id, key, value)

    def log(self, step: int, figures: dict[str, float]) -> None:
        """A metric for each figure, sent by a thread of MLflow's in the order given."""
        from mlflow.entities import Metric

        now_ms = round(time.time() * 1000)
        metrics = [Metric(name, value, now_ms, step) for name, value in figures.items()]
        self._sent = self._client.log_batch(self._id, metrics=metrics, synchronous=False)

    def pictures(self, step: int, path: Path) -> None:
        """The file as it is, as an artifact."""
        self._client.log_artifact(self._id, str(path), "reconstructions")

    def close(self) -> None:
        """Wait until all is sent, and mark the run as ended."""
        if self._sent is not None:
            self._sent.wait()
        self._client.set_terminated(self._id)


class _Forgiving:
    """A tracker whose failure is told once and ends no run."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self._name = name
        self._tracker: Tracker | None = None
        self._tracker = self._tried(make)

    def log(self, step: int, figures: dict[str, float]) -> None:
        """As the tracker does, while it does."""
        if (tracker := self._tracker) is not None:
            self._tried(lambda: tracker.log(step, figures))

    def pictures(self, step: int, path: Path) -> None:
        """As the tracker does, while it does."""
        if (tracker := self._tracker) is not None:
            self._tried(lambda: tracker.pictures(step, path))

    def close(self) -> None:
        """As the tracker does."""
        if (tracker := self._tracker) is not None:
            self._tried(tracker.close)

    def _tried(self, does: Callable[[], Any]) -> Any:
        try:
            return does()
        except Exception as error:  # a service of others: whatever its SDK raises
            self._tracker = None
            reason = " ".join(str(error).split()) or type(error).__name__
            print(f"warning: {self._name} failed ({reason}); the run goes on without it", file=sys.stderr, flush=True)
            return None


def check_trackers(settings: LogSettings) -> None:
    """ConfigError when a package that the settings ask for is not installed."""
    for key, package in (("wandb", "wandb"), ("mlflow", "mlflow")):
        if getattr(settings, key) and importlib.util.find_spec(package) is None:
            raise ConfigError(f"log.{key} needs the package {package}; pip install {package}, or leave log.{key} out")


def open_trackers(
    settings: LogSettings, run_dir: Path, resumed_step: int, run_settings: dict[str, Any]
) -> list[Tracker]:
    """Those that the settings ask for; `run_settings` are told to services, by dotted key."""
    trackers: list[Tracker] = [TensorBoard(run_dir, resumed_step)] if settings.tensorboard else []
    if project := settings.wandb:
        trackers.append(_Forgiving("Weights & Biases", lambda: Wandb(run_dir, project, run_settings)))
    if uri := settings.mlflow:
        trackers.append(_Forgiving("MLflow", lambda: MLflow(run_dir, uri, run_settings)))
    return trackers
