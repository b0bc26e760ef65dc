"""What the instruments of a run cost a step, for `benchmarks.engine`: in the product's own loop.

Blocks of steps with all instruments and with none take turns. Off are their calls, and the watchdog with its threads;
what every step asks of them is left out by stand-ins on the session that `pipeline.session` opened. Trace and profile
are not asked for.
"""

import contextlib
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.engine_meter import Meter, is_on, thread_cpu_ns
from benchmarks.engine_ranks import measure_as_rank
from pipeline.distributed import Ranks
from pipeline.stop import StopRequest

THREADS = "threads of the "
EMPTY = "an empty call, metered"


def measure(spec: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """`spec`: settings, warm_up (steps), block (steps), num_blocks."""
    from pipeline import distributed, loop
    from pipeline.config import parse_settings

    run_dir = Path(spec["folder"]) / "run"
    run_dir.mkdir(exist_ok=True)
    num_steps = spec["warm_up"] + spec["block"] * spec["num_blocks"] + 1
    raw = spec["settings"]
    raw["run"]["dir"], raw["train"]["steps"], raw["checkpoint"] = str(run_dir), num_steps, {"every": 2 * num_steps}
    meter = Meter()
    stop = StopRequest()
    stop.listen()
    groups: list[list[int]] = []
    make_group = distributed.cpu_group

    def watched_group(timeout_s: float) -> Any:
        before = _tids()
        group = make_group(timeout_s)
        groups.append(sorted(_tids() - before))
        return group

    distributed.cpu_group = watched_group
    switch: list[_Switch] = []
    opened = loop.open_session

    @contextlib.contextmanager
    def metered_session(*arguments: Any) -> Iterator[Any]:
        before = _tids()
        with opened(*arguments) as session:
            switched = _Switch(spec, meter, session, groups[0], _tids() - before)
            switch.append(switched)
            _wrap_session(meter, session, stop)
            session.profile.begin = switched.begin
            try:
                yield session
            finally:
                switched.end()

    loop.open_session = metered_session
    loop._report = meter.wrap("straggler and mean figures", loop._report)
    loop._write_time = meter.wrap("clock", loop._write_time)
    loop.train(parse_settings(raw, "the benchmark"), ranks, stop)
    return switch[0].result()


def _wrap_session(meter: Meter, session: Any, stop: StopRequest) -> None:
    session.clock.part = meter.wrap_block("clock", session.clock.part)
    session.losses.note = meter.wrap("loss watch", session.losses.note)
    session.losses.check = meter.wrap("loss watch", session.losses.check, off=[])
    progress, log = session.progress, session.log
    progress.count = meter.wrap("progress line", progress.count)
    progress.say = meter.wrap("progress line", progress.say)
    progress._say_line = meter.wrap("progress line", progress._say_line)
    log.metrics = meter.wrap("metrics line", log.metrics)
    log.event = meter.wrap("events", log.event)
    log.trace_step = meter.wrap("events", log.trace_step)
    for tracker in log._trackers:
        tracker.log = meter.wrap("TensorBoard", tracker.log)
    stop.agreed = meter.wrap("stop flag", stop.agreed)  # type: ignore[method-assign]


class _Switch:
    """Turns the instruments on and off between steps, and times the steps."""

    def __init__(
        self, spec: dict[str, Any], meter: Meter, session: Any, flag_group: list[int], started: set[int]
    ) -> None:
        self._spec, self._meter, self._session = spec, meter, session
        self._given = session.watchdog
        self._nothing = meter.wrap(EMPTY, lambda: None)
        python = {thread.native_id: thread.name for thread in threading.enumerate() if thread.native_id is not None}
        looking = [tid for tid in flag_group if _thread_name(tid) == "gloo_tcp_loop"]
        self._threads = {
            THREADS + "stop flag and figures, gloo's that looks 100 times a second": looking,
            THREADS + "stop flag and figures, gloo's others": [tid for tid in flag_group if tid not in looking],
        }
        board = [tid for tid, name in python.items() if tid in started and name.startswith("Thread-")]
        self._threads[THREADS + "TensorBoard writer"] = board
        self._own: list[int] = []
        self._steps: list[tuple[int, int, int]] = []
        self._calls: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._block = -1
        self._wall = self._cpu = 0
        self._given.__exit__(None, None, None)
        self._start_watchdog()

    def begin(self, step: int) -> None:
        """In place of `StepProfile.begin`, the first thing of a step."""
        wall, cpu = time.perf_counter_ns(), time.process_time_ns()
        if self._block >= 0:
            self._steps.append((self._block, wall - self._wall, cpu - self._cpu))
        done = step - 1 - self._spec["warm_up"]
        if done >= 0 and done % self._spec["block"] == 0:
            self._turn(done // self._spec["block"])
        self._wall, self._cpu = time.perf_counter_ns(), time.process_time_ns()
        self._nothing()

    def _turn(self, block: int) -> None:
        if self._block >= 0 and is_on(self._block):
            self._collect()
        if self._block >= 0 and is_on(self._block) != is_on(block):
            if is_on(block):
                self._start_watchdog()
            else:
                self._session.watchdog.running.__exit__(None, None, None)
        self._meter.is_on = is_on(block)
        self._block = block
        self._meter.cpu.clear()
        self._meter.wall.clear()
        self._before = {tid: thread_cpu_ns(tid) for tid in self._all_threads()}

    def _collect(self) -> None:
        """What the block that ends has cost."""
        for name in self._meter.cpu:
            self._calls[name].append((self._meter.cpu[name], self._meter.wall[name]))
        threads = self._threads | {THREADS + "watchdog": self._own}
        for name, tids in threads.items():
            self._calls[name].append((sum(thread_cpu_ns(tid) - self._before[tid] for tid in tids), 0))

    def _all_threads(self) -> list[int]:
        return [*(tid for tids in self._threads.values() for tid in tids), *self._own]

    def _start_watchdog(self) -> None:
        from pipeline.watchdog import Watchdog

        before = _tids()
        given = self._given
        running = Watchdog(
            self._session.run_dir, self._session.ranks.rank, given._roll, self._session.settings.watchdog
        ).__enter__()
        self._own = sorted(_tids() - before)
        self._session.watchdog = _Watched(running, self._meter)

    def end(self) -> None:
        self._meter.is_on = True
        with contextlib.suppress(RuntimeError):
            self._session.watchdog.running.__exit__(None, None, None)

    def result(self) -> dict[str, Any]:
        return {"steps": self._steps, "calls": self._calls, "block": self._spec["block"]}


class _Watched:
    def __init__(self, running: Any, meter: Meter) -> None:
        self.running = running
        self.enter = meter.wrap("watchdog", running.enter)


def _thread_name(tid: int) -> str:
    return Path(f"/proc/self/task/{tid}/comm").read_text().strip()


def _tids() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}


if __name__ == "__main__":
    measure_as_rank(measure)
