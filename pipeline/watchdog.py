"""Ends a run in which a rank makes no progress, and says which rank, where and why the others wait.

    with Watchdog(run_dir, rank, roll, settings.watchdog) as watchdog:
        watchdog.enter(Phase.STEP, 41)      # as often as you like: no wait, no system call

A thread in each rank looks on. When its rank has stood in one place for longer than the phase may take, or waits while
another rank says so, it writes `stacks/rankNNNNN.txt`, names the ranks that hold up the others, and ends the process
without unwinding, since a collective that hangs cannot be unwound. A rank that waits for one that is still inside a
longer limit, as for its data, waits as long. A process that was stopped and goes on is given its time anew. Where the
thread itself cannot go on, `pipeline.guard` ends the process.
"""

import contextlib
import faulthandler
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Final, NamedTuple

from pipeline import hang
from pipeline.command import end_process
from pipeline.hang import Account, Phase, Roll
from pipeline.metrics import LineWriter, event_line
from pipeline.run_folder import say_outcome
from pipeline.settings import WatchdogSettings

GRACE_S: Final = 5.0
"""Time for the other ranks to write; those that do not speak for all wait as long again and do not end first."""
SUSPENDED_S: Final = 5.0
"""A look that comes so late was not late for work: the process was stopped, or the machine slept."""
_LOOKS_S: Final = 1.0
_WAITS_S: Final = 2.0
"""Seconds without progress from which a rank looks whether another has noticed a hang."""
_GUARD_S: Final = 2.0
"""The guard comes later than the thread by this."""
USUAL: Final = 5.0
"""A micro-batch may take so many times as long as one of the second step did."""


class _Place(NamedTuple):
    phase: Phase
    step: int
    since: float


