"""Training runs on a lab: submitted as a user does, looked at from outside, hurt at a chosen step."""

import json
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.cluster.slurmlab import Lab
from tests.dist.conftest import ROOT

SCRIPT = "slurm/pretrain.sh"
STEPS, EVERY = 60, 5
FAULT_AT = 12
"""A step between two saves, early enough for much to come after the fault."""
LONG_S = 240
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@dataclass
class ClusterRun:
    """One run of slurm/pretrain.sh."""

    lab: Lab
    dir: Path
    config: Path
    overrides: tuple[str, ...] = ()
    job_id: str = ""
    seen: list[tuple[float, int]] = field(default_factory=list)
    """When rank 0's trace was first seen to have come to a step, by `time.time`."""
    is_closed: bool = False
    """Nobody looks on any more."""

    def submit(self, *options: str, script: str = SCRIPT, **environ: str) -> None:
        """sbatch on two nodes, one CPU rank on each."""
        self.dir.parent.mkdir(parents=True, exist_ok=True)
        words = ["-N2", "--output", str(self.output), *options, script, str(self.config), f"run.dir={self.dir}"]
        own = {"FUSMAE_PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "XDG_STATE_HOME": str(self.lab.folder)}
        environ = own | environ
        self.job_id = self.lab.sbatch(*words, *self.overrides, environ=environ)
        threading.Thread(target=self._watch, args=(self.job_id,), daemon=True).start()

    def submit_through_submitit(self, *options: str) -> subprocess.Popen[bytes]:
        """`python -m slurm.submit --wait` on two nodes, one CPU rank on each; once the job has its number."""
        wanted = ["--nodes", "2", "--gpus-per-node", "0", "--time", "30", "--wait", *options]
        command = [sys.executable, "-m", "slurm.submit", str(self.config), f"run.dir={self.dir}", *wanted]
        with self.output.open("w") as output:
            submit = subprocess.Popen(command, cwd=ROOT, env=self.lab.environ, stdout=output, stderr=output)
        self.lab.wait(lambda: submit.poll() is not None or "logs in" in self.said(), "it is submitted")
        assert submit.poll() is None, self.said()
        self.job_id = self.said().split()[1].rstrip(",")
        return submit

    @property
    def output(self) -> Path:
        """What the batch script and the ranks said."""
        return self.dir.with_suffix(".out")

    def said(self) -> str:
        """The text of it."""
        return self.output.read_text() if self.output.exists() else ""

    def step(self) -> int:
        """The last step that both ranks have traced."""
        from pipeline.metrics import read_lines

        return min(len(read_lines(self.dir / f"trace-rank{rank:05d}.jsonl")) for rank in (0, 1))

    def attempts(self) -> list[dict[str, str]]:
        """The ledger."""
        path = self.dir / "attempts.tsv"
        names = ("job", "restart", "nodes", "began", "ended", "first", "last", "end", "suspect")
        lines = path.read_text().splitlines() if path.exists() else []
        return [dict(zip(names, line.split("\t"), strict=True)) for line in lines]

    def ends(self) -> list[str]:
        """How each attempt ended, by the ledger."""
        return [attempt["end"] for attempt in self.attempts()]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Rank 0's events of a kind."""
        path = self.dir / "events-rank00000.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for line in lines if (event := json.loads(line))["event"] == name]

    def checkpoints(self) -> list[int]:
        """Steps of the committed checkpoints."""
        found = (re.fullmatch(r"step-(\d+)", path.name) for path in (self.dir / "checkpoints").glob("step-*"))
        return sorted(int(match[1]) for match in found if match)

    def weights(self) -> bytes:
        """The newest checkpoint's."""
        return (self.dir / "checkpoints" / f"step-{self.checkpoints()[-1]:08d}" / "model.safetensors").read_bytes()

    def rank_pid(self, rank: int, node: str | None = None, module: str = "slurm.task") -> int:
        """The process of a rank: the one that trains, not what SLURM put around it."""
        for pid in self.lab.processes(node):
            try:
                environ = set(Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0"))
                command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if {f"SLURM_PROCID={rank}", f"SLURM_JOB_ID={self.job_id}"} <= environ and command[1:4] == [
                "-u",
                "-m",
                module,
            ]:
                return pid
        raise AssertionError(f"no process of rank {rank} of job {self.job_id}")

    def wait_step(self, step: int) -> None:
        """Until both ranks have come to a step."""
        self._wait(lambda: self.step() >= step, f"step {step}")

    def wait_end(self, state: str = "COMPLETED") -> None:
        """Until the job has left the queue for good."""
        self._wait(lambda: self.lab.job(self.job_id).get("JobState") == state, f"the job ends as {state}")

    def _wait(self, holds: Any, what: str) -> None:
        deadline = time.monotonic() + LONG_S
        while not holds():
            state = self.lab.job(self.job_id).get("JobState")
            ended = state in ENDED and not holds()
            if ended or time.monotonic() > deadline:
                raise AssertionError(f"{self.dir.name}: {what} never came, job {state}\n{self.said()[-6000:]}")
            time.sleep(0.05)

    def _watch(self, job_id: str) -> None:
        """Note when each step was seen; the file shrinks when a resumed attempt drops what it does again."""
        path, last = self.dir / "trace-rank00000.jsonl", 0
        while self.job_id == job_id and not self.is_closed:
            lines = path.read_bytes().count(b"\n") if path.exists() else 0
            if lines != last:
                self.seen.append((time.time(), lines))
                last = lines
            time.sleep(0.02)


@dataclass(frozen=True)
class Recovery:
    """What a fault cost."""

    to_next_step_s: float
    steps_lost: int


def recovery(run: ClusterRun, fault_time: float) -> Recovery:
    """From the fault (`time.time`) to the first step of the attempt that resumed; and the steps done twice."""
    resumes = [
        (datetime.fromisoformat(event["time"]).timestamp(), event["from_step"]) for event in run.events("resume")
    ]
    when, start = next(resume for resume in resumes if resume[0] > fault_time)
    before = max(step for seen, step in run.seen if seen <= when)
    after = next(seen for seen, step in run.seen if seen > when and step > start)
    return Recovery(to_next_step_s=after - fault_time, steps_lost=before - start)
