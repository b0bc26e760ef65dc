"""Stop requests: a signal sets a flag, and all ranks agree on it at the end of a step.

Collectives never run in a signal handler; the flag of a step is read one step later, so that asking costs no wait.
"""

import signal
from types import FrameType
from typing import Any

_REASONS = {signal.SIGTERM: 1, signal.SIGUSR2: 1, signal.SIGINT: 2}
_NAMES = {1: "stop signal", 2: "interrupt"}


class StopRequest:
    """Listens to SIGTERM, SIGUSR2 (save and stop) and SIGINT (the same, but the run counts as interrupted)."""

    def __init__(self) -> None:
        self._own = 0
        self._group: Any = None
        self._flag: Any = None
        self._work: Any = None

    def listen(self) -> None:
        """Install the handlers in this process."""
        for number in _REASONS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._own = max(self._own, _REASONS[signal.Signals(number)])

    def connect(self, group: Any) -> None:
        """Use `group` (a CPU-side process group) to agree."""
        self._group = group

    def agreed(self) -> str | None:
        """Why all ranks stop after this step, or None. A collective that every rank calls once a step."""
        import torch
        import torch.distributed as dist

        reason = 0
        if self._work is not None:
            self._work.wait()
            reason = int(self._flag.item())
        self._flag = torch.tensor([self._own])
        self._work = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return _NAMES[reason] if reason else None

    def finish(self) -> None:
        """Wait for the question still under way, before the group is left."""
        if self._work is not None:
            self._work.wait()
            self._work = None
