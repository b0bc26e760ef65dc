"""What became of a job: its state, and the log of the rank that failed."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from submitit import SlurmJob
from submitit.core.core import Job

FINAL = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
}
"""States that a job does not leave by itself; one that is back in the queue is PENDING."""


def slurm_state(job_id: str) -> str:
    """State of a job as squeue says it, as sacct does once squeue has forgotten it, '' when neither knows.

    squeue goes first: it needs no accounting, and it knows at once of a job that is back in the queue.
    """
    for command in (
        ["squeue", "--noheader", "--states=all", "--format=%T", "--jobs", job_id],
        ["sacct", "--noheader", "--parsable2", "--allocations", "--format=State", "--jobs", job_id],
    ):
        if shutil.which(command[0]) is None:
            continue
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        words = said.stdout.split()
        if said.returncode == 0 and words:
            return words[0]
    return ""


def wait_for_slurm(job_id: str, *, poll_s: float = 15, forgotten_after: int = 4) -> str:
    """Wait, over every requeue, until the job is in a final state; return it.

    '' when the cluster has forgotten the job: `forgotten_after` looks in a row found nothing.
    """
    unknown = 0
    while True:
        state = slurm_state(job_id)
        unknown = 0 if state else unknown + 1
        if state in FINAL or unknown >= forgotten_after:
            return state
        time.sleep(poll_s)


def wait_for_local(job: Job[None], *, poll_s: float = 0.5) -> bool:
    """Wait until all ranks on this machine have ended; return whether each ended well."""
    while not job.done():
        time.sleep(poll_s)
    return all(job.task(rank).paths.result_pickle.exists() for rank in range(job.num_tasks))


def chain_of(run_dir: Path, job_id: str) -> list[str]:
    """The jobs of the chain that `job_id` is in, in order; the job alone when it is in none (slurm/chain.sh)."""
    for path in sorted((run_dir / "attempts").glob("*.chain")):
        jobs = path.read_text().split()
        if job_id in jobs:
            return jobs
    return [job_id]


def goes_on(run_dir: Path, job_id: str) -> tuple[str, str] | None:
    """The job of the chain that goes on after `job_id`, and its state; None when none does."""
    jobs = chain_of(run_dir, job_id)
    for following in reversed(jobs[jobs.index(job_id) + 1 :]):
        state = slurm_state(following)
        if state and state not in FINAL:
            return following, state
    return None


def wait_for_chain(run_dir: Path, job_id: str, *, poll_s: float = 15) -> tuple[str, str]:
    """Wait until no job of the chain goes on; the last job that ran, and its state."""
    while True:
        state = wait_for_slurm(job_id, poll_s=poll_s)
        following = goes_on(run_dir, job_id)
        if following is None:
            return job_id, state
        job_id = following[0]


def outcome(run_dir: Path, job_ids: Collection[str] | None = None) -> tuple[str, int]:
    """The word and the step that the trainer left in the run folder; ('', 0) when it left none.

    With `job_ids`, only what an attempt of those jobs left: an outcome names its attempt, JOB.RESTART.
    """
    try:
        said = json.loads((run_dir / "outcome.json").read_text())
        if job_ids is not None and str(said["attempt"]).split(".")[0] not in job_ids:
            return "", 0
        return str(said["outcome"]), int(said["step"] or 0)
    except (OSError, ValueError, KeyError, TypeError):
        return "", 0


def failing_rank(job: Job[None]) -> int:
    """The rank whose log tells most of the failure.

    The others often fail because it did, with a lost connection; so the first one with an error of ours, else
    the one that ended first with a traceback, else rank 0.
    """
    ended: list[tuple[bool, float, int]] = []
    for rank in range(job.num_tasks):
        log = job.task(rank).paths.stderr
        text = log.read_text(errors="replace") if log.exists() else ""
        ours = re.search(r"^error: ", text, re.MULTILINE) is not None
        if ours or "Traceback (most recent call last)" in text:
            ended.append((not ours, log.stat().st_mtime, rank))
    return min(ended)[2] if ended else 0


def last_lines(paths: Sequence[Path], count: int = 20) -> str:
    """The end of each log that is not empty, under its path."""
    shown = []
    for path in paths:
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        if lines:
            shown += [f"--- {path}", *lines[-count:]]
    return "\n".join(shown)


def verdict(job: Job[None], run_dir: Path, *, local: bool) -> int:
    """Wait for the end of the job, say how it ended, and return the exit code."""
    if local:
        ended_well, state = wait_for_local(job), "over"
        word, step = outcome(run_dir)
    else:
        last, state = wait_for_chain(run_dir, job.job_id)
        state = state or "forgotten by the cluster"
        word, step = outcome(run_dir, chain_of(run_dir, job.job_id))
        if last != job.job_id:
            job = SlurmJob(folder=job.paths.folder.parent / "%j", job_id=last, tasks=list(range(job.num_tasks)))
        ended_well = word in ("done", "stopped")
    if ended_well:
        print(f"{word or 'ended'} at step {step}: {run_dir}")
        return 0
    paths = job.task(failing_rank(job)).paths
    print(last_lines([paths.stdout, paths.stderr]), file=sys.stderr)
    said = f"the run {word} at step {step}" if word else "the run left no outcome"
    print(f"error: job {job.job_id} is {state}, {said}; logs in {paths.folder}", file=sys.stderr)
    return 1
