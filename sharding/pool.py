"""Running shard tasks: in this process, or in spawned ones that end with it, however it ends."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from typing import Any, Final

from sharding.errors import StorageError
from sharding.shard_task import ShardResult, ShardTask, finish_shard

_POLL_S: Final = 0.3
_progress: Any = None


def run_tasks(
    tasks: list[ShardTask], workers: int, scratch: str, advance: Callable[[int], None]
) -> Iterator[ShardResult]:
    """The results as they come, without their statistics, which the markers keep.

    `scratch` is a local folder for tars while they grow; `advance` is told how many pairs were done since it was last
    told.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        for task in tasks:
            yield _without_statistics(finish_shard(task, scratch, lambda: advance(1)))
        return
    yield from _run_spawned(tasks, workers, scratch, advance)


def _without_statistics(result: ShardResult) -> ShardResult:
    result.moments = {}
    return result


def _run_spawned(
    tasks: list[ShardTask], workers: int, scratch: str, advance: Callable[[int], None]
) -> Iterator[ShardResult]:
    counter = multiprocessing.get_context("spawn").Value("Q", 0)
    told = 0
    with spawned_workers(workers, counter) as executor:
        with sigint_held():
            waiting: set[Future[ShardResult]] = {executor.submit(_work, task, scratch) for task in tasks}
        while waiting:
            done, waiting = wait(waiting, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            told, before = counter.value, told
            advance(told - before)
            for future in done:
                yield future.result()


@contextlib.contextmanager
def spawned_workers(workers: int, progress: Any = None) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with this one and with the block, however either ends; `progress` is a shared counter.

    StorageError when one of them was killed.
    """
    # Not forked: GDAL, fsspec's event loop and LMDB do not survive a fork.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(progress,))
    try:
        yield executor
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


@contextlib.contextmanager
def sigint_held() -> Iterator[None]:
    """Processes spawned here never see Ctrl-C, which reaches the whole group: the parent alone decides.

    They inherit the blocked signal. In the parent a Ctrl-C in the meantime is held and raised at the end: ignoring it
    would lose it, and blocking alone does not stop it, since Python answers in the main thread whichever got it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if held:
            raise KeyboardInterrupt


def _work(task: ShardTask, scratch: str) -> ShardResult:
    return _without_statistics(finish_shard(task, scratch, _count_one))


def _count_one() -> None:
    with _progress.get_lock():
        _progress.value += 1


def _start_worker(progress: Any) -> None:
    global _progress
    _progress = progress
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A killed parent leaves its executor's workers waiting for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(1)
