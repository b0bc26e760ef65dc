"""A run that is probed while it trains is the same run, and the probe is the same on any number of ranks."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.report.probe_curve import probe_curves
from tests.dist.conftest import Run

pytestmark = pytest.mark.dist

NewRun = Callable[..., Run]
PROBED = ("probe.every=5", "probe.neighbours=3", "probe.batch_size=4", "log.reconstructions=7", "log.tensorboard=true")
BEST = ("checkpoint.every=5", "checkpoint.keep_best=1", "checkpoint.best_by=ridge")
SCORES = ("knn_map_macro", "knn_map_micro", "ridge_map_macro", "ridge_map_micro")


def _probes(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.dir / "probe.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(("engine.name=ddp",), marks=pytest.mark.slow),
        pytest.param(("engine.zero_stage=1",), marks=pytest.mark.slow),
        ("engine.zero_stage=3",),
    ],
    ids=lambda engine: engine[0],
)
def test_probed_run_equals_the_run_that_is_not(new_run: NewRun, engine: tuple[str, ...]) -> None:
    plain, probed = new_run("plain", *engine), new_run("probed", *engine, *PROBED, *BEST)
    plain.finish()
    said = probed.finish()
    assert "probe of step 5: macro mAP kNN" in said and "warning" not in said
    for rank in (0, 1):
        assert plain.trace(rank) == probed.trace(rank)
    assert plain.weights() == probed.weights()
    lines = _probes(probed)
    assert [line["step"] for line in lines] == [5, 10, 14]
    assert all((line["train"], line["test"], line["samples"]) == (25, 2, 8 * line["step"]) for line in lines)
    assert all(0 <= line[name] <= 1 for line in lines for name in SCORES)
    first, second, last = (line["ridge_map_macro"] for line in lines)
    saved = [int(path.name[-2:]) for path in sorted((probed.dir / "checkpoints").glob("step-*"))]
    assert saved[-2:] == [10, 14]
    if first <= second or first > last:  # else it depends on whether the last probe or the last save was done first
        assert saved[:-2] == ([5] if first > second else [])
    assert set(probe_curves(probed.dir)) == {"macro", "micro"}
    pictures = sorted((probed.dir / "reconstructions").iterdir())
    assert [path.name for path in pictures] == ["step-00000007.npz", "step-00000014.npz"]
    stored = [np.load(path) for path in pictures]
    assert (stored[0]["s2.input"] == stored[1]["s2.input"]).all() and (
        stored[0]["s2.hidden"] == stored[1]["s2.hidden"]
    ).all()
    assert (stored[0]["s2.reconstruction"] != stored[1]["s2.reconstruction"]).any()


def test_probe_is_the_same_on_one_rank_and_goes_on_after_a_kill(new_run: NewRun) -> None:
    settings = (*PROBED, "engine.precision=fp32")
    two, one = new_run("two", *settings), new_run("one", *settings, "run.num_processes=1")
    two.kill_at(10)
    two.finish()
    one.finish()
    assert [line["step"] for line in _probes(two)] == [line["step"] for line in _probes(one)] == [5, 10, 14]
    for ours, theirs in zip(_probes(two), _probes(one), strict=True):
        for name in SCORES:
            assert ours[name] == pytest.approx(theirs[name], abs=0.02)


def test_probe_that_cannot_work_is_refused_before_it_starts(new_run: NewRun) -> None:
    run = new_run("run", *PROBED)
    said = run.finish("probe.test_split=nowhere", code=1)
    assert "nowhere" in said and "Traceback" not in said
    said = new_run("few", *PROBED).finish("probe.neighbours=30", "train.steps=5", "optim.warmup_steps=1")
    assert "warning: the probe failed: of at most 1024 samples, 25 of 'train' and 2 of 'test'" in said


@pytest.mark.slow
def test_step_that_was_saved_and_not_evaluated_is_when_the_run_goes_on(new_run: NewRun) -> None:
    settings = ("probe.every=4", "probe.neighbours=3", "log.reconstructions=4", "engine.zero_stage=3")
    straight, killed = new_run("straight", *settings), new_run("killed", *settings)
    straight.finish()
    killed.kill_at(10)
    path = killed.dir / "probe.jsonl"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if '"step": 8,' not in line))
    (killed.dir / "reconstructions" / "step-00000008.npz").unlink()
    assert "resumed at step 8" in killed.finish()
    told = [[[line[name] for name in ("step", *SCORES)] for line in _probes(run)] for run in (straight, killed)]
    assert told[0] == told[1] and [line[0] for line in told[0]] == [4, 8, 12, 14]
    assert (killed.dir / "reconstructions" / "step-00000008.npz").exists()
    assert killed.weights() == straight.weights()


def test_samples_that_cannot_be_read_cost_the_probe_and_not_the_run(
    new_run: NewRun, dataset: str, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(dataset, broken)
    for shard in (broken / "shards").glob("test*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))
    run = new_run("run", *PROBED, f"data.url={broken}", "train.steps=5", "optim.warmup_steps=1")
    said = run.finish()
    assert "warning: the probe failed: rank " in said and "CRC-32C" in said and said.count("the run goes on") >= 1
    assert _probes(run) == [] and json.loads((run.dir / "outcome.json").read_text())["outcome"] == "done"
    assert any(event["event"] == "probe_failed" for event in run.events())
