"""The files `time-rank*.jsonl`: what each rank timed of itself, attempt after attempt."""

import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pipeline.report.appended import read_appended

_KEYS: Final = ("time", "attempt", "step", "wall_s", "parts")


@dataclass(frozen=True, kw_only=True)
class TimeLine:
    """Sums of one rank from the start of an attempt's process up to a step."""

    time: datetime
    attempt: str
    """When and where the process started; the same on all ranks."""
    step: int
    wall_s: float
    parts: dict[str, float]
    """Seconds by part; together with `wall_s` only by chance, for they are timed apart."""
    read_bytes: int
    skipped: int
    device: str | None
    """Whose clock timed the parts of a step."""


def read_time_lines(path: Path) -> tuple[list[list[TimeLine]], int, int]:
    """The lines of each attempt, in order; how many were broken; how often something fell, which is put right."""
    appended = read_appended(path, _KEYS)
    attempts: dict[str, list[TimeLine]] = {}
    broken, faults = appended.broken, 0
    for raw in appended.lines:
        try:
            line = _line(raw)
        except (TypeError, ValueError, AttributeError):
            broken += 1
            continue
        lines = attempts.setdefault(line.attempt, [])
        if lines:
            risen = _risen(lines[-1], line)
            faults += risen != line or line.time < lines[-1].time
            line = risen
        lines.append(line)
    return list(attempts.values()), broken, faults


def _line(raw: dict[str, Any]) -> TimeLine:
    parts = {str(name): max(0.0, float(seconds)) for name, seconds in raw["parts"].items()}
    wall_s = max(0.0, float(raw["wall_s"]))
    if not all(math.isfinite(seconds) for seconds in (wall_s, *parts.values())):
        raise ValueError("not a time")
    time = datetime.fromisoformat(raw["time"])
    return TimeLine(
        time=time if time.tzinfo else time.replace(tzinfo=UTC),
        attempt=str(raw["attempt"]),
        step=int(raw["step"]),
        wall_s=wall_s,
        parts=parts,
        read_bytes=int(raw.get("read_bytes") or 0),
        skipped=int(raw.get("skipped") or 0),
        device=raw.get("device"),
    )


def _risen(before: TimeLine, line: TimeLine) -> TimeLine:
    """The line with no sum below that of the line before; the step may fall, when a run goes back by itself."""
    names = dict.fromkeys([*before.parts, *line.parts])
    return replace(
        line,
        wall_s=max(before.wall_s, line.wall_s),
        parts={name: max(before.parts.get(name, 0.0), line.parts.get(name, 0.0)) for name in names},
        read_bytes=max(before.read_bytes, line.read_bytes),
        skipped=max(before.skipped, line.skipped),
    )
