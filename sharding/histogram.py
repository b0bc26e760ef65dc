"""How many values lie in which bin: two arrays that are merged, stored and compared exactly."""

import base64
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

Whole = npt.NDArray[np.int64]
_PACKED: Final = np.dtype("<i8")


@dataclass(frozen=True, eq=False)
class Histogram:
    """Bins that are not empty, by ascending number; iterates over pairs of number and count."""

    numbers: Whole
    counts: Whole

    @classmethod
    def of(cls, numbers: npt.ArrayLike, counts: npt.ArrayLike) -> Self:
        """From bins in any order, the same one as often as it comes."""
        given, times = np.asarray(numbers, np.int64), np.asarray(counts, np.int64)
        order = np.argsort(given, kind="stable")
        given, times = given[order], times[order]
        starts = np.flatnonzero(np.diff(given, prepend=given[:1] - 1))
        return cls(given[starts], np.add.reduceat(times, starts) if len(starts) else times)

    @classmethod
    def of_pairs(cls, pairs: Iterable[Iterable[int]]) -> Self:
        """From pairs of number and count, as JSON has them; ValueError or TypeError when they are none."""
        listed = [(number, count) for number, count in pairs]
        return cls.of([number for number, _ in listed], [count for _, count in listed])

    @classmethod
    def unpack(cls, packed: str) -> Self:
        """Undoes `pack`; ValueError or TypeError when it is something else."""
        both = np.frombuffer(base64.b64decode(packed, validate=True), _PACKED).astype(np.int64).reshape(2, -1)
        return cls(both[0], both[1])

    def pack(self) -> str:
        """As text: base64 of the numbers, then the counts, as int64."""
        return base64.b64encode(np.stack([self.numbers, self.counts]).astype(_PACKED).tobytes()).decode()

    def pairs(self) -> list[list[int]]:
        """As JSON has them."""
        listed: list[list[int]] = np.stack([self.numbers, self.counts], axis=1).tolist()
        return listed

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.numbers.tolist(), self.counts.tolist(), strict=True)

    def __len__(self) -> int:
        return len(self.numbers)

    def __add__(self, other: Self) -> "Histogram":
        return Histogram.of(np.concatenate([self.numbers, other.numbers]), np.concatenate([self.counts, other.counts]))

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return np.array_equal(self.numbers, other.numbers) and np.array_equal(self.counts, other.counts)

    def __hash__(self) -> int:
        return hash((self.numbers.tobytes(), self.counts.tobytes()))


EMPTY: Final = Histogram.of([], [])
