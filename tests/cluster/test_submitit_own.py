"""submitit's own way to survive, under faults that this project's runs come through with their weights unchanged.

The figures are printed and stand in docs/cluster.md; what is asserted is only what holds on any machine.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from tests.cluster import submitit_own
from tests.cluster.conftest import NewLab
from tests.cluster.slurm_runs import EVERY, FAULT_AT, STEPS, ClusterRun
from tests.cluster.slurmlab import Lab
from tests.dist.conftest import CONFIG, ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(900)]

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
PATIENCE_S = 180
"""A run that has made no step for so long after its fault is taken for one that does not come back."""


@dataclass
class OwnRun:
    """A job of submitit's own."""

    lab: Lab
    dir: Path
    config: Path
    job_id: str = ""

    def submit(self) -> None:
        words = [str(self.config), f"run.dir={self.dir}", f"train.steps={STEPS}", f"checkpoint.every={EVERY}"]
        self.job_id = submitit_own.submit(str(self.dir.with_suffix(".jobs")), words).job_id

    def losses(self) -> list[tuple[int, str]]:
        path = self.dir / "losses.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(line["step"], line["loss"]) for line in map(json.loads, lines)]

    def step(self) -> int:
        return self.losses()[-1][0] if self.losses() else 0

    def state(self) -> str:
        return self.lab.job(self.job_id).get("JobState", "")

    def rank_pid(self, rank: int) -> int:
        return ClusterRun(self.lab, self.dir, self.config, job_id=self.job_id).rank_pid(
            rank, module="submitit.core._submit"
        )


@dataclass(frozen=True, kw_only=True)
class Told:
    """What became of a run."""

    state: str
    """Of its job, when it had ended or stood still."""
    to_next_step_s: float
    """From the fault to the first step that was done again; 0: it never went on."""
    steps_lost: int
    steps_differ: int
    """From those of the undisturbed run; those that were never done are among them."""


def warned(run: OwnRun) -> None:
    """As SLURM does before the time limit."""
    run.lab.run("scancel", "--signal=USR2", run.job_id)


def preempted(run: OwnRun) -> None:
    nodes = ",".join(run.lab.nodes_of(run.job_id))
    run.lab.sbatch("-p", "high", "-N2", "-w", nodes, "--output=/dev/null", "--wrap", "sleep 3")


def rank_killed(run: OwnRun) -> None:
    os.kill(run.rank_pid(1), signal.SIGKILL)


def rank_hung(run: OwnRun) -> None:
    os.kill(run.rank_pid(1), signal.SIGSTOP)


def node_off(run: OwnRun) -> None:
    run.lab.node_down(run.lab.nodes_of(run.job_id)[1])


@pytest.fixture
def place(new_lab: NewLab, best_mode: str, dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OwnRun:
    lab = new_lab(nodes=4, mode=best_mode)
    for name, value in lab.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG + f"data: {{url: {dataset}, threads: 1}}\n")
    return OwnRun(lab, tmp_path / "run", config)


def _live(run: OwnRun, fault: Callable[[OwnRun], None], straight: dict[int, str]) -> Told:
    """Hurt the run, and look on until it has ended or stands still."""
    run.lab.wait(lambda: run.step() >= FAULT_AT, "the fault is due", timeout_s=300)
    fault(run)
    began = changed = time.monotonic()
    num_lines, to_next_step_s, lost = 0, 0.0, 0
    while time.monotonic() - changed < PATIENCE_S and run.state() not in ENDED:
        steps = [step for step, _ in run.losses()]
        if len(steps) != num_lines:
            num_lines, changed = len(steps), time.monotonic()
        backward = [before - after + 1 for before, after in pairwise(steps) if after <= before]
        if backward and not to_next_step_s:
            to_next_step_s, lost = time.monotonic() - began, backward[0]
        time.sleep(0.05)
    done = dict(run.losses())
    differ = sum(done.get(step) != loss for step, loss in straight.items())
    return Told(state=run.state(), to_next_step_s=to_next_step_s, steps_lost=lost, steps_differ=differ)


@pytest.fixture(scope="module")
def straight() -> dict[int, str]:
    """Losses of the undisturbed run, by step; the first test fills it."""
    return {}


def test_undisturbed_it_ends(place: OwnRun, straight: dict[int, str]) -> None:
    place.submit()
    place.lab.wait(lambda: place.state() in ENDED, "it ends", timeout_s=600)
    straight.update(place.losses())
    assert place.state() == "COMPLETED" and sorted(straight) == list(range(1, STEPS + 1))


@pytest.mark.parametrize("fault", [warned, preempted, node_off, rank_killed, rank_hung])
def test_what_submitits_own_way_loses(fault: Callable[[OwnRun], None], place: OwnRun, straight: dict[int, str]) -> None:
    if not straight:
        pytest.skip("is compared with the undisturbed run: run the whole file")
    place.submit()
    told = _live(place, fault, straight)
    came_back = f"{told.to_next_step_s:.0f} s | {told.steps_lost}" if told.to_next_step_s else "never | all"
    print(f"| {fault.__name__} | {told.state} | {came_back} | {told.steps_differ} of {STEPS} |")
    assert told.steps_differ > 0  # announced or not, something is lost
