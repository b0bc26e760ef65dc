"""Indexing the shards of an archive: in this process, or in spawned ones that end with it, however it ends."""

import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Final

from sharding.errors import StorageError
from sharding.foreign_shard import IndexResult, IndexTask, index_shard, without_statistics
from sharding.pool import _sigint_held, _start_worker

_AHEAD: Final = 2
"""Tasks for each worker at a time: what the tables know of a shard's ten thousand tiles travels with it."""


def run_index_tasks(tasks: Iterable[IndexTask], workers: int) -> Iterator[IndexResult]:
    """The results as they come, without their statistics, which the markers keep."""
    if workers <= 1:
        for task in tasks:
            yield without_statistics(index_shard(task))
        return
    # Not forked: fsspec's event loop does not survive a fork.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(None,))
    todo = iter(tasks)
    try:
        waiting: set[Future[IndexResult]] = set()
        while True:
            # Making a task may read a table of places for minutes: only the start of processes holds Ctrl-C.
            more = list(islice(todo, _AHEAD * workers - len(waiting)))
            with _sigint_held():
                waiting |= {executor.submit(_work, task) for task in more}
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise StorageError(
            "a worker process was killed, perhaps for want of memory; the same command goes on, with fewer --workers"
        ) from error
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _work(task: IndexTask) -> IndexResult:
    return without_statistics(index_shard(task))
