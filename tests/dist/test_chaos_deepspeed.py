"""The same kills under DeepSpeed's own save and load: what the commit protocol and the saved state are for."""

import os
import random
import re
import signal
import time
from collections.abc import Callable

import pytest

from pipeline.metrics import read_lines
from tests.dist.conftest import SAVES_EVERY, Run, ranks_of

pytestmark = [pytest.mark.dist, pytest.mark.chaos, pytest.mark.slow]

STEPS = 26
KINDS = ("save", "rank", "launcher")
PROGRAM = """
import os, signal, sys
import torch
write = torch.save
def torn(state, path, *more, **named):
    write(state, path, *more, **named)
    if os.environ["RANK"] == "{rank}" and "global_step{step}/" in str(path) and "optim" in str(path):
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = torn
from tests.dist.deepspeed_own import main
main(sys.argv[1:])
sys.stdout.flush()
os._exit(0)
"""


def _losses(run: Run) -> dict[int, str]:
    path = run.dir / "losses.jsonl"
    return {line["step"]: line["loss"] for line in read_lines(path)} if path.exists() else {}


def _finish(run: Run, rank: int = -1, step: int = -1) -> tuple[int, str]:
    process = run.start(f"train.steps={STEPS}", program=PROGRAM.format(rank=rank, step=step))
    said, _ = process.communicate(timeout=200)
    return process.returncode, said


def _kill(run: Run, kind: str, chance: random.Random) -> None:
    rank, began = chance.randrange(2), max(_losses(run), default=0)
    if kind == "save":
        saves = range((began // SAVES_EVERY + 1) * SAVES_EVERY, STEPS, SAVES_EVERY)
        _finish(run, rank, chance.choice(saves) if saves else STEPS)
        return
    step = chance.randrange(began, STEPS)
    process = run.start(f"train.steps={STEPS}", program=PROGRAM.format(rank=-1, step=-1))
    deadline = time.monotonic() + 200
    while max(_losses(run), default=0) < step or len(ranks_of(process)) < 2:
        if process.poll() is not None:
            break  # it did not come up again
        assert time.monotonic() < deadline
        time.sleep(0.005)
    else:
        time.sleep(chance.random() * 0.2)
        os.kill(ranks_of(process).get(rank, process.pid) if kind == "rank" else process.pid, signal.SIGKILL)
    process.communicate(timeout=200)  # the ranks hold its other end, so none is left


@pytest.mark.timeout(3000)
def test_the_same_kills_under_deepspeeds_own_save_and_load(new_run: Callable[..., Run]) -> None:
    """Prints a table; that it is not all zeros is what makes the tests of `test_chaos` tests."""
    straight, again = new_run("straight"), new_run("again")
    assert _finish(straight)[0] == 0 and _finish(again)[0] == 0
    assert _losses(straight) == _losses(again), "the loop itself repeats, so that what differs is the resume"
    rows = []
    for seed in range(9):
        chance, kind = random.Random(seed), KINDS[seed % len(KINDS)]
        run = new_run(f"run{seed}")
        for _ in range(2):
            _kill(run, kind, chance)
        code, said = _finish(run)
        begun = re.findall(r"begins at step (\d+)", said)
        losses, wanted = _losses(run), _losses(straight)
        differ = sum(losses.get(step) != wanted[step] for step in wanted)
        rows.append((kind, code, differ))
        print(f"seed {seed} kill {kind:8} exit {code} begins at {begun} steps that differ {differ} of {STEPS}")
    assert any(code != 0 for kind, code, _ in rows if kind == "save"), "half a file counted, and nothing noticed"
    assert all(differ > 0 for _, _, differ in rows)
