"""`pipeline.pretrain --dry-run` says what real engines hold, what a real save writes, and starts nothing."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.memory_plan import EngineKind, model_states
from tests.dist.conftest import ROOT, Run, said_by_ranks

pytestmark = pytest.mark.dist

NewRun = Callable[..., Run]
WIDE = ("model.width=256", "model.heads=4", "train.steps=2", "optim.warmup_steps=1")
"""So many weights that names and headers do not count."""
TOLERANCE = {0: 0.02, 1: 0.02, 2: 0.02, 3: 0.1}
"""By stage. What stage 3 has gathered depends on the moment."""
COPY_BYTES = 4.1
"""A parameter's gradient, which may or may not be there twice at the worst moment: that depends on when sending ends."""


def _plan(run: Run, *options: str) -> dict[str, Any]:
    done = subprocess.run([*run.command, "--dry-run", "--json", *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _held(kind: EngineKind, accumulation: int) -> dict[str, int]:
    """What `tests.dist.held_by_engine` says of two ranks."""
    arguments = (kind.name, str(kind.zero_stage), kind.precision, str(accumulation))
    (held,) = said_by_ranks("tests.dist.held_by_engine", *arguments)
    return held


@pytest.mark.parametrize(
    ("name", "stage", "precision", "accumulation"),
    [
        ("ddp", 0, "bf16", 1),
        ("ddp", 0, "bf16", 2),
        ("deepspeed", 1, "bf16", 1),
        ("deepspeed", 1, "bf16", 2),
        ("deepspeed", 2, "bf16", 1),
        ("deepspeed", 2, "bf16", 2),
        ("deepspeed", 3, "bf16", 1),
        ("deepspeed", 3, "bf16", 2),
        ("ddp", 0, "fp32", 1),
        ("deepspeed", 0, "fp32", 1),
        ("deepspeed", 2, "fp32", 1),
    ],
)
def test_model_states_are_what_an_engine_holds(name: str, stage: int, precision: str, accumulation: int) -> None:
    kind = EngineKind(name=name, zero_stage=stage, precision=precision)
    held = _held(kind, accumulation)
    states = model_states(kind, held["parameters"], 2, accumulation)
    bucket = states.buffers if name == "deepspeed" else 0
    print(
        f"{kind.title} {kind.precision} x{accumulation}, bytes a parameter: "
        f"{(held['most'] - bucket) / held['parameters']:.2f} held, {(states.most - bucket) / held['parameters']:.2f} said"
    )
    # DDP's reducer keeps one more copy of the gradients in the compute format when a rank is late to send them.
    late: float = states.weights if name == "ddp" else 0
    if stage == 2 and accumulation > 1:  # the same of stage 2: the first micro-batch's fp32 copy is still being sent
        late = COPY_BYTES * held["parameters"]
    assert held["most"] - bucket <= (states.most - bucket) * (1 + TOLERANCE[stage]) + late
    copy = COPY_BYTES * held["parameters"]
    assert states.most - bucket <= (held["most"] - bucket) * (1 + TOLERANCE[stage]) + copy
    assert states.moments == pytest.approx(held["moments"], rel=0.001)
    if (stage, name) != (0, "deepspeed"):  # without masters: its optimiser changes the weights themselves
        assert states.masters == pytest.approx(held["masters"], rel=0.001)


@pytest.mark.parametrize(
    "engine",
    [
        ("engine.name=ddp", "engine.precision=bf16"),
        pytest.param(("engine.zero_stage=1", "engine.precision=bf16"), marks=pytest.mark.slow),
        pytest.param(("engine.zero_stage=2", "engine.precision=bf16"), marks=pytest.mark.slow),
        ("engine.zero_stage=3", "engine.precision=bf16"),
        ("engine.zero_stage=1", "engine.precision=fp32"),
    ],
    ids=" ".join,
)
def test_checkpoint_has_the_size_that_was_said(new_run: NewRun, engine: tuple[str, ...]) -> None:
    run = new_run("run", *WIDE, *engine)
    plan = _plan(run)
    assert plan["world_size"] == 2 and not run.dir.exists()
    run.finish()
    (saved,) = (run.dir / "checkpoints").iterdir()
    written = sum(file.stat().st_size for file in saved.rglob("*") if file.is_file())
    assert plan["checkpoints"]["each_bytes"] == pytest.approx(written, rel=0.02)
    about = json.loads((run.dir / "environment.json").read_text())
    assert plan["model"]["parameters"] == about["parameters"]
    assert plan["model"]["flops_per_sample"] == about["train_flops_per_sample"]
    assert _plan(run, "--ranks", "2")["checkpoints"]["present_bytes"] == written


def test_number_of_checkpoints_is_what_stays(new_run: NewRun) -> None:
    run = new_run("run", "checkpoint.every=2", "checkpoint.keep_every=4", "train.steps=13")
    plan = _plan(run)["checkpoints"]
    run.finish()
    saved = [event["step"] for event in run.events() if event["event"] == "checkpoint"]
    assert (plan["saves"], plan["kept"]) == (len(saved), len(run.checkpoints())) == (7, 4)


def test_epoch_is_as_long_as_the_files_on_disk(new_run: NewRun, dataset: str) -> None:
    (part,) = _plan(new_run("run"))["data"]
    shards = list((Path(dataset) / "shards").glob("train-*.tar"))
    assert part["epoch_bytes"] == sum(shard.stat().st_size for shard in shards)
    assert (part["shards"], part["samples"]) == (len(shards), 25)
