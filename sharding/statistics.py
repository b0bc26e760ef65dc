"""Mean, spread and range of each band, in float64, mergeable: parts of a data set can be counted apart.

Merging is Chan, Golub & LeVeque's (1983); parts are merged in the order of the shards, so the figures do not depend on
who counted what.
"""

from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from sharding.manifest import BandStatistics
from sharding.sources.base import Sample


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Count, mean, sum of squared deviations and range of one band's values in its units."""

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    minimum: float = float("inf")
    maximum: float = float("-inf")

    def __add__(self, other: Self) -> "Moments":
        if not self.count or not other.count:
            filled = self if self.count else other
            return Moments(**asdict(filled))
        count = self.count + other.count
        delta = other.mean - self.mean
        return Moments(
            count=count,
            mean=self.mean + delta * other.count / count,
            m2=self.m2 + other.m2 + delta * delta * self.count * other.count / count,
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
        )


def moments_of(values: np.ndarray[Any, Any]) -> Moments:
    """The moments of an array of any shape."""
    values = values.astype(np.float64, copy=False)
    mean = float(values.mean())
    return Moments(
        count=values.size,
        mean=mean,
        m2=float(np.square(values - mean).sum()),
        minimum=float(values.min()),
        maximum=float(values.max()),
    )


def sample_moments(sample: Sample) -> dict[str, Moments]:
    """The moments of each band of a sample: (stored number + radiometric offset) x scale."""
    return {
        band: moments_of((plane.astype(np.float64) + array.radiometric_offset) * array.scale)
        for array in sample.arrays.values()
        for band, plane in zip(array.bands, array.data, strict=True)
    }


def merge(parts: list[dict[str, Moments]]) -> dict[str, Moments]:
    """The moments of all parts together, in the order given."""
    total: dict[str, Moments] = {}
    for part in parts:
        for band, moments in part.items():
            total[band] = total.get(band, Moments()) + moments
    return total


def band_statistics(moments: Moments) -> BandStatistics:
    """As the manifest keeps them: 12 significant digits, for the last bits of a sum differ between processors."""
    return BandStatistics(
        count=moments.count,
        mean=_rounded(moments.mean),
        std=_rounded((moments.m2 / moments.count) ** 0.5),
        minimum=_rounded(moments.minimum),
        maximum=_rounded(moments.maximum),
    )


def _rounded(value: float) -> float:
    return float(f"{value:.12g}")