class Watchdog:
    """Looks on while a `with` block runs; without any limit it does nothing.

    `clock` and `end` stand for `time.monotonic` and `end_process` in tests.
    """

    def __init__(
        self,
        run_dir: Path,
        rank: int,
        roll: Roll,
        settings: WatchdogSettings,
        clock: Callable[[], float] = time.monotonic,
        end: Callable[[int], None] = end_process,
    ) -> None:
        self._run_dir = run_dir
        self._rank = rank
        self._roll = roll
        self._clock = clock
        self._end = end
        self._limits = {
            Phase.START: ("start_s", settings.start_s),
            Phase.DATA: ("data_s", settings.data_s),
            Phase.STEP: ("step_s", settings.step_s),
            Phase.CHECKPOINT: ("checkpoint_s", settings.checkpoint_s),
            Phase.EVALUATE: ("probe_s", settings.probe_s),
            Phase.END: ("end", 0.0),  # what a service of others has not got yet may take its time
        }
        self._usual_s = 0.0
        self._told: _Place | None = None
        shortest = min((limit for _, limit in self._limits.values() if limit), default=0.0)
        self._looks_s = min(_LOOKS_S, shortest / 10)
        self._began = self._anew = self._looked = clock()
        self._place = _Place(Phase.START, 0, self._began)
        self._first_step = -1
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def enter(self, phase: Phase, step: int) -> None:
        """This rank makes progress: it comes to `phase` of `step`, counted from 1."""
        now, before = self._clock(), self._place
        if self._first_step < 0:
            self._first_step = step
        if before.phase is Phase.STEP and before.step == self._first_step + 1:
            self._usual_s = max(self._usual_s, now - before.since)
        self._place = _Place(phase, step, now)

    def begin_anew(self) -> None:
        """The run went back to a checkpoint: its next step may take as long as the first one of an attempt."""
        self._began, self._first_step = self._clock(), -1

    @property
    def step(self) -> int:
        """The step that this rank has come to."""
        return self._place.step

    def __enter__(self) -> "Watchdog":
        if self._looks_s:
            from pipeline.guard import Guard

            path = hang.path_of(self._run_dir, self._rank)
            path.parent.mkdir(exist_ok=True)
            self._file: IO[str] = path.open("w")
            self._guard = Guard(self._file)
            self._look()
            self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if not self._looks_s:
            return
        self._over.set()
        self._thread.join()
        self._guard.close()
        self._file.close()
        path = hang.path_of(self._run_dir, self._rank)
        with contextlib.suppress(OSError):  # the folder is not empty: others use it, or earlier attempts left stacks
            hang.unclaim(self._run_dir, self._rank)
            if not path.stat().st_size:
                path.unlink()
            path.parent.rmdir()

    def _watch(self) -> None:
        while not self._over.wait(self._looks_s):
            if (account := self._look()) is not None:
                self._end_run(account)
                return

    def _look(self) -> Account | None:
        """Where this rank stands if it is to end now, else None."""
        now = self._clock()
        if now - self._looked > SUSPENDED_S:
            self._anew = now
        self._looked = now
        place = self._place
        name, limit, since = self._limit(place)
        idle_s = now - max(since, self._anew)
        account = Account(step=place.step, phase=place.phase, idle_s=idle_s, limit=f"watchdog.{name}={limit:g}")
        if idle_s >= _WAITS_S and hang.is_marked(self._run_dir, self._roll):
            return account
        self._claim(place, limit, idle_s)
        if limit and idle_s >= limit:
            limit = max(limit, *(self._limits[phase][1] or math.inf for phase in self._awaited(place)), 0.0)
            if idle_s >= limit:
                return account
        if_held = replace(account, idle_s=limit, is_held=True)
        self._guard.beat(
            limit - idle_s + _GUARD_S if 0 < limit < math.inf else 0.0,
            hang.header(self._run_dir, self._roll, self._rank, if_held),
        )
        return None

    def _limit(self, place: _Place) -> tuple[str, float, float]:
        """The setting that bounds a place, its seconds (0: none), and the moment from which they count."""
        is_save = place.phase in (Phase.CHECKPOINT, Phase.EVALUATE)
        if place.step <= self._first_step and not is_save:
            return *self._limits[Phase.START], self._began
        if place.step == self._first_step + 1 and not is_save and not self._usual_s:
            return *self._limits[Phase.START], place.since
        name, limit = self._limits[place.phase]
        if place.phase is Phase.STEP and limit:
            limit = max(limit, USUAL * self._usual_s)
        return name, limit, place.since

    def _claim(self, place: _Place, limit: float, idle_s: float) -> None:
        """Say to those who may wait for this rank that its place has a longer limit than theirs, while it is in it."""
        if self._told not in (None, place):
            self._told = None
            with contextlib.suppress(OSError):
                hang.unclaim(self._run_dir, self._rank)
        step_s = self._limits[Phase.STEP][1]
        is_longer = place.phase is not Phase.STEP and not 0 < limit <= step_s
        if step_s and is_longer and idle_s >= step_s / 2 and self._told != place:
            self._told = place
            with contextlib.suppress(OSError):
                hang.claim(self._run_dir, self._roll, self._rank, place.step, place.phase)

    def _awaited(self, place: _Place) -> list[Phase]:
        """Where ranks are that this one may be waiting for, and that have a longer limit."""
        if len(self._roll.owners) == 1:
            return []
        claims = hang.claims(self._run_dir, self._roll, but=self._rank)
        return [phase for step, phase in claims if self._may_wait_for(step, phase, place)]

    def _may_wait_for(self, step: int, phase: Phase, place: _Place) -> bool:
        """Whether a claim may still hold: a rank that was stopped could not take its own back."""
        is_near = place.step <= self._first_step if phase is Phase.START else step >= place.step - 1
        return is_near and hang.is_behind(step, phase, place.step, place.phase)

    def _end_run(self, account: Account) -> None:
        try:
            self._guard.beat(3 * GRACE_S, "")  # the run folder may be what hangs
            self._tell(account)
        finally:
            self._end(1)

    def _tell(self, account: Account) -> None:
        run_dir, roll = self._run_dir, self._roll
        with contextlib.suppress(OSError):
            hang.mark(run_dir, roll)
        try:
            self._file.write(hang.header(run_dir, roll, self._rank, account))
            self._file.flush()
            faulthandler.dump_traceback(self._file, all_threads=True)
            os.fsync(self._file.fileno())
            said = f"its stacks are in {hang.path_of(run_dir, self._rank)}"
        except OSError as error:
            said = f"its stacks could not be written: {error.strerror}"
        place = f"'{account.phase}' of step {account.step}"
        _say(f"rank {self._rank} made no progress for {account.idle_s:.0f} s in {place}; {said}")
        time.sleep(GRACE_S)
        if any(not a.is_held for r in range(self._rank) for a in hang.read_accounts(run_dir, roll, [r]).values()):
            time.sleep(GRACE_S)
            return
        accounts = {self._rank: account} | hang.read_accounts(run_dir, roll, range(len(roll.owners)))
        summary = hang.summary(run_dir, roll, accounts)
        _say(f"error: {summary}")
        events = LineWriter(run_dir / f"events-rank{self._rank:05d}.jsonl")
        events.write(event_line("hang", account.step, reason=summary))
        events.close()
        say_outcome(run_dir, "failed", None)


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
