"""S1 and S2 of one place by date: who is whose partner."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

_DAY = timedelta(days=1)


class _Moment(NamedTuple):
    time: datetime
    has_time: bool


def match_nearest(s2: Sequence[str], s1: Sequence[str], max_days: float | None) -> list[tuple[int, int]]:
    """Pairs (index in `s2`, index in `s1`), one to one, the closest dates first; sorted by the index in `s2`.

    Dates are ISO 8601, with or without a time; a time without a zone is UTC, and where one of the two has no time
    whole days count. Halves more than `max_days` apart stay alone. Of two that are equally close the earlier S2, then
    the earlier S1 is taken, so that the order of the lists decides nothing but equal dates. ValueError when a date
    is none.
    """
    s2_moments, s1_moments = [_moment(text) for text in s2], [_moment(text) for text in s1]
    candidates = sorted(
        (_days(a, b), a.time, b.time, i, j) for i, a in enumerate(s2_moments) for j, b in enumerate(s1_moments)
    )
    matched: dict[int, int] = {}
    taken: set[int] = set()
    for days, _, _, i, j in candidates:
        if max_days is not None and days > max_days:
            break
        if i not in matched and j not in taken:
            matched[i] = j
            taken.add(j)
    return sorted(matched.items())


def days_apart(a: str, b: str) -> float:
    """Days between two dates as `match_nearest` counts them."""
    return _days(_moment(a), _moment(b))


def _moment(text: str) -> _Moment:
    time = datetime.fromisoformat(text)
    if time.tzinfo is not None:
        time = time.astimezone(UTC).replace(tzinfo=None)
    return _Moment(time, "T" in text or ":" in text)


def _days(a: _Moment, b: _Moment) -> float:
    if a.has_time and b.has_time:
        return abs(a.time - b.time) / _DAY
    return float(abs((a.time.date() - b.time.date()).days))
