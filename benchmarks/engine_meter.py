"""What calls cost, by name, and how blocks with and without them take turns."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any


class Meter:
    """Sums the processor and the wall time of wrapped calls; what one takes inside another is not the outer one's.

    While `is_on` is false, wrapped calls are left out and give what `off` says. Reading the clocks is part of what is
    summed: the row of an empty call tells how much.
    """

    def __init__(
        self, cpu_ns: Callable[[], int] = time.thread_time_ns, wall_ns: Callable[[], int] = time.perf_counter_ns
    ) -> None:
        self.is_on = True
        self.cpu: Counter[str] = Counter()
        self.wall: Counter[str] = Counter()
        self._cpu_ns = cpu_ns
        self._wall_ns = wall_ns
        self._inside: list[list[int]] = []

    def wrap(self, name: str, call: Callable[..., Any], off: Any = None) -> Callable[..., Any]:
        def metered(*arguments: Any, **named: Any) -> Any:
            if not self.is_on:
                return off
            with self._timed(name):
                return call(*arguments, **named)

        return metered

    def wrap_block(self, name: str, block: Callable[[str], Any]) -> Callable[[str], Any]:
        """Of what opens a `with` block: entering and leaving it, not what is done inside."""
        empty = contextlib.nullcontext()

        def metered(*arguments: Any) -> Any:
            return _MeteredBlock(self, name, block, arguments) if self.is_on else empty

        return metered

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        self._inside.append([0, 0])
        wall, cpu = self._wall_ns(), self._cpu_ns()
        try:
            yield
        finally:
            cpu, wall = self._cpu_ns() - cpu, self._wall_ns() - wall
            of_others = self._inside.pop()
            self.cpu[name] += cpu - of_others[0]
            self.wall[name] += wall - of_others[1]
            if self._inside:
                self._inside[-1][0] += cpu
                self._inside[-1][1] += wall


class _MeteredBlock:
    def __init__(self, meter: Meter, name: str, block: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._meter, self._name, self._block, self._arguments = meter, name, block, arguments

    def __enter__(self) -> None:
        with self._meter._timed(self._name):
            self._opened = self._block(*self._arguments)
            self._opened.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._meter._timed(self._name):
            self._opened.__exit__(kind, error, trace)


def thread_cpu_ns(tid: int) -> int:
    """Processor time of a thread of this process, 0 when it has ended: a clock that Linux has for each."""
    try:
        return time.clock_gettime_ns((~tid << 3) | 6)
    except OSError:
        return 0


def is_on(block: int) -> bool:
    """Whether block `block` is one with instruments: on, off, off, on, so that a drift favours neither."""
    return block % 4 in (0, 3)
