"""States of a job array's elements, on clusters with and without accounting.

submitit asks sacct alone. Without accounting every state is then unknown, and an element that was killed before it
could write its result counts as running for ever.
"""

import shutil
import subprocess
import time
from collections.abc import Sequence
from typing import Final

from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

_COLUMNS: Final = "JobID|State|NodeList"
_SQUEUE: Final = ("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%N")
_SACCT: Final = ("sacct", "--noheader", "--parsable2", "--format=JobID,State,NodeList")
_DELAY_S: Final = 30
"""Longest time between two looks; squeue knows of an ended job for MinJobAge, 300 s by default."""
_MISSES: Final = 3
"""Looks in a row at which the controller answers and nobody knows of an element, after which it counts as ended."""


class QueueWatcher(SlurmInfoWatcher):
    """Asks squeue, and sacct for what squeue has forgotten; what neither knows of has ended, as `FORGOTTEN`."""

    def __init__(self) -> None:
        super().__init__(delay_s=_DELAY_S)
        self._misses: dict[str, int] = {}

    def update(self) -> None:
        """Ask for all elements that may still run."""
        open_jobs = {job for job in self._registered if job not in self._finished and not self._is_final(job)}
        self._num_calls += 1
        self._last_status_check = time.time()
        queued = _ask(_SQUEUE, open_jobs)
        self._info_dict.update(known := self.read_info(queued or ""))
        missing = open_jobs - known.keys()
        accounted = self.read_info(_ask(_SACCT, missing) or "")
        self._info_dict.update({job: accounted[job] for job in missing & accounted.keys()})
        for job in open_jobs:
            if job in known or job in accounted:
                self._misses.pop(job, None)
            elif queued is not None:
                self._misses[job] = self._misses.get(job, 0) + 1
                if self._misses[job] >= _MISSES:
                    self._info_dict[job] = {"JobID": job, "State": "FORGOTTEN", "NodeList": ""}

    def _is_final(self, job: str) -> bool:
        return job in self._info_dict and self.is_done(job, mode="cache")


def use_queue() -> None:
    """Let submitit's jobs in this process be watched by the queue."""
    if not isinstance(SlurmJob.watcher, QueueWatcher):
        SlurmJob.watcher = QueueWatcher()


def _ask(command: Sequence[str], jobs: set[str]) -> str | None:
    """What the command says of jobs, under a line of column names; None when it could not say."""
    if not jobs or shutil.which(command[0]) is None:
        return None
    ids = ",".join(sorted({job.split("_")[0] for job in jobs}))
    said = subprocess.run([*command, f"--jobs={ids}"], capture_output=True, text=True, check=False)
    if said.returncode and "Invalid job id" not in said.stderr:
        return None  # the controller is away, or there is no accounting
    return f"{_COLUMNS}\n{said.stdout}"
