"""A killed run goes on as if nothing had happened, bit for bit."""

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import pytest

from tests.dist.conftest import Run

pytestmark = [pytest.mark.dist, pytest.mark.chaos]

NewRun = Callable[..., Run]
SAVED, KILLED, STEPS = 8, 10, 14


def _edit_state(checkpoint: Path, change: Callable[[dict], None]) -> None:
    """Change a checkpoint's state.json and its checksum, so that only the state is wrong."""
    state = json.loads((checkpoint / "state.json").read_text())
    change(state)
    content = json.dumps(state).encode()
    (checkpoint / "state.json").write_bytes(content)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"]["state.json"] = [len(content), google_crc32c.value(content)]
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("engine", [pytest.param("zero1-bf16", marks=pytest.mark.slow), "zero2-bf16", "zero3-bf16", "ddp-bf16", "zero1-fp32"])
def test_killed_run_equals_uninterrupted_run(new_run: NewRun, undisturbed: NewRun, engine: str) -> None:
    name, precision = engine.split("-")
    settings = ["engine.name=ddp"] if name == "ddp" else [f"engine.zero_stage={name[-1]}"]
    settings.append(f"engine.precision={precision}")
    straight, killed = undisturbed(*settings), new_run("killed", *settings)
    killed.kill_at(KILLED)
    before = [killed.trace(rank) for rank in (0, 1)]
    assert KILLED <= len(before[0]) < SAVED + 4, "the kill came after the next save; the test shows nothing"
    said = killed.finish()
    assert f"resumed at step {SAVED}" in said
    for rank in (0, 1):
        assert [line["step"] for line in straight.trace(rank)] == list(range(1, STEPS + 1))
        assert killed.trace(rank) == straight.trace(rank)
        assert before[rank] == straight.trace(rank)[: len(before[rank])]
    names = ("step", "samples", "loss", "loss_s1", "loss_s2", "lr", "grad_norm")
    assert [[m[n] for n in names] for m in killed.metrics()] == [[m[n] for n in names] for m in straight.metrics()]
    assert killed.weights() == straight.weights()


def test_without_the_saved_state_the_resumed_run_differs(new_run: NewRun, undisturbed: NewRun) -> None:
    straight, killed = undisturbed(), new_run("killed")
    killed.kill_at(KILLED)
    forgetful = new_run("forgetful")
    shutil.copytree(killed.dir, forgetful.dir)
    checkpoint = forgetful.dir / "checkpoints" / f"step-{SAVED:08d}"
    _edit_state(checkpoint, lambda state: state["stream"].update(samples_seen=0))
    config = forgetful.dir / "config.yaml"
    config.write_text(config.read_text().replace(str(killed.dir), str(forgetful.dir)))
    forgetful.finish()
    assert forgetful.trace()[:SAVED] == straight.trace()[:SAVED]
    after = zip(forgetful.trace()[SAVED:], straight.trace()[SAVED:], strict=True)
    assert all(a["keys"] != b["keys"] and a["masks"] != b["masks"] and a["loss"] != b["loss"] for a, b in after)


def test_each_sample_is_seen_once_an_epoch_by_all_ranks_together(new_run: NewRun) -> None:
    run = new_run("run")
    run.finish()
    keys = [key for step in zip(run.trace(0), run.trace(1), strict=True) for rank in step for key in rank["keys"]]
    counts = {key: keys.count(key) for key in keys}
    assert len(counts) == 25 and sum(counts.values()) == STEPS * 8
    assert set(counts.values()) == {4, 5}  # 112 samples are 4 epochs of 25 and 12 more


def test_stop_signal_saves_and_the_same_command_goes_on(new_run: NewRun, undisturbed: NewRun) -> None:
    straight, stopped = undisturbed(), new_run("stopped")
    stopped.kill_at(5, signal.SIGUSR2)
    outcome = json.loads((stopped.dir / "outcome.json").read_text())
    assert outcome["outcome"] == "saved" and 5 <= outcome["step"] < STEPS
    assert f"step-{outcome['step']:08d}" in stopped.checkpoints()
    said = stopped.finish()
    assert f"resumed at step {outcome['step']}" in said
    assert json.loads((stopped.dir / "outcome.json").read_text())["outcome"] == "done"
    assert stopped.trace() == straight.trace() and stopped.weights() == straight.weights()


