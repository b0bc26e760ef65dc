"""Where each second of a run went, from the files `time-rank*.jsonl` that its ranks write.

A line of such a file holds sums from the start of an attempt's process up to a step: the wall time, the seconds of
each part that is timed, bytes read. What rank 0 says is the run's account: each attempt's parts, what its wall time
holds beside them, the time between attempts, and the time of steps that were lost and done again. These add up to the
time from the first process's start to the last line.
"""

import math
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from pipeline.report.time_lines import TimeLine, read_time_lines

RESTART: Final = "restart"
"""From an attempt's last line to the next one's process start; holds what a killed attempt did behind its last line."""
REPEATED: Final = "repeated"
"""Steps that a later attempt did again."""
UNATTRIBUTED: Final = "unattributed"
"""Wall time of attempts that no timed part holds."""


@dataclass(frozen=True, kw_only=True)
class AttemptTime:
    """One process's life, as rank 0 timed it."""

    name: str
    """When and where it started."""
    first_step: int
    """Step begun or resumed from."""
    last_step: int
    """Last step known to be done."""
    restart_s: float
    """Between the attempt before and this one."""
    wall_s: float
    """From the process's start to its last line."""
    parts: dict[str, float]
    """Seconds of each timed part, without those of `repeated_s`."""
    repeated_s: float
    """Part of the wall time in steps that a later attempt did again, to the line: between two lines by their share."""
    repeated_steps: int

    @property
    def unattributed_s(self) -> float:
        """Wall time that no part holds."""
        return max(0.0, self._beside)

    @property
    def overcounted_s(self) -> float:
        """By how much the parts are more than the wall time; they are timed independently of it."""
        return max(0.0, -self._beside)

    @property
    def _beside(self) -> float:
        beside = self.wall_s - self.repeated_s - math.fsum(self.parts.values())
        return 0.0 if abs(beside) < 1e-9 * (1 + self.wall_s) else beside


@dataclass(frozen=True, kw_only=True)
class RankTime:
    """One rank over all its attempts."""

    rank: int
    wall_s: float
    data_s: float
    """Waiting for data."""
    read_bytes: int


@dataclass(frozen=True, kw_only=True)
class WallTime:
    """Where the wall time of a run went."""

    attempts: tuple[AttemptTime, ...] = ()
    """Rank 0's, in order; empty when the run did not record its time."""
    ranks: tuple[RankTime, ...] = ()
    device: str | None = None
    """Whose clock timed the parts of a step: `host`, or `cuda` for the GPU's."""
    skipped: int = 0
    """Steps skipped, as rank 0 counted them; a repeated one counts each time."""
    clock_faults: int = 0
    """Places where a clock or a sum of rank 0 went backwards; the time there counts as nothing."""
    broken_lines: int = 0
    """Lines of all ranks that a kill or a full disk cut."""

    @property
    def parts(self) -> dict[str, float]:
        """Seconds by part, with `restart`, `repeated` and `unattributed`: in all `total_s` and `overcounted_s`."""
        parts: dict[str, float] = {}
        for attempt in self.attempts:
            beside = {
                RESTART: attempt.restart_s,
                REPEATED: attempt.repeated_s,
                UNATTRIBUTED: attempt.unattributed_s,
            }
            for name, seconds in (attempt.parts | beside).items():
                parts[name] = parts.get(name, 0.0) + seconds
        return parts

    @property
    def total_s(self) -> float:
        """From the first process's start to the last line."""
        return math.fsum(attempt.restart_s + attempt.wall_s for attempt in self.attempts)

    @property
    def overcounted_s(self) -> float:
        """By how much the parts are more than the wall time, over all attempts."""
        return math.fsum(attempt.overcounted_s for attempt in self.attempts)

    @property
    def read_bytes(self) -> int:
        """Read by all ranks."""
        return sum(rank.read_bytes for rank in self.ranks)

    @property
    def read_bytes_per_s(self) -> float:
        """Read by all ranks, over the time in which attempts ran."""
        running_s = math.fsum(attempt.wall_s for attempt in self.attempts)
        return self.read_bytes / running_s if running_s else 0.0

    @property
    def slowest(self) -> RankTime | None:
        """The rank that waited longest for data."""
        return max(self.ranks, key=lambda rank: rank.data_s, default=None)


