"""The account of a run's wall time as the rows of a table and the segments of a bar."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pipeline.report.wall_time import REPEATED, RESTART, UNATTRIBUTED, AttemptTime

STEP_PARTS: Final = ("forward", "backward", "optimiser")
"""What the rest of the wall time is for."""
_TITLES: Final = {
    "forward": "forward",
    "backward": "backward",
    "optimiser": "optimiser",
    "data": "waiting for data",
    "prepare": "preparing inputs",
    "agree": "agreeing with other ranks",
    "collect": "collecting Python's garbage",
    "log": "logging",
    "checkpoint": "checkpoints",
    "probe": "online probe",
    "start": "starting",
    "end": "ending",
    RESTART: "restart, between attempts",
    REPEATED: "repeated, steps done again",
    UNATTRIBUTED: "not attributed",
}
"""In the order shown; a part that is not among them stands before the restarts, under its own name."""
_BEHIND: Final = (RESTART, REPEATED, UNATTRIBUTED)
_NUM_OTHERS: Final = 3
"""Colours for parts of unknown names."""


@dataclass(frozen=True, kw_only=True)
class TimeRow:
    """One part of the wall time."""

    part: str
    title: str
    colour: str
    """Name of its colour on the page."""
    seconds: float
    share: float
    """Of the total."""


def part_names(*accounts: Mapping[str, float]) -> list[str]:
    """The parts of one or several accounts in the order shown, those that took any time; always `unattributed`."""
    present = {name for parts in accounts for name, seconds in parts.items() if seconds > 0} | {UNATTRIBUTED}
    others = sorted(present - _TITLES.keys())
    known = [name for name in _TITLES if name in present]
    return [name for name in known if name not in _BEHIND] + others + [name for name in _BEHIND if name in present]


def time_rows(parts: Mapping[str, float], total_s: float, names: list[str]) -> list[TimeRow]:
    """A row for each of `names`."""
    others = [name for name in names if name not in _TITLES]
    return [
        TimeRow(
            part=name,
            title=_TITLES.get(name, name),
            colour=f"t-other{others.index(name) % _NUM_OTHERS + 1}" if name in others else f"t-{name}",
            seconds=parts.get(name, 0.0),
            share=parts.get(name, 0.0) / total_s if total_s else 0.0,
        )
        for name in names
    ]


def attempt_rows(attempt: AttemptTime, names: list[str]) -> list[TimeRow]:
    """The rows of one attempt, with the restart before it."""
    beside = {RESTART: attempt.restart_s, REPEATED: attempt.repeated_s, UNATTRIBUTED: attempt.unattributed_s}
    return time_rows(attempt.parts | beside, attempt.restart_s + attempt.wall_s, names)
