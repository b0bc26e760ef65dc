"""Figures go to the services asked for, one run of theirs for each run folder; what fails there ends nothing."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.metrics import RunLog, read_lines
from pipeline.settings import LogSettings
from pipeline.trackers import check_trackers, open_trackers

SETTINGS = {"train.steps": 10, "optim.lr": 1e-3}


class _Wandb(ModuleType):
    """Stands for the package: keeps what it is told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.told: list[tuple[str, Any]] = []

    def init(self, **options: Any) -> Any:
        self.told.append(("init", options))
        return SimpleNamespace(
            log=lambda figures, step: self.told.append(("log", (step, figures))),
            finish=lambda: self.told.append(("finish", None)),
        )


def _log(run_dir: Path, resumed_step: int, steps: tuple[int, ...], **settings: Any) -> None:
    trackers = open_trackers(LogSettings(tensorboard=False, **settings), run_dir, resumed_step, SETTINGS)
    log = RunLog(run_dir, 0, resumed_step, trace=False, trackers=trackers)
    for step in steps:
        log.metrics({"step": step, "loss": 1 / step, "mfu": None})
    log.close()


def test_wandb_is_told_each_step_in_one_run_for_each_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = _Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    _log(tmp_path, 0, (1, 2), wandb="sentinel")
    _log(tmp_path, 1, (2,), wandb="sentinel")
    (_, first), *logged, _, (_, second), _, _ = wandb.told
    assert first["project"] == "sentinel" and first["config"] == SETTINGS and first["resume"] == "allow"
    assert logged == [("log", (1, {"loss": 1.0})), ("log", (2, {"loss": 0.5}))], (
        "figures that are not known are left out"
    )
    assert first["id"] == second["id"]
    assert [name for name, _ in wandb.told].count("finish") == 2


@pytest.mark.parametrize("fails", ["init", "log"])
def test_service_that_fails_is_told_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fails: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route\nto host")

    wandb = _Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(wandb, "init", fail if fails == "init" else lambda **_: SimpleNamespace(log=fail, finish=fail))
    _log(tmp_path, 0, (1, 2, 3), wandb="sentinel")
    warning = "warning: Weights & Biases failed (no route to host); the run goes on without it\n"
    assert capsys.readouterr().err == warning
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize("key", ["wandb", "mlflow"])
def test_package_that_is_missing_is_named_before_anything_starts(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    check_trackers(LogSettings())
    with pytest.raises(ConfigError, match=f"log.{key} needs the package {key}; pip install {key}"):
        check_trackers(LogSettings(**{key: "x"}))


def test_real_mlflow_holds_the_figures_in_one_run_for_each_folder(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs the optional package mlflow")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    _log(run_dir, 0, (1, 2), mlflow=uri)
    _log(run_dir, 2, (3,), mlflow=uri)
    client = mlflow.MlflowClient(tracking_uri=uri)
    run = client.get_run((run_dir / "mlflow-run-id").read_text())
    assert run.data.params["optim.lr"] == "0.001" and run.info.status == "FINISHED"
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")] == [
        (1, 1.0),
        (2, 0.5),
        (3, 1 / 3),
    ]


def test_real_wandb_takes_the_figures_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs the optional package wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    _log(tmp_path, 0, (1, 2), wandb="sentinel")
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))
