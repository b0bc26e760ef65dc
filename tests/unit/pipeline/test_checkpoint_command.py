"""python -m pipeline.checkpoint on a run folder with four small checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import checkpoint
from pipeline.checkpoint.command import main
from pipeline.errors import CheckpointError, ConfigError, StorageError
from sharding.lock import hold
from tests.unit.pipeline.one_tensor import SmallEngine, save

ABOUT = {"engine": "ddp", "zero_stage": 1, "precision": "fp32", "model": {"width": 8}, "data_fingerprint": "f" * 8}


@pytest.fixture
def run(tmp_path: Path, group: Any) -> Path:
    engine = SmallEngine()
    for step in (2, 4, 6, 8):
        engine.step(1.0)
        state = {"step": step, "stream": {"samples_seen": 10 * step}}
        save(tmp_path / "run" / "checkpoints", step, engine, state, ABOUT, group)
    return tmp_path / "run"


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command, which must end well; what it printed."""

    def run_it(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    return run_it


def _steps(run: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoint.committed(run / "checkpoints")]


def _damage(run: Path, step: int) -> Path:
    file = run / "checkpoints" / f"step-{step:08d}" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    return file


def test_list_shows_each_oldest_first(run: Path, said: Callable[..., str]) -> None:
    said("pin", run / "checkpoints" / "step-00000004")
    lines = said("list", run).splitlines()
    assert [line.split()[0] for line in lines] == ["step", "2", "4", "6", "8"]
    assert [line.endswith("ddp fp32  pinned") for line in lines] == [False, False, True, False, False]
    rows = json.loads(said("list", run, "--json"))
    files = [p for p in (run / "checkpoints" / "step-00000008").rglob("*") if p.is_file() and p.name != "manifest.json"]
    assert rows[-1]["bytes"] == sum(p.stat().st_size for p in files) and rows[-1]["world_size"] == 1


def test_verify_reads_all_and_names_the_damaged_file(
    run: Path, said: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert said("verify", run).count(": whole\n") == 4
    file = _damage(run, 6)
    with pytest.raises(CheckpointError, match="1 damaged; a run resumes from the newest that is whole"):
        main(["verify", str(run)])
    out = capsys.readouterr().out
    assert out.count(": whole\n") == 3 and f"{file} is damaged: its CRC-32C does not match" in out
    assert "whole" in said("verify", run / "checkpoints" / "step-00000008")


def test_show_tells_place_and_files_of_the_newest(run: Path, said: Callable[..., str]) -> None:
    about = json.loads(said("show", run, "--json"))
    assert about["step"] == 8 and about["state"]["stream"] == {"samples_seen": 80}
    assert about["model"] == {"width": 8} and about["data_fingerprint"] == "f" * 8
    assert set(about["files"]) == {"engine/value.pt", "model.safetensors", "rank00000.pt", "state.json"}
    assert "samples_seen: 60" in said("show", run / "checkpoints" / "step-00000006")


def test_prune_keeps_newest_milestones_and_pinned(run: Path, said: Callable[..., str]) -> None:
    leftover = run / "checkpoints" / ".tmp-00000009"
    leftover.mkdir()
    said("pin", run / "checkpoints" / "step-00000002")
    told = said("prune", run, "--keep", 1, "--keep-every", 4, "--dry-run")
    assert _steps(run) == [8, 6, 4, 2] and leftover.exists()
    assert "would delete" in told and "step-00000006" in told and str(leftover) in told and "3 of 4 stay" in told
    assert "3 of 4 stay" in said("prune", run, "--keep", 1, "--keep-every", 4)
    assert _steps(run) == [8, 4, 2] and not leftover.exists()
    said("unpin", run / "checkpoints" / "step-00000002")
    said("prune", run, "--keep", 1)
    assert _steps(run) == [8]


def _told(run: Path, **kept: object) -> None:
    settings = {"data": {"url": "/nowhere"}, "run": {"dir": str(run)}, "checkpoint": {"every": 2, **kept}}
    settings |= {"train": {"steps": 8, "global_batch": 1}, "optim": {"warmup_steps": 0}, "log": {"every": 1}}
    (run / "config.yaml").write_text(json.dumps(settings))


def test_prune_keeps_what_the_run_was_told_to_keep(run: Path, said: Callable[..., str]) -> None:
    _told(run, keep=2, keep_best=1)
    losses = {1: 9.0, 2: 0.2, 3: 0.1, 4: 0.3, 5: 0.4, 6: 0.4, 8: 0.5}
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": s, "loss": x}) + "\n" for s, x in losses.items()))
    marks = [line.split()[0] for line in said("list", run).splitlines() if line.endswith("  best")]
    assert marks == ["4"]  # the mean of steps 3 and 4; of steps 1 and 2 it is larger, though one of them is small
    assert [row["best"] for row in json.loads(said("list", run, "--json"))] == [False, True, False, False]
    assert "1 of 4" not in said("prune", run, "--dry-run") and _steps(run) == [8, 6, 4, 2]
    said("prune", run)
    assert _steps(run) == [8, 6, 4]
    said("prune", run, "--keep-best", 0)
    assert _steps(run) == [8, 6]


def test_prune_never_leaves_only_damaged_ones(run: Path, said: Callable[..., str]) -> None:
    _damage(run, 8)
    with pytest.raises(CheckpointError, match=r"none of the 1 checkpoints .* would stay is whole .*nothing is deleted"):
        main(["prune", str(run), "--keep", "1"])
    assert _steps(run) == [8, 6, 4, 2]
    said("prune", run, "--keep", 2)
    assert _steps(run) == [8, 6]


def test_prune_keeps_away_from_a_run_that_trains(run: Path) -> None:
    lock = hold(run / "lock", "the process with rank 0 on node7")
    with pytest.raises(StorageError, match=r"is in use by the process with rank 0 on node7.*prune when it has ended"):
        main(["prune", str(run), "--keep", "1"])
    assert lock is not None and _steps(run) == [8, 6, 4, 2]
    lock.close()
    assert main(["prune", str(run), "--keep", "1"]) == 0


def test_convert_to_a_file_of_torch(run: Path, said: Callable[..., str], tmp_path: Path) -> None:
    out = tmp_path / "weights.pt"
    said("convert", run, "--to", "torch", "--out", out)
    weights = torch.load(out, weights_only=True)["model"]
    assert torch.equal(weights["value"], torch.arange(1000, dtype=torch.float32) + 4)
    with pytest.raises(ConfigError, match="exists; name another place"):
        main(["convert", str(run), "--to", "torch", "--out", str(out)])
    with pytest.raises(ConfigError, match=r"engine.name=ddp, which loads on any number of ranks"):
        main(["convert", str(run), "--to", "universal", "--out", str(tmp_path / "other")])
    _damage(run, 8)
    with pytest.raises(CheckpointError, match="is damaged"):
        main(["convert", str(run), "--to", "torch", "--out", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["list", "{}/nowhere"], CheckpointError, "there is no folder .*nowhere; give the run.dir"),
        (["list", "{}/fresh"], CheckpointError, "holds no checkpoint; give the run.dir of a run that has saved"),
        (["show", "{}"], CheckpointError, "is neither a run folder nor a checkpoint"),
        (["prune", "{}/run", "--keep", "0"], ConfigError, "--keep must be at least 1"),
    ],
)
def test_what_cannot_work_is_said(
    run: Path, tmp_path: Path, arguments: list[str], error: type[Exception], message: str
) -> None:
    (tmp_path / "fresh" / "checkpoints").mkdir(parents=True)
    with pytest.raises(error, match=message):
        main([argument.format(tmp_path) for argument in arguments])