def account(run_dir: Path) -> WallTime:
    """The account of the run in `run_dir`; without attempts when rank 0 left no file."""
    files: dict[int, list[list[TimeLine]]] = {}
    broken, faults_of_first = 0, 0
    for path in sorted(run_dir.glob("time-rank*.jsonl")):
        number = re.fullmatch(r"time-rank(\d+)\.jsonl", path.name)
        if number is None:
            continue
        attempts, unread, faults = read_time_lines(path)
        broken += unread
        if attempts:
            files[int(number[1])] = attempts
        if int(number[1]) == 0:
            faults_of_first = faults
    if 0 not in files:
        return WallTime(broken_lines=broken)
    timed, gaps_back = _attempts(files[0])
    return WallTime(
        attempts=timed,
        ranks=tuple(_rank(rank, attempts) for rank, attempts in files.items()),
        device=files[0][-1][-1].device,
        skipped=sum(lines[-1].skipped for lines in files[0]),
        clock_faults=faults_of_first + gaps_back,
        broken_lines=broken,
    )


def _attempts(files: list[list[TimeLine]]) -> tuple[tuple[AttemptTime, ...], int]:
    """The account of each attempt, and how many seem to have started before the one before them ended."""
    timed: list[AttemptTime] = []
    back = 0
    for number, (lines, again_from) in enumerate(zip(files, _again_from(files), strict=True)):
        restart_s = 0.0
        if number:
            ended = files[number - 1][-1].time
            restart_s = (lines[0].time - ended).total_seconds() - lines[0].wall_s
            back += restart_s < 0
        last = lines[-1]
        repeated = _repeated(lines, again_from)
        timed.append(
            AttemptTime(
                name=last.attempt,
                first_step=lines[0].step,
                last_step=last.step,
                restart_s=max(0.0, restart_s),
                wall_s=last.wall_s,
                parts={name: max(0.0, seconds - repeated.parts[name]) for name, seconds in last.parts.items()},
                repeated_s=repeated.wall_s,
                repeated_steps=round(repeated.steps),
            )
        )
    return tuple(timed), back


def _again_from(files: list[list[TimeLine]]) -> list[list[float]]:
    """For each line the lowest step from which the run went on at a later time; infinite when it never went back."""
    lowest = math.inf
    found: list[list[float]] = []
    for lines in reversed(files):
        of_lines = []
        for number in reversed(range(len(lines))):
            of_lines.append(lowest)
            if number == 0 or lines[number].step < lines[number - 1].step:
                lowest = min(lowest, lines[number].step)
        found.append(of_lines[::-1])
    return found[::-1]


@dataclass(kw_only=True)
class _Repeated:
    """What went into steps that were done again."""

    steps: float
    wall_s: float
    parts: dict[str, float]


def _repeated(lines: list[TimeLine], again_from: list[float]) -> _Repeated:
    """Of one attempt; `again_from` is that of each of its lines."""
    found = _Repeated(steps=0.0, wall_s=0.0, parts=dict.fromkeys(lines[-1].parts, 0.0))
    for (before, line), step in zip(pairwise(lines), again_from[1:], strict=True):
        if line.step <= step:
            continue
        share = (line.step - max(step, before.step)) / (line.step - before.step) if line.step > before.step else 1.0
        found.steps += share * max(0, line.step - before.step)
        found.wall_s += share * (line.wall_s - before.wall_s)
        for name, seconds in line.parts.items():
            found.parts[name] += share * (seconds - before.parts.get(name, 0.0))
    return found


def _rank(rank: int, attempts: list[list[TimeLine]]) -> RankTime:
    return RankTime(
        rank=rank,
        wall_s=math.fsum(lines[-1].wall_s for lines in attempts),
        data_s=math.fsum(lines[-1].parts.get("data", 0.0) for lines in attempts),
        read_bytes=sum(lines[-1].read_bytes for lines in attempts),
    )
