"""Stop requests: a signal or a file sets a flag, and all ranks agree on it at the end of a step.

Collectives never run in a signal handler; the flag of a step is read one step later, so that asking costs no wait.

Files in the run folder, seen by rank 0 within a second or a step, whichever is longer:

    STOP    save and stop for good: no launcher starts the run again
    SAVE    save and go on
"""

import signal
import time
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Any, Final


class Reason(IntEnum):
    """Why to save; of several, the highest counts."""

    SAVE_FILE = 1
    SIGNAL = 2
    STOP_FILE = 3
    INTERRUPT = 4

    @property
    def stops(self) -> bool:
        """Whether the run ends after the save."""
        return self is not Reason.SAVE_FILE


_SIGNALS: Final = {
    signal.SIGTERM: Reason.SIGNAL,
    signal.SIGUSR2: Reason.SIGNAL,
    signal.SIGINT: Reason.INTERRUPT,
}
_FILES: Final = {"SAVE": Reason.SAVE_FILE, "STOP": Reason.STOP_FILE}
_LOOKS_S: Final = 1.0
"""Seconds between two looks for the files: on a shared file system each costs a request."""


class StopRequest:
    """Listens to SIGTERM and SIGUSR2 (save and stop), SIGINT (the same, as an interruption), and to the files."""

    def __init__(self) -> None:
        self._own = 0
        self._folder: Path | None = None
        self._looked = -_LOOKS_S
        self._is_honoured = True
        self._group: Any = None
        self._flag: Any = None
        self._work: Any = None

    def listen(self) -> None:
        """Install the handlers in this process."""
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._own = max(self._own, _SIGNALS[signal.Signals(number)])

    def connect(self, group: Any) -> None:
        """Use `group` (a CPU-side process group) to agree."""
        self._group = group

    def watch(self, run_dir: Path) -> None:
        """Look for the files in `run_dir`; on rank 0."""
        self._folder = run_dir

    def agreed(self) -> Reason | None:
        """Why all ranks save after this step, or None. A collective that every rank calls once a step.

        A file is asked for once: it counts no more until `honoured` is called.
        """
        import torch
        import torch.distributed as dist

        reason = 0
        if self._work is not None:
            self._work.wait()
            reason = int(self._flag.item())
        if reason == Reason.SAVE_FILE:
            self._is_honoured = False
            self._own = 0 if self._own == reason else self._own
        self._look()
        self._flag = torch.tensor([self._own])
        self._work = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return Reason(reason) if reason else None

    def honoured(self, reason: Reason) -> None:
        """What was agreed is done: take its file away."""
        self._is_honoured = True
        if self._folder is not None:
            for name, asked in _FILES.items():
                if asked in (reason, Reason.SAVE_FILE):
                    (self._folder / name).unlink(missing_ok=True)

    def finish(self) -> None:
        """Wait for the question still under way, before the group is left."""
        if self._work is not None:
            self._work.wait()
            self._work = None

    def _look(self) -> None:
        now = time.monotonic()
        if self._folder is None or not self._is_honoured or now - self._looked < _LOOKS_S:
            return
        self._looked = now
        for name, reason in _FILES.items():
            if (self._folder / name).exists():
                self._own = max(self._own, reason)
