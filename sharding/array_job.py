"""Shards built by the nodes of a cluster: one SLURM job array through submitit, whatever its elements' fate.

An element builds its share of the shards with a pool of its own; what is done is told by the markers beside the data
set alone, so an element that was killed costs its unfinished shard and nothing else. Elements that end with
unfinished shards are submitted again, twice at most.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sharding.errors import ConfigError, StorageError
from sharding.pool import run_tasks
from sharding.shard_task import ShardResult, ShardTask, read_marker
from sharding.store import Store

ROUNDS: Final = 3
_POLL_S: Final = 2.0


@dataclass(frozen=True, kw_only=True)
class ArrayJob:
    """How the array is submitted."""

    elements: int
    """Jobs of the array; each is a task on one node."""
    workers: int = 8
    """Processes of an element, and the CPU cores that it asks for."""
    cluster: str = "slurm"
    """submitit's executor: `slurm`, or `local` (processes of this machine)."""
    parameters: dict[str, str] = field(default_factory=dict)
    """More of sbatch's options: partition, account, qos, time (minutes), mem, constraint."""
    logs: str = "sharding-logs"
    """Folder for the scripts and logs; on a file system that the nodes share."""


def run_array(
    tasks: list[ShardTask], array: ArrayJob, store: Store, advance: Callable[[int], None]
) -> Iterator[ShardResult]:
    """The results of all tasks as their jobs end; StorageError when some stay unfinished."""
    if store.is_local and array.cluster == "slurm":
        _require_shared(store)
    open_tasks = list(tasks)
    for round_number in range(ROUNDS):
        jobs = _submit(open_tasks, array)
        try:
            while not all(job.done() for job in jobs):
                time.sleep(_POLL_S)
        except BaseException:
            for job in jobs:
                job.cancel(check=False)
            raise
        unfinished = []
        for task in open_tasks:
            result = read_marker(store, task.name, task.job.digest)
            if result is None:
                unfinished.append(task)
                continue
            result.moments = {}
            advance(task.num_pairs)
            yield result
        open_tasks = unfinished
        if not open_tasks:
            return
        print(_complaint(jobs, open_tasks, round_number), file=sys.stderr)
    raise StorageError(
        f"{len(open_tasks)} of {len(tasks)} shards are unfinished after {ROUNDS} job arrays, the first "
        f"{open_tasks[0].name}; the logs are in {array.logs}, the same command goes on"
    )


def build_share(tasks: list[ShardTask], workers: int) -> int:
    """What an element runs: its shards, in a scratch folder of the node's own. Returns how many are done."""
    with tempfile.TemporaryDirectory(prefix="shards-") as scratch:
        return sum(1 for _ in run_tasks(tasks, workers, scratch, lambda _: None))


def _submit(tasks: list[ShardTask], array: ArrayJob) -> list[Any]:
    import submitit

    executor = submitit.AutoExecutor(folder=str(Path(array.logs) / "%j"), cluster=array.cluster)
    elements = min(array.elements, len(tasks))
    slurm: dict[str, Any] = {f"slurm_{name}": value for name, value in array.parameters.items()}
    if array.cluster == "slurm":
        from sharding.array_watch import use_queue

        use_queue()
        slurm["slurm_array_parallelism"] = elements
    # A preempted element is not checkpointed by submitit: what is missing is submitted again here.
    executor.update_parameters(name="sharding", cpus_per_task=array.workers, tasks_per_node=1, nodes=1, **slurm)
    shares = [tasks[number::elements] for number in range(elements)]
    try:
        jobs: list[Any] = executor.map_array(build_share, shares, [array.workers] * elements)
    except (OSError, RuntimeError, submitit.core.utils.FailedJobError) as error:
        raise ConfigError(
            f"the job array cannot be submitted: {error}; is sbatch there, and are its options right?"
        ) from error
    return jobs


def _complaint(jobs: list[Any], open_tasks: list[ShardTask], round_number: int) -> str:
    failed = [job for job in jobs if job.exception() is not None]
    first = f"; {failed[0].job_id}: {_last_line(failed[0])}" if failed else ""
    again = "submitted again" if round_number + 1 < ROUNDS else "given up"
    return f"warning: {len(open_tasks)} shards are unfinished, {len(failed)} of {len(jobs)} jobs failed{first}; {again}"


def _last_line(job: Any) -> str:
    lines = [line for line in str(job.exception()).splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no word"


def _require_shared(store: Store) -> None:
    for folder in ("/tmp", "/var/tmp", "/dev/shm", os.environ.get("TMPDIR", "/tmp")):
        if store.root == folder or store.root.startswith(f"{folder.rstrip('/')}/"):
            raise ConfigError(
                f"--out {store.url} lies in {folder}, which nodes do not share; give a shared folder or URL"
            )
