"""Indexing the shards of an archive: in this process, or in spawned ones that end with it, however it ends."""

from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import islice
from typing import Final

from sharding.foreign_shard import IndexResult, IndexTask, index_shard, without_statistics
from sharding.pool import sigint_held, spawned_workers

_AHEAD: Final = 2
"""Tasks for each worker at a time: what the tables know of a shard's ten thousand tiles travels with it."""


def run_index_tasks(tasks: Iterable[IndexTask], workers: int) -> Iterator[IndexResult]:
    """The results as they come, without their statistics, which the markers keep."""
    if workers <= 1:
        for task in tasks:
            yield without_statistics(index_shard(task))
        return
    todo = iter(tasks)
    waiting: set[Future[IndexResult]] = set()
    with spawned_workers(workers) as executor:
        while True:
            # Making a task may read a table of places for minutes: only the start of processes holds Ctrl-C.
            more = list(islice(todo, _AHEAD * workers - len(waiting)))
            with sigint_held():
                waiting |= {executor.submit(_work, task) for task in more}
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


def _work(task: IndexTask) -> IndexResult:
    return without_statistics(index_shard(task))
