"""What cannot work is refused with one sentence, the right exit code, and nothing left behind."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.dist.conftest import ROOT, Run

pytestmark = pytest.mark.dist

NewRun = Callable[..., Run]


def _sentence(said: str) -> str:
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in said, said
    return lines[0]


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["data.url=nowhere"], 1, "nowhere holds no finished data set"),
        (["data.split=none"], 1, "the data set has no split 'none'; it has train, test"),
        (["train.global_batch=9"], 2, "global"),
        (["train.micro_batch=3"], 2, "train.micro_batch=3 does not divide a rank's 4 samples"),
        (["model.patch_size=7"], 2, "patch_size"),
        (["model.wdith=7"], 2, "did you mean 'model.width'?"),
        (["engine.device=tpu"], 2, "'engine.device' = 'tpu'"),
        (["run.dir=s3://bucket/run"], 2, "must be a folder"),
    ],
)
def test_wrong_settings_start_nothing(new_run: NewRun, overrides: list[str], code: int, message: str) -> None:
    run = new_run("run")
    said = run.finish(*overrides, code=code)
    assert message in _sentence(said)
    assert not run.dir.exists()


def test_rank_that_is_refused_leaves_word_for_its_batch_script(new_run: NewRun) -> None:
    run = new_run("run", "train.micro_batch=3")
    rank = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    environment = dict(os.environ, SLURM_JOB_ID="7", SLURM_RESTART_COUNT="2", **rank)
    done = subprocess.run(run.command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "train.micro_batch=3 does not divide" in _sentence(done.stderr)
    outcome = json.loads((run.dir / "outcome.json").read_text())
    assert outcome == {"outcome": "fatal", "step": None, "attempt": "7.2"}
    assert not (run.dir / "checkpoints").exists()


def test_run_of_another_model_is_not_touched(new_run: NewRun) -> None:
    run = new_run("run", "train.steps=4")
    run.finish()
    before = run.weights(), run.metrics()
    said = run.finish("model.width=96", code=2)
    assert "holds a run of another kind: model.width (48 there, 96 now)" in _sentence(said)
    assert (run.weights(), run.metrics()) == before


def test_checkpoint_of_another_model_is_refused_by_name(new_run: NewRun) -> None:
    small, large = new_run("small", "train.steps=4"), new_run("large", "train.steps=4", "model.width=96")
    small.finish()
    large.finish()
    shutil.rmtree(large.dir / "checkpoints")
    shutil.copytree(small.dir / "checkpoints", large.dir / "checkpoints")
    said = large.finish("train.steps=6", code=1)
    assert "is of another run: model.width (48 there, 96 now)" in said and "Traceback" not in said


def test_run_whose_checkpoints_are_looked_for_elsewhere_does_not_start_anew(new_run: NewRun, tmp_path: Path) -> None:
    run = new_run("run", "train.steps=4")
    run.finish()
    elsewhere = tmp_path / "elsewhere"
    said = run.finish("train.steps=6", f"checkpoint.url={elsewhere}", code=1)
    assert f"no checkpoint of this run lies in {elsewhere}; copy them there" in said and len(run.trace()) == 4
    shutil.copytree(run.dir / "checkpoints", elsewhere, dirs_exist_ok=True)
    said = run.finish("train.steps=6", f"checkpoint.url={elsewhere}")
    assert "resumed at step 4" in said and f"saved {elsewhere}/step-00000006" in said


def test_damaged_newest_checkpoint_is_passed_over_aloud(new_run: NewRun) -> None:
    damaged = new_run("damaged")
    damaged.finish("train.steps=8")
    file = damaged.dir / "checkpoints" / "step-00000008" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    said = damaged.finish()
    assert f"warning: checkpoint passed over: {file} is damaged" in said and "resumed at step 4" in said
    assert damaged.trace()[8:] != [] and damaged.events()[-1]["event"] == "done"


def test_disk_that_fills_up_on_one_rank_ends_all_at_once(new_run: NewRun) -> None:
    run = new_run("run", "train.steps=400", "checkpoint.every=20")
    process = run.start()
    while len(run.trace(1)) < 2:
        assert process.poll() is None, process.communicate()[0]
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    second = next(pid for pid in children if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
    resource.prlimit(int(second), resource.RLIMIT_FSIZE, (50_000, 50_000))
    said, _ = process.communicate(timeout=120)  # far below run.timeout_s
    assert process.returncode == 1 and "Traceback" not in said, said
    for step in (20, 40):
        assert f"warning: the checkpoint of step {step} could not be written" in said
    assert "the run goes on without, failed save 2 of 3" in said
    assert "error: the checkpoint of step 60 could not be written" in said and "did not take all bytes" in said
    assert run.checkpoints() == []
    assert json.loads((run.dir / "outcome.json").read_text())["outcome"] == "failed"


def test_run_that_diverges_stops_and_keeps_what_was_good(new_run: NewRun) -> None:
    run = new_run("run", "engine.zero_stage=0", "engine.precision=fp32", "train.steps=40")
    run.finish("train.steps=4")
    good = run.weights()
    said = run.finish("optim.lr=1e30", code=1)
    assert "diverged" in said and "Traceback" not in said
    assert run.checkpoints() == ["step-00000004"] and run.weights() == good


def test_second_process_is_kept_out_of_a_running_run(new_run: NewRun) -> None:
    run = new_run("run", "train.steps=400")
    first = run.start()
    try:
        while len(run.trace()) < 2:
            assert first.poll() is None
        said = run.finish(code=1)
        assert "is in use by the process with rank 0" in said and "Traceback" not in said
    finally:
        first.kill()
        first.communicate()


def test_shard_that_is_damaged_ends_the_run_by_name(new_run: NewRun, dataset: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    shard = next((copy / "shards").glob("train-*.tar"))
    content = bytearray(shard.read_bytes())
    for place in range(2000, len(content), 50_000):
        content[place] ^= 1
    shard.write_bytes(bytes(content))
    run = new_run("run", f"data.url={copy}")
    said = run.finish(code=1)
    assert shard.name in said and "Traceback" not in said


def test_help_needs_nothing_and_names_the_exit_codes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.pretrain", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "Exit code" in done.stdout
