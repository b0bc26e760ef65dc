"""Workers that index shards: a Ctrl-C counts at once, but for the moment in which processes start."""

import signal
from concurrent.futures import ThreadPoolExecutor

from sharding import foreign_pool, pool


def test_ctrl_c_is_not_held_while_tasks_are_made(monkeypatch):
    """Making one may read a table of places for minutes."""
    held = []

    def is_held():
        return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, set())

    class Executor(ThreadPoolExecutor):
        def __init__(self, workers, **_options):
            super().__init__(workers)

        def submit(self, work, task):
            held.append(is_held())
            return super().submit(work, task)

    def tasks():
        for number in range(9):
            assert not is_held()
            yield number

    monkeypatch.setattr(pool, "ProcessPoolExecutor", Executor)
    monkeypatch.setattr(foreign_pool, "_work", lambda task: task)
    assert sorted(foreign_pool.run_index_tasks(tasks(), 2)) == list(range(9))
    assert held == [True] * 9
