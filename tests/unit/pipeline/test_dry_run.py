"""What a dry run says follows from the settings; what cannot work is refused before anything is made."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import checkpoint_plan
from pipeline.errors import ConfigError, DataError
from pipeline.memory_plan import GPU_GIB, EngineKind, find_gpu, kinds, model_states
from pipeline.pretrain import main
from pipeline.progress import peak_flops
from pipeline.settings import CheckpointSettings, EngineSettings
from tests.unit.pipeline.small_shards import make

CONFIG = """
train: {steps: 100, global_batch: 8, micro_batch: 4}
optim: {lr: 1e-3, warmup_steps: 3}
engine: {device: cpu}
checkpoint: {every: 10}
model: {image_size: 120, patch_size: 12, width: 48, depth: 2, heads: 3, decoder_width: 32, decoder_depth: 1,
        decoder_heads: 2}
"""

Plan = Callable[..., dict[str, Any]]


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """A dry run of two ranks."""
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    url = make(tmp_path / "set", pixels=120).url
    return [str(config), f"data.url={url}", f"run.dir={tmp_path / 'run'}", "--dry-run", "--ranks", "2"]


@pytest.fixture
def plan(command: list[str], capsys: pytest.CaptureFixture[str]) -> Plan:
    def make(*more: str) -> dict[str, Any]:
        assert main([*command, "--json", *more]) == 0
        return json.loads(capsys.readouterr().out)

    return make


def test_time_and_data_follow_from_operations_and_samples(plan: Plan, tmp_path: Path) -> None:
    said = plan("--gpu", "A100", "--mfu", "0.5")
    (data,) = said["data"]
    assert data["samples"] == 20 and data["steps_per_epoch"] == 20 / 8 and data["epochs"] == 100 * 8 / 20
    step_s = said["model"]["flops_per_sample"] * 8 / (0.5 * 312e12 * 2)
    assert said["time"]["step_s"] == pytest.approx(step_s)
    assert said["time"]["gpu_hours"] == pytest.approx(2 * 100 * step_s / 3600)
    assert said["time"]["read_bytes_per_s"] == pytest.approx(data["epoch_bytes"] / 20 * 8 / step_s, rel=0.001)
    assert not (tmp_path / "run").exists()


def test_activations_grow_with_the_micro_batch_and_shrink_when_recomputed(plan: Plan) -> None:
    four, two = plan()["memory"], plan("train.micro_batch=2")["memory"]
    assert (four["accumulation"], two["accumulation"]) == (1, 2)
    assert 1.8 < four["activations"] / two["activations"] <= 2
    assert plan("model.checkpoint_activations=true")["memory"]["activations"] < 0.85 * four["activations"]


def test_each_engine_of_the_precision_has_a_row_and_the_runs_own_is_marked(plan: Plan) -> None:
    rows = plan("--gpu", "L4", "engine.zero_stage=2")["memory"]["rows"]
    assert [row["engine"] for row in rows] == ["DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3"]
    assert [row["engine"] for row in rows if row["is_own"]] == ["ZeRO-2"]
    assert all(row["fits"] and row["largest_micro_batch"] == 4 for row in rows)
    fp32 = plan("engine.precision=fp32", "engine.zero_stage=0")["memory"]["rows"]
    assert [row["engine"] for row in fp32] == ["DDP", "ZeRO-0", "ZeRO-1", "ZeRO-2", "ZeRO-3"]


def test_number_of_patches_that_varies_is_told_instead_of_a_figure(plan: Plan) -> None:
    memory = plan("model.modality_dropout=0.2")["memory"]
    assert memory["activations"] is None and "modality_dropout" in memory["unknown"]
    assert all(row["needed"] is None and row["states"]["weights"] > 0 for row in memory["rows"])


def test_text_says_what_json_says(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--gpu", "H100"]) == 0
    said = capsys.readouterr().out
    assert "20 samples in" in said and "100 steps" in said and "* ZeRO-1" in said and "2 x H100" in said
    assert main(command) == 0
    assert "not told without --gpu NAME" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--ranks", "3"], "cannot be shared equally by 3 ranks"),
        (["--ranks", "0"], "--ranks 0 must be at least 1"),
        (["--gpu", "H1000"], "--gpu H1000 is not known; write one of H200"),
        (["--mfu", "30"], "--mfu 30 is a share"),
        (["--write-gbps", "0"], "--write-gbps 0 must be above 0"),
        (["data.split=nowhere"], "nowhere"),
        (["model.modalities=[{name: s1, bands: [VV, VH]}, {name: s2, bands: [B02, B10]}]"], "B10"),
        (["--gpu", "L4", "model.width=8192", "model.heads=64"], "model states of ZeRO-1 take .* L4 has 22.0 GiB"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_work_is_refused(command: list[str], tmp_path: Path, more: list[str], reason: str) -> None:
    with pytest.raises((ConfigError, DataError), match=reason):
        main([*command, *more])
    assert not (tmp_path / "run").exists()


def test_checkpoints_larger_than_the_disk_are_refused(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1_000_000})())
    with pytest.raises(ConfigError, match=r"3 of .* one being written.* 0.0 GB free; free space"):
        main([*command])
    assert not (tmp_path / "run").exists()


def test_checkpoints_in_a_bucket_need_room_for_one(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = ["checkpoint.url=s3://bucket/run", f"checkpoint.staging={tmp_path / 'staging'}"]
    assert main([*command, *bucket]) == 0
    said = capsys.readouterr().out
    assert "at s3://bucket/run" in said and f"free at {tmp_path / 'staging'}" in said
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(ConfigError, match=r"written to checkpoint.staging=.* before it is uploaded, and 0.0 GB"):
        main([*command, *bucket])


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 6), st.integers(0, 20))
def test_kept_checkpoints_are_those_that_retention_keeps(saves: int, keep: int, every: int, keep_every: int) -> None:
    wanted = CheckpointSettings(every=every, keep=keep, keep_every=keep_every)
    kept: list[int] = []
    for step in range(every, saves * every + 1, every):
        newest = [*kept, step][-keep:]
        kept = [old for old in [*kept, step] if old in newest or (keep_every and old % keep_every == 0)]
    assert checkpoint_plan._num_kept(saves, wanted) == len(kept)


def test_every_gpu_whose_memory_is_known_has_a_peak() -> None:
    assert all(peak_flops(name) for name in GPU_GIB)
    assert find_gpu("h100").name == "H100"


@pytest.mark.parametrize("world_size", [2, 8, 64])
def test_more_is_sharded_at_each_stage(world_size: int) -> None:
    ddp, *stages = (model_states(kind, 10**9, world_size, 2) for kind in kinds(EngineSettings()))
    totals = [states.held - states.buffers for states in (ddp, *stages[:2])]  # all of stage 3 may be gathered
    assert totals == sorted(totals, reverse=True)
    assert EngineKind(name="ddp", zero_stage=0, precision="bf16").title == "DDP"
