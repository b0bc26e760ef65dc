"""The partners of S2's dates among those of S1, for thousands of patches of which each sees other dates clear."""

import functools
from collections.abc import Iterator

from sharding.sources.nearest import days_apart, match_nearest

_Pairs = list[tuple[str, str]]


class Partners:
    """Matches dates of S2 with those of S1, one to one, at most `max_days` apart.

    Gives what `match_nearest` gives for all dates at once. That takes time with the product of their numbers, so it is
    asked for dates alone that could contend for a partner, and what it said of them is remembered.
    """

    def __init__(self, s2_dates: tuple[str, ...], s1_dates: tuple[str, ...], max_days: float) -> None:
        self._max_days = max_days
        self._s1 = s1_dates
        self._near = {date: self._span(date) for date in s2_dates}
        self._matched = functools.lru_cache(maxsize=4096)(self._match)

    def of(self, dates: tuple[str, ...]) -> _Pairs:
        """S2 and S1 date of each pair; `dates` are in order."""
        return [pair for group in self._groups(dates) for pair in self._matched(group)]

    def _span(self, date: str) -> tuple[int, int]:
        """First and last S1 near enough; whole days may count, so the borders are looked for by the count itself."""
        near = [i for i, other in enumerate(self._s1) if days_apart(date, other) <= self._max_days]
        return (near[0], near[-1] + 1) if near else (0, 0)

    def _groups(self, dates: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        """Runs of dates of which neighbours have an S1 in common."""
        group: list[str] = []
        end = 0
        for date in dates:
            first, last = self._near[date]
            if first == last:
                continue
            if group and first >= end:
                yield tuple(group)
                group = []
            group.append(date)
            end = max(end, last)
        if group:
            yield tuple(group)

    def _match(self, group: tuple[str, ...]) -> _Pairs:
        first = min(self._near[date][0] for date in group)
        last = max(self._near[date][1] for date in group)
        s1 = self._s1[first:last]
        return [(group[i], s1[j]) for i, j in match_nearest(group, s1, self._max_days)]
