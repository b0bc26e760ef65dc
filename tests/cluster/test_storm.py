"""Many jobs, many faults, one cluster: every run ends done, with nothing lost, nothing torn, and nobody left over."""

import os
import random
import shlex
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.metrics import read_lines
from tests.cluster import stand_in
from tests.cluster.conftest import NewLab
from tests.cluster.slurmlab import Lab, LabError

pytestmark = [pytest.mark.cluster, pytest.mark.chaos, pytest.mark.timeout(900)]

BETWEEN = 2 * stand_in.EVERY
"""Steps of an attempt before it is hurt."""
LONG_S = 300
PYTHON = """#!/bin/bash
# The product's own script and modules; only what trains is another.
case "$*" in
    *"--print run.dir") for word in "$@"; do case $word in run.dir=*) echo "${{word#run.dir=}}" ;; esac; done ;;
    "-u -m slurm.task "*) exec {python} -u {stand_in} "${{@:4}}" ;;
    *) exec {python} "$@" ;;
esac
"""


@dataclass
class StormRun:
    """A job of the stand-in trainer, and what is done to it."""

    lab: Lab
    dir: Path
    python: Path
    dataset: str
    """Which the preflight looks for, and none reads."""
    nodes: int
    faults: list[str]
    rng: random.Random
    job_id: str = ""
    seen: list[str] = field(default_factory=list)
    """Faults, with how the ledger says that the attempt which they hit ended."""

    def live(self) -> None:
        """From submission to the end, hurt on the way."""
        self.dir.mkdir(parents=True)
        config = self.dir / "config.in"
        config.write_text(f"data: {{url: {self.dataset}}}\ntrain: {{steps: 1}}\nrun: {{dir: {self.dir}}}\n")
        words = [f"-N{self.nodes}", "--exclusive", "--output", str(self.dir / "out"), "slurm/pretrain.sh", str(config)]
        own = {"FUSMAE_PYTHON": str(self.python), "XDG_STATE_HOME": str(self.dir / "state")}
        self.job_id = self.lab.sbatch(*words, f"run.dir={self.dir}", environ=own)
        for number, fault in enumerate(self.faults):
            self.wait(self.is_going, f"fault {number} is due")
            before, restarts = len(self.ends()), self.restarts()
            heal = self.do(fault)
            try:
                self.wait(lambda n=restarts: self.restarts() > n, f"the job is requeued after {fault}")
            finally:
                heal()
            self.wait(lambda n=before: len(self.ends()) > n, f"{fault} is seen in the ledger")
            self.seen.append(f"{fault}: {self.ends()[before - 1]}")
        (self.dir / "ENOUGH").touch()
        self.wait(lambda: self.lab.job(self.job_id).get("JobState") == "COMPLETED", "the run is done")

    def do(self, fault: str) -> Callable[[], object]:
        """Do it; how it is healed."""
        self.wait(lambda: self.lab.nodes_of(self.job_id), "the controller answers")
        node = self.rng.choice(self.lab.nodes_of(self.job_id))
        if fault == "node_off":
            self.lab.node_down(node)
            return lambda: self.lab.node_up(node, wait=False)
        if fault == "net_cut":
            self.lab.net_cut(node)
            return lambda: self.lab.net_heal(node)
        if fault == "warned":
            self.say("scancel", "--signal=USR1", "--batch", self.job_id)
        elif fault == "requeued":
            self.say("scontrol", "requeue", self.job_id)
        else:
            number = signal.SIGKILL if fault == "rank_killed" else signal.SIGSTOP
            self.wait(self.ranks, "there are ranks")
            os.kill(self.rng.choice(self.ranks()), number)
        return lambda: None

    def say(self, *command: str) -> None:
        """To the controller, which may be away for a moment."""
        deadline = time.monotonic() + 30
        while True:
            try:
                self.lab.run(*command)
            except LabError as error:
                if "Unable to contact" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                return

    def restarts(self) -> int:
        """How often SLURM has put the job back into the queue."""
        self.wait(lambda: "Restarts" in self.lab.job(self.job_id), "the controller answers")
        return int(self.lab.job(self.job_id).get("Restarts", -1))

    def ranks(self) -> list[int]:
        """Processes of the ranks of this job."""
        found = []
        for pid in self.lab.processes():
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if (
                str(Path(stand_in.__file__)) in command
                and f"run.dir={self.dir}" in command
                and "srun" not in command[0]
            ):
                found.append(pid)
        return found

    def is_going(self) -> bool:
        """Whether the present attempt has trained for a while."""
        lines, attempts = self._metrics()[-BETWEEN:], self._ledger()
        return len(lines) == BETWEEN and all(line["attempt"] == ".".join(attempts[-1][:2]) for line in lines)

    def ends(self) -> list[str]:
        return [line[7] for line in self._ledger()]

    def wait(self, holds: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + LONG_S
        while not holds():
            state = self.lab.job(self.job_id).get("JobState")
            if state in ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL") or time.monotonic() > deadline:
                out = self.dir / "out"
                said = out.read_text()[-3000:] if out.exists() else ""
                raise AssertionError(f"{self.dir.name}: {what}, not so; job {state}, {self.seen}\n{said}")
            time.sleep(0.1)

    def _metrics(self) -> list[dict[str, Any]]:
        return read_lines(self.dir / "metrics.jsonl")

    def _ledger(self) -> list[list[str]]:
        path = self.dir / "attempts.tsv"
        return [line.split("\t") for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize(
    ("nodes", "jobs", "faults", "seed"),
    [
        pytest.param(6, 3, 6, 40, id="6_nodes_3_jobs_6_faults"),
        pytest.param(16, 8, 50, 2, id="16_nodes_8_jobs_50_faults", marks=pytest.mark.slow),
    ],
)
def test_every_run_ends_done_through_a_storm_of_faults(
    nodes: int, jobs: int, faults: int, seed: int, new_lab: NewLab, best_mode: str, dataset: str, tmp_path: Path
) -> None:
    lab = new_lab(nodes=nodes, mode=best_mode)
    python = tmp_path / "python"
    program = shlex.quote(str(Path(stand_in.__file__)))
    python.write_text(PYTHON.format(python=shlex.quote(sys.executable), stand_in=program))
    python.chmod(0o755)
    rng = random.Random(seed)
    runs = []
    for number in range(jobs):
        size = (2, 1, 2, 1)[number % 4]
        kinds = ["rank_killed", "node_off", "warned", "requeued"]
        kinds += ["rank_stopped"] if size > 1 else []
        kinds += ["net_cut"] if best_mode == "netns" and size > 1 else []
        share = faults // jobs + (number < faults % jobs)
        chosen = [rng.choice(kinds) for _ in range(share)]
        own = random.Random(seed + number)
        runs.append(StormRun(lab, tmp_path / f"run-{number}", python, dataset, size, chosen, own))

    began = time.monotonic()
    ended = threading.Event()

    def restart_controller() -> None:
        """slurmctld is stopped in the middle of it, twice; killed, it would forget requeues that it has not saved."""
        for _ in range(2):
            if ended.wait(20):
                return
            lab.controller_stop()
            lab.controller_start()

    with ThreadPoolExecutor(jobs + 1) as pool:
        restarts = pool.submit(restart_controller)
        living = [pool.submit(run.live) for run in runs]
        problems = [problem for future in living if (problem := future.exception()) is not None]
        ended.set()
        restarts.result()
    assert not problems, "\n\n".join(map(str, problems))
    took = time.monotonic() - began

    seen = Counter(line for run in runs for line in run.seen)
    print(f"{sum(seen.values())} faults on {jobs} jobs in {took:.0f} s: {dict(sorted(seen.items()))}")
    assert sum(seen.values()) == faults and not any(line.endswith(": done") for line in seen)
    for run in runs:
        assert run.ends()[-1] == "done" and run.ends().count("done") == 1
        step, state = stand_in.load(run.dir)
        assert step > BETWEEN * len(run.faults) / 2 and state == stand_in.final_state(run.nodes, step)
        for saved in (run.dir / "checkpoints").iterdir():
            stand_in.read(saved)
        assert run.ranks() == []
    torn = [path for path in tmp_path.rglob("*") if path.name.startswith((".tmp-", ".attempts.", ".outcome."))]
    assert not [path for path in torn + list(tmp_path.rglob("attempts/*.tmp")) if "lab" not in path.parts], torn
    assert took < 600