def test_file_stop_saves_and_ends_for_good_until_the_command_comes_again(new_run: NewRun, undisturbed: NewRun) -> None:
    straight, stopped = undisturbed(), new_run("stopped")
    stopped.dir.mkdir()
    (stopped.dir / "STOP").touch()
    said = stopped.finish()
    outcome = json.loads((stopped.dir / "outcome.json").read_text())
    assert outcome["outcome"] == "stopped" and f"stopped by the file STOP, saved at step {outcome['step']}" in said
    assert 1 <= outcome["step"] < STEPS and not (stopped.dir / "STOP").exists()
    stopped.finish()
    assert stopped.trace() == straight.trace() and stopped.weights() == straight.weights()


def test_file_save_saves_once_and_changes_nothing(new_run: NewRun, undisturbed: NewRun) -> None:
    straight, saved = undisturbed(), new_run("saved")
    saved.dir.mkdir()
    (saved.dir / "SAVE").touch()
    saved.finish("checkpoint.every=1000", "checkpoint.keep=5")
    steps = [event["step"] for event in saved.events() if event["event"] == "checkpoint"]
    assert len(steps) == 2 and steps[0] < STEPS == steps[1] and not (saved.dir / "SAVE").exists()
    assert saved.trace() == straight.trace() and saved.weights() == straight.weights()


def test_disk_that_is_full_for_a_while_costs_one_checkpoint(new_run: NewRun, undisturbed: NewRun) -> None:
    straight, short = undisturbed(), new_run("short")
    short.dir.mkdir()
    (short.dir / "STOP").touch()
    short.finish()
    begun = short.checkpoints()
    # A file of the name of the folder that is to be written stands for a disk that refuses.
    obstacle = short.dir / "checkpoints" / ".tmp-00000004"
    obstacle.write_text("in the way")
    process = short.start("checkpoint.every=4", "checkpoint.keep=9")
    while not any(event["event"] == "save_failed" for event in short.events()):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    obstacle.unlink()
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert "warning: the checkpoint of step 4 could not be written" in said and "failed save 1 of 3" in said
    failed = [event["step"] for event in short.events() if event["event"] == "save_failed"]
    assert failed in ([4], [4, 8])  # the second where the test was slow
    assert short.checkpoints() == begun + [f"step-{step:08d}" for step in (4, 8, 12, 14) if step not in failed]
    assert short.trace() == straight.trace() and short.weights() == straight.weights()


def test_interrupt_saves_and_exits_with_one_sentence(new_run: NewRun) -> None:
    run = new_run("run")
    run.kill_at(5, signal.SIGINT)
    assert not any(name.startswith(".tmp") for name in run.checkpoints())
    assert run.events()[-1]["event"] == "stop" and run.events()[-1]["outcome"] == "interrupted"


def test_finished_run_does_nothing_when_started_again(new_run: NewRun) -> None:
    run = new_run("run", "train.steps=4")
    run.finish()
    before = run.trace(), run.weights(), run.checkpoints()
    said = run.finish()
    assert "done at step 4 of 4" in said
    assert (run.trace(), run.weights(), run.checkpoints()) == before


@pytest.mark.parametrize("stage", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_other_number_of_ranks_goes_on_with_the_same_global_batches(new_run: NewRun, undisturbed: NewRun, stage: int) -> None:
    settings = [f"engine.zero_stage={stage}", "engine.precision=fp32"]
    straight, resized = undisturbed(*settings), new_run("resized", *settings)
    resized.finish("train.steps=8", "optim.warmup_steps=3")
    said = resized.finish("run.num_processes=1")
    assert "resumed at step 8" in said and "saved by 2 ranks" in said
    assert not any(name.startswith(".universal") for name in resized.checkpoints())
    both = [a["keys"] + b["keys"] for a, b in zip(straight.trace(0), straight.trace(1), strict=True)]
    assert [line["keys"] for line in resized.trace(0)][8:] == both[8:]
