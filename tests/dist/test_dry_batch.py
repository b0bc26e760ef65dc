"""A micro-batch that does not fit is found out before the first step, on all ranks, with one that does; later it is told."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.report.events import read_events
from pipeline.report.faults import faults
from tests.dist.conftest import Run, said_by_ranks

pytestmark = pytest.mark.dist

NewRun = Callable[..., Run]
FITS_ONE = """
import os, torch
from pipeline import dry_batch, pretrain
from pipeline.command import run_rank_command
call = dry_batch.DryBatch.__call__
def attempt(self, micro_batch):
    if micro_batch > 1 and os.environ["RANK"] == "1":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
    call(self, micro_batch)
dry_batch.DryBatch.__call__ = attempt
run_rank_command(pretrain.main)
"""
OUT_AT_STEP = """
import os, torch
from pipeline import engine, pretrain
from pipeline.command import run_rank_command
step, steps = engine.DdpEngine.step, 0
def short(self, lr):
    global steps
    steps += 1
    if os.environ["RANK"] == "1" and steps == 6:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
    step(self, lr)
engine.DdpEngine.step = short
run_rank_command(pretrain.main)
"""


def _ranks(*arguments: str) -> dict[int, Any]:
    """What each of two ranks of `tests.dist.dry_batches` says."""
    return {line["rank"]: line["said"] for line in said_by_ranks("tests.dist.dry_batches", *arguments)}


def test_dry_batch_leaves_no_trace() -> None:
    said = _ranks("leaves-nothing", "ddp", "zero1", "zero3")[0]
    same = {"state": True, "weights": True, "any": True}
    assert said == {"ddp": same | {"accumulated": False}, "zero1": same, "zero3": same}


def test_all_ranks_agree_on_the_largest_micro_batch_that_fits() -> None:
    cases = {
        "12,24,99,3": ("rank 1 has too little memory", "write train.micro_batch=3,"),
        "12,24,6,8": ("rank 0 (and 1 more) has too little memory", "write train.micro_batch=6,"),
        "12,24,0,12": ("rank 0 has too little memory", "not one sample fits"),
        "12,24,12,12": ("", ""),
    }
    said = _ranks("search", *cases)
    assert said[0] == said[1]  # as many tries, too: no rank waits for another
    for (named, advice), case in zip(cases.values(), said[0], strict=True):
        assert case["tried"][0] == 12 and len(case["tried"]) <= 4
        assert bool(case["error"]) == bool(named) and named in case["error"] and advice in case["error"]
        if named:
            assert "for a micro-batch of 12 samples" in case["error"] and " GiB were free for it" in case["error"]


def test_run_whose_micro_batch_does_not_fit_ends_before_the_first_step_with_one_that_does(
    new_run: NewRun
) -> None:
    run = new_run("run", "engine.name=ddp", "guard.dry_batch=always", "train.steps=2", "optim.warmup_steps=1")
    said = run.finish(program=FITS_ONE, code=2)
    assert "rank 1 has too little memory for a micro-batch of 2 samples" in said
    assert "write train.micro_batch=1, the largest that fits" in said and "Traceback" not in said
    assert json.loads((run.dir / "outcome.json").read_text())["outcome"] == "fatal"
    assert run.trace() == []
    run.command.append("train.micro_batch=1")
    run.finish(program=FITS_ONE)
    assert len(run.trace()) == 2


def test_out_of_memory_at_a_later_step_is_an_event_with_advice(new_run: NewRun) -> None:
    run = new_run("run", "engine.name=ddp")
    said = run.finish(program=OUT_AT_STEP, code=1)
    assert "rank 1 ran out of memory at step 6 in a micro-batch of 2 samples" in said
    assert "write train.micro_batch=1" in said and "Traceback" not in said
    assert json.loads((run.dir / "outcome.json").read_text())["outcome"] == "failed"
    (event,) = [event for event in read_events(run.dir) if event["event"] == "out_of_memory"]
    assert (event["step"], event["rank"], event["micro_batch"]) == (6, 1, 2) and event["total_gib"] > 0
    (fault,) = faults(read_events(run.dir))
    assert (fault.kind, fault.step, fault.ended) == ("out_of_memory", 6, "not resumed")
