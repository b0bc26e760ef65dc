"""What is known of one band's values: count, mean, spread, range and histogram, in a form that can be merged.

Merging is Chan, Golub & LeVeque's (1983), in float64; counts and histograms are whole numbers, so they are exact
whatever is merged with what. Parts are merged in the order of the shards, so no figure depends on who counted what.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from sharding.errors import DataError
from sharding.histogram import EMPTY, Histogram

VALUE: Final = "value"
DECIBEL: Final = "dB"
CLASS: Final = "class"

PERCENTILES: Final = ("0.1", "1", "2", "5", "25", "50", "75", "95", "98", "99", "99.9")
"""Names of the percentiles that are kept."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Statistics of one band's values in its units."""

    count: int = 0
    """Values that were measured."""
    nodata: int = 0
    """Pixels without data: the stored number that means so, NaN, infinity. No other figure counts them."""
    mean: float = 0.0
    m2: float = 0.0
    """Sum of squared deviations from the mean."""
    minimum: float = float("inf")
    maximum: float = float("-inf")
    bin_width: float = 0.0
    """0 while nothing was counted."""
    histogram: Histogram = EMPTY
    """bin = floor(what / bin_width)."""
    bins_of: str = VALUE
    """What the bins count: `value`, `dB` (10 log10 of the value, where values are linear power) or `class`."""

    def __add__(self, other: Self) -> "Moments":
        if not self.bin_width or not other.bin_width:
            return self if self.bin_width else other
        if (self.bin_width, self.bins_of) != (other.bin_width, other.bins_of):
            raise DataError(
                f"statistics of one band count bins of {self.bin_width:g} ({self.bins_of}) in one place and of "
                f"{other.bin_width:g} ({other.bins_of}) in another; its values are not in the same units"
            )
        count = self.count + other.count
        share = other.count / count if count else 0.0
        delta = other.mean - self.mean
        return Moments(
            count=count,
            nodata=self.nodata + other.nodata,
            mean=self.mean + delta * share,
            m2=self.m2 + other.m2 + delta * delta * self.count * share,
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
            bin_width=self.bin_width,
            histogram=self.histogram + other.histogram,
            bins_of=self.bins_of,
        )


def merge(parts: Iterable[dict[str, Moments]]) -> dict[str, Moments]:
    """The moments of all parts together, by band, in the order given; holds one part at a time."""
    total: dict[str, Moments] = {}
    for part in parts:
        for band, moments in part.items():
            total[band] = total[band] + moments if band in total else moments
    return total


def percentiles_of(moments: Moments) -> dict[str, float]:
    """The percentiles by name, from the histogram: right to a bin, and never outside of the range.

    A rank between two values is interpolated linearly, as numpy does by default; values are taken to lie evenly
    spaced in their bin. Of classes it is the first class whose cumulative share reaches the percentage, exactly.
    """
    if not moments.count:
        return {}
    ranks = _Ranks(moments)
    found = {}
    for name in PERCENTILES:
        per_mille = round(10 * float(name))
        if moments.bins_of == CLASS:
            found[name] = ranks.class_at(-(-per_mille * moments.count // 1000) - 1)
        else:
            rank, rest = divmod(per_mille * (moments.count - 1), 1000)
            below = ranks.value_at(rank)
            found[name] = below + rest / 1000 * (ranks.value_at(rank + 1) - below) if rest else below
    return found


class _Ranks:
    """The values of a histogram in ascending order."""

    def __init__(self, moments: Moments) -> None:
        self._moments = moments
        self._numbers, self._counts = moments.histogram.numbers, moments.histogram.counts
        self._ends = np.cumsum(self._counts)

    def class_at(self, rank: int) -> float:
        return float(self._numbers[self._bin_at(rank)])

    def value_at(self, rank: int) -> float:
        moments, place = self._moments, self._bin_at(rank)
        count = int(self._counts[place])
        within = (rank - int(self._ends[place]) + count + 0.5) / count
        value = (int(self._numbers[place]) + within) * moments.bin_width
        if moments.bins_of == DECIBEL:
            value = 10.0 ** (value / 10.0)
        return min(max(value, moments.minimum), moments.maximum)

    def _bin_at(self, rank: int) -> int:
        return int(np.searchsorted(self._ends, rank, side="right"))
