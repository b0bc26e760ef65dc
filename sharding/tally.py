"""Counting the pixels of one array, sample after sample, fast enough to go along with the build.

A BigEarthNet pair has 109,000 pixels, so each pass over them counts: of numbers of up to 16 bits there is a table with
a place for each, of others the sums are taken by sample and only the histogram is a table.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sharding.histogram import EMPTY, Histogram
from sharding.moments import CLASS, DECIBEL, VALUE, Moments

BIN_WIDTHS: Final = {
    "DN": 10.0,
    "dB": 0.05,
    "linear": 0.05,
    "reflectance": 0.001,
    "m": 1.0,
    "index": 0.01,
    "class": 1.0,
}
"""By units. Linear power spans many orders of magnitude, so its bins are of its value in dB."""

_NO_POWER: Final = 1e-20
"""Power of 0 has no dB; it is counted at -200 dB."""
_TABLE: Final = 1 << 16
_HALF: Final = _TABLE // 2
_FLOAT16_UNIT: Final = 1 << 24
"""Every float16 is a whole multiple of 2^-24."""
_IN_CACHE: Final = 30_000
"""Pixels whose places in a table, 8 bytes each, stay in a core's cache of 512 kB."""
_BLAS_ALONE: Final = 8192
"""OpenBLAS starts threads for a scalar product of more than 10,000 numbers; a build has a process a core already."""
_CANCELLED: Final = 1e-3
"""Where the variance is a smaller share of the mean square than this, subtracting the two would cost digits."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What the stored numbers of an array mean; samples in which they mean the same are counted together."""

    units: str
    classes: bool
    dtype: np.dtype[Any]
    scale: float
    offset: float
    nodata: float | None

    @property
    def bin_width(self) -> float:
        """Of the histogram."""
        return BIN_WIDTHS["class" if self.classes else self.units]

    @property
    def bins_of(self) -> str:
        """What the histogram counts, as in `Moments`."""
        return CLASS if self.classes else DECIBEL if self.units == "linear" else VALUE

    def bins(self, stored: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """The bins of stored numbers; one that belongs on an edge is there, whatever 0.005 is in binary."""
        values = (stored + self.offset) * self.scale
        if self.bins_of == DECIBEL:
            values = 10.0 * np.log10(np.maximum(values, _NO_POWER))
        return np.floor(np.round(values / self.bin_width, 9)).astype(np.int64)

    def moments(
        self, *, count: int, nodata: int, mean: float, m2: float, minimum: float, maximum: float, histogram: Histogram
    ) -> Moments:
        """In units, of what was computed over stored numbers."""
        ends = sorted((end + self.offset) * self.scale for end in (minimum, maximum))
        return Moments(
            count=count,
            nodata=nodata,
            mean=(mean + self.offset) * self.scale if count else 0.0,
            m2=m2 * self.scale**2,
            minimum=ends[0] if count else float("inf"),
            maximum=ends[1] if count else float("-inf"),
            bin_width=self.bin_width,
            histogram=histogram,
            bins_of=self.bins_of,
        )


class Tally(ABC):
    """The pixels of one array, counted by band."""

    @abstractmethod
    def add(self, data: Array) -> None:
        """Count an array of shape (bands, height, width)."""

    @abstractmethod
    def moments(self) -> list[Moments]:
        """Of each band, over all that was added."""


def tally_of(meaning: Meaning, num_bands: int) -> Tally:
    """What counts an array of this meaning."""
    if meaning.dtype.itemsize <= 2:
        return _Codes(meaning, num_bands)
    return _Reals(meaning, num_bands)


class _Codes(Tally):
    """How often each bit pattern of 8 or 16 bits occurs."""

    def __init__(self, meaning: Meaning, num_bands: int) -> None:
        self._meaning = meaning
        self._code = np.dtype(f"u{meaning.dtype.itemsize}")
        num_codes = 256**meaning.dtype.itemsize
        self._num_bands = num_bands
        self._counts = np.zeros(num_bands * num_codes, np.int64)
        self._first = np.arange(num_bands)[:, None] * num_codes
        self._places = np.empty(0, np.int64)

    def add(self, data: Array) -> None:
        codes = np.ascontiguousarray(data).view(self._code).reshape(self._num_bands, -1)
        step = max(1, _IN_CACHE // codes.shape[1])
        for start in range(0, self._num_bands, step):
            part = codes[start : start + step]
            if part.size != self._places.size:
                self._places = np.empty(part.size, np.int64)
            np.add(part, self._first[start : start + step], out=self._places.reshape(part.shape))
            # Twice as fast as np.bincount, which converts to int64, looks for the range and allocates, each time.
            np.add.at(self._counts, self._places, 1)

    def moments(self) -> list[Moments]:
        return [self._of(counts) for counts in self._counts.reshape(self._num_bands, -1)]

    def _of(self, counts: npt.NDArray[np.int64]) -> Moments:
        codes = np.flatnonzero(counts)
        occurrences = counts[codes]
        stored = codes.astype(self._code).view(self._meaning.dtype).astype(np.float64)
        measured = np.isfinite(stored)
        if self._meaning.nodata is not None:
            measured &= stored != self._meaning.nodata
        nodata = int(occurrences[~measured].sum())
        stored, occurrences = stored[measured], occurrences[measured]
        if not len(stored):
            return self._meaning.moments(count=0, nodata=nodata, mean=0, m2=0, minimum=0, maximum=0, histogram=EMPTY)
        unit = _FLOAT16_UNIT if self._meaning.dtype.kind == "f" else 1
        count, total, squares = _whole_sums((stored * unit).astype(np.int64), occurrences)
        return self._meaning.moments(
            count=count,
            nodata=nodata,
            mean=total / (count * unit),
            m2=(count * squares - total * total) / (count * unit * unit),
            minimum=float(stored.min()),
            maximum=float(stored.max()),
            histogram=Histogram.of(self._meaning.bins(stored), occurrences),
        )


class _Reals(Tally):
    """Planes of numbers of which no table could list all."""

    def __init__(self, meaning: Meaning, num_bands: int) -> None:
        scratch = _Scratch()
        self._planes = [_Plane(meaning, scratch) for _ in range(num_bands)]

    def add(self, data: Array) -> None:
        for plane, stored in zip(self._planes, data, strict=True):
            plane.add(stored.reshape(-1))

    def moments(self) -> list[Moments]:
        return [plane.moments() for plane in self._planes]


class _Scratch:
    """Arrays of the length of a plane, the same for all bands so that they stay in a core's cache."""

    def __init__(self) -> None:
        self._make(0)

    def _make(self, size: int) -> None:
        self._reals = np.empty(size)
        self.scaled = np.empty(size, np.float32)
        self.whole = np.empty(size, np.int32)
        self.places = np.empty(size, np.int64)

    def reals(self, values: Array) -> npt.NDArray[np.float64]:
        """The values as float64; from now on all arrays have their length."""
        if values.size != len(self._reals):
            self._make(values.size)
        np.copyto(self._reals, values)
        return self._reals


class _Plane:
    """Sums and histogram of one band's stored numbers."""

    def __init__(self, meaning: Meaning, scratch: "_Scratch") -> None:
        self._meaning, self._scratch = meaning, scratch
        self._nodata = _in_type(meaning.nodata, meaning.dtype)
        self._is_plain = meaning.dtype == np.float32 and meaning.scale == 1.0 and meaning.offset == 0.0
        self._per_bin = np.float32(1.0 / meaning.bin_width)
        self._count = self._missing = 0
        self._mean = self._m2 = 0.0
        self._low, self._high = float("inf"), float("-inf")
        self._bins = np.zeros(_TABLE, np.int64)
        """By number of the bin, which wraps: the negative ones are the upper half. Of power by `_pattern`."""
        self._far: dict[int, int] = {}
        """Bins beyond the table."""

    def add(self, stored: Array) -> None:
        """Count a plane, given as one row."""
        values = stored
        if self._nodata is not None:
            kept = stored != self._nodata
            values = stored if kept.all() else stored[kept]
        reals = self._scratch.reals(values)
        total, squares = _sums(reals)
        if not np.isfinite(squares):
            values = values[np.isfinite(values)]
            reals = self._scratch.reals(values)
            total, squares = _sums(reals)
        self._missing += stored.size - values.size
        if values.size:
            self._add_sums(reals, total, squares)
            low, high = float(values.min()), float(values.max())
            self._low, self._high = min(self._low, low), max(self._high, high)
            self._add_bins(values, low, high)

    def _add_sums(self, reals: npt.NDArray[np.float64], total: float, squares: float) -> None:
        """Merge the sums of a plane; destroys `reals`."""
        size = len(reals)
        mean = total / size
        m2 = squares - total * mean
        if m2 < _CANCELLED * squares:
            reals -= mean
            rest, squares = _sums(reals)
            mean += rest / size
            m2 = max(squares - rest * rest / size, 0.0)
        count = self._count + size
        delta = mean - self._mean
        self._m2 += m2 + delta * delta * self._count * size / count
        self._mean += delta * size / count
        self._count = count

    def _add_bins(self, values: Array, low: float, high: float) -> None:
        meaning, places = self._meaning, self._scratch.places
        reach = max(abs((end + meaning.offset) * meaning.scale) for end in (low, high)) / meaning.bin_width
        if meaning.bins_of == DECIBEL:
            np.copyto(places, _pattern(values if self._is_plain else self._in_units(values)))
        elif reach >= _HALF - 1:
            bins, counts = np.unique(meaning.bins(values.astype(np.float64)), return_counts=True)
            for number, count in zip(bins.tolist(), counts.tolist(), strict=True):
                self._far[number] = self._far.get(number, 0) + count
            return
        elif self._is_plain:
            # In float32, in which 0.029 x 1000 is 29: a value that belongs on an edge is there.
            scaled, whole = self._scratch.scaled, self._scratch.whole
            np.multiply(values, self._per_bin, out=scaled)
            np.floor(scaled, out=scaled)
            np.copyto(whole, scaled, casting="unsafe")  # much faster than to int64 at once
            np.copyto(places, whole)
        else:
            np.copyto(places, meaning.bins(values.astype(np.float64)))
        np.add.at(self._bins, places, 1)

    def _in_units(self, values: Array) -> npt.NDArray[np.float32]:
        return ((values.astype(np.float64) + self._meaning.offset) * self._meaning.scale).astype(np.float32)

    def moments(self) -> Moments:
        """In units."""
        places = np.flatnonzero(self._bins)
        numbers = np.concatenate([self._numbers(places), np.array([*self._far], np.int64)])
        counts = np.concatenate([self._bins[places], np.array([*self._far.values()], np.int64)])
        return self._meaning.moments(
            count=self._count,
            nodata=self._missing,
            mean=self._mean,
            m2=self._m2,
            minimum=self._low,
            maximum=self._high,
            histogram=Histogram.of(numbers, counts),
        )

    def _numbers(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Of the bins at places of the table."""
        if self._meaning.bins_of != DECIBEL:
            return np.where(places < _HALF, places, places - _TABLE)
        middles = (places.astype(np.uint32) << 16 | 0x8000).view(np.float32).astype(np.float64)
        decibel = 10.0 * np.log10(np.maximum(middles, _NO_POWER))
        return np.floor(decibel / self._meaning.bin_width).astype(np.int64)


def _whole_sums(numbers: npt.NDArray[np.int64], times: npt.NDArray[np.int64]) -> tuple[int, int, int]:
    """Exactly: how many numbers there are, their sum, and the sum of their squares."""
    count = int(times.sum())
    largest = int(np.abs(numbers).max())
    if largest * largest * count < 2**63:
        weighted = numbers * times
        return count, int(weighted.sum()), int((weighted * numbers).sum())
    pairs = list(zip(numbers.tolist(), times.tolist(), strict=True))
    return count, sum(n * t for n, t in pairs), sum(n * n * t for n, t in pairs)


_ONES: Final = np.ones(_BLAS_ALONE)


def _sums(reals: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The sum, and the sum of squares."""
    total = squares = 0.0
    for start in range(0, len(reals), _BLAS_ALONE):
        part = reals[start : start + _BLAS_ALONE]
        total += float(part.dot(_ONES[: len(part)]))
        squares += float(part.dot(part))
    return total, squares


def _pattern(values: npt.NDArray[np.float32]) -> Array:
    """The upper 16 bits of float32: steps of at most 0.034 dB, without a logarithm for each pixel."""
    return np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16


def _in_type(nodata: float | None, dtype: np.dtype[Any]) -> Any:
    """The number that means no data as it is stored; a float that the type rounds is stored rounded."""
    if nodata is None or dtype.kind != "f":
        return nodata
    with np.errstate(over="ignore"):
        return dtype.type(nodata)
