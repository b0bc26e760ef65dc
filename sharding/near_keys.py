"""The keys that are most like one that is not there."""

import difflib
import heapq
from collections.abc import Iterable
from typing import Final

_NEAREST: Final = 3
_CLOSE: Final = 200
"""Keys with the longest common ends, of which the nearest are chosen: comparing all takes minutes for a million."""


class NearKeys:
    """Keeps the likeliest of all keys that it is shown."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._close: list[str] = []

    def show(self, keys: Iterable[str]) -> None:
        """These are there."""
        self._close = heapq.nlargest(_CLOSE, [*self._close, *keys], key=lambda known: _likeness(known, self._key))

    def __str__(self) -> str:
        """The nearest, for a message."""
        return ", ".join(difflib.get_close_matches(self._key, self._close, n=_NEAREST, cutoff=0)) or "none"


def _likeness(known: str, key: str) -> tuple[bool, int]:
    """Whether one holds the other, and how long their common beginning and end are."""
    a, b = known.lower(), key.lower()
    return bool(b) and (b in a or a in b), _common(a, b) + _common(a[::-1], b[::-1])


def _common(a: str, b: str) -> int:
    """Length of the beginning that two words share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
