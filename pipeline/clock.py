"""Where the time of a rank's process goes, part by part, in `time-rankNNNNN.jsonl` of the run folder.

    with clock.part("forward"):
        output = model(images)

Parts are timed apart from the wall time and from each other, so that what no part holds can be told (pipeline.report).
On a GPU the parts of a step are timed by events on its stream: what the host waits for there is no part of a step's
work, and nothing waits for the device. `docs/report.md` says what a line holds.
"""

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pipeline.metrics import LineWriter

ON_HOST: Final = ("start", "end")
"""Parts that are timed by the host's clock on a GPU too: its stream is empty then."""

ALONE: Final = ("data", "prepare", "forward")
"""Parts in which a rank waits for no other, ZeRO-3's forward pass apart, which gathers weights."""


class RunClock:
    """Times one rank from the start of its process; appends a line at each `write`.

    `make_event` gives events of a device's stream, with `record`, `query` and `elapsed_time` as `torch.cuda.Event` has
    them; without it the host's clock times everything.
    """

    def __init__(self, run_dir: Path, rank: int, attempt: str, make_event: Callable[[], Any] | None = None) -> None:
        self._age_s = process_age_s()
        self._began = time.perf_counter()
        self._file = LineWriter(run_dir / f"time-rank{rank:05d}.jsonl")
        self._attempt = attempt
        self._make_event = make_event
        self._parts = {"start": self._age_s}
        self._pending: deque[tuple[str, Any, Any]] = deque()
        self._spare: list[Any] = []

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is done inside belongs to the part `name`; parts are not nested."""
        if self._make_event is None or name in ON_HOST:
            began = time.perf_counter()
            try:
                yield
            finally:
                self._add(name, time.perf_counter() - began)
            return
        before, after = self._event(), self._event()
        before.record()
        yield
        after.record()
        self._pending.append((name, before, after))

    @property
    def busy_s(self) -> float:
        """Seconds in parts of a step in which this rank does not wait for others, as far as they are known."""
        self._collect()
        return sum(self._parts.get(name, 0.0) for name in ALONE)

    def write(self, step: int, read_bytes: int | None, skipped: int) -> None:
        """Append the sums up to now; `step` is the last one done, `read_bytes` None where the reader does not count."""
        self._collect()
        self._file.write(
            {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "attempt": self._attempt,
                "step": step,
                "wall_s": round(self._age_s + time.perf_counter() - self._began, 6),
                "parts": {name: round(seconds, 6) for name, seconds in self._parts.items()},
                "device": "host" if self._make_event is None else "cuda",
                "read_bytes": read_bytes,
                "skipped": skipped,
            }
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _add(self, name: str, seconds: float) -> None:
        self._parts[name] = self._parts.get(name, 0.0) + seconds

    def _event(self) -> Any:
        assert self._make_event is not None
        return self._spare.pop() if self._spare else self._make_event()

    def _collect(self) -> None:
        """Add what the device has done by now; the rest stays for the next line."""
        while self._pending and self._pending[0][2].query():
            name, before, after = self._pending.popleft()
            self._add(name, before.elapsed_time(after) / 1000)
            self._spare += [before, after]


def process_age_s() -> float:
    """Seconds since this process started, to 10 ms; 0 where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
        started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)
    except (OSError, IndexError, ValueError, AttributeError):
        return 0.0


def event_maker(device: Any) -> Callable[[], Any] | None:
    """What makes events on the current stream of `device`; None for a CPU."""
    if device.type != "cuda":
        return None
    import torch

    return lambda: torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
