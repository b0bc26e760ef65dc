"""Which share of a mixture comes from which data set: exact whole numbers at every position, from weights alone.

How many of a mixture's first n samples are of which data set has a closed form: n is divided between the first and
the second half of the data sets, rounded to the nearest, and each half in the same way. All is done in whole numbers,
so nothing drifts. A count never falls as n grows, and differs from its exact share by at most half a sample for each
time that the list was halved: 0.5 for two data sets, 1 for four, 2 for sixteen, however long the run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from typing import Final

from sharding.errors import ConfigError

MIN_TEMPERATURE: Final = 0.1
"""Below it, all but the largest data set are rounded away."""
_WIDE: Final = Context(prec=40)
_ROUND: Final = Context(prec=16)


@dataclass(frozen=True)
class Shares:
    """The shares of a mixture: data set i gives `parts[i]` of every `sum(parts)` samples."""

    parts: tuple[int, ...]

    def __post_init__(self) -> None:
        assert self.parts and all(part > 0 for part in self.parts)

    @classmethod
    def of_weights(cls, weights: Sequence[float]) -> "Shares":
        """Shares in proportion to weights, which are taken as they are written: 0.1 is a tenth."""
        return cls(_whole([Fraction(str(weight)) for weight in weights]))

    @classmethod
    def of_sizes(cls, sizes: Sequence[int], temperature: float) -> "Shares":
        """Shares in proportion to size ** (1 / temperature): 1 is by size, infinity the same for all.

        Arivazhagan et al. 2019 (arXiv:1907.05019, temperature 5); the exponent 1 / temperature is the 0.7 of
        multilingual BERT and the alpha of XLM-R (Conneau et al. 2020, arXiv:1911.02116, 0.3). Decimal arithmetic,
        whose results are the same on every machine, as those of a C library's pow need not be.
        """
        if not temperature >= MIN_TEMPERATURE:
            raise ConfigError(
                f"the temperature is {temperature}; it must be at least {MIN_TEMPERATURE}: 1 mixes by size, "
                "larger ones favour small data sets"
            )
        exponent = _WIDE.divide(Decimal(1), Decimal(str(temperature)))
        powers = [_ROUND.plus(_WIDE.power(Decimal(size), exponent)) for size in sizes]
        return cls(_whole([Fraction(power) for power in powers]))

    @property
    def whole(self) -> int:
        """The sum of the parts."""
        return sum(self.parts)

    @property
    def fractions(self) -> list[float]:
        """Each data set's share of all samples."""
        return [part / self.whole for part in self.parts]

    @property
    def depth(self) -> int:
        """How often the list is halved until each data set stands alone; twice the largest deviation of a count."""
        return (len(self.parts) - 1).bit_length()

    def divide(self, total: int) -> list[int]:
        """How many of the first `total` samples are of which data set."""
        return _divide(total, self.parts)

    def reach(self, number: int, global_batch: int) -> tuple[int, int]:
        """The slots [first, last) of a global batch that data set `number` can ever have, whatever the batch.

        A batch's boundary between two data sets lies where their shares meet, give or take the deviations of the
        counts on its left, of which there is one for each halving, at the batch's start and at its end.
        """
        play = self.depth * (self.depth + 1) // 2
        left, right = sum(self.parts[:number]), sum(self.parts[: number + 1])
        first = left * global_batch // self.whole - play if left else 0
        last = -(-right * global_batch // self.whole) + play if right < self.whole else global_batch
        return max(first, 0), min(last, global_batch)


def _divide(total: int, parts: Sequence[int]) -> list[int]:
    if len(parts) == 1:
        return [total]
    half = len(parts) // 2
    whole = sum(parts)
    left = (2 * total * sum(parts[:half]) + whole) // (2 * whole)
    return _divide(left, parts[:half]) + _divide(total - left, parts[half:])


def _whole(weights: Sequence[Fraction]) -> tuple[int, ...]:
    """The smallest whole numbers in the same proportions."""
    denominator = math.lcm(*(weight.denominator for weight in weights))
    parts = [int(weight * denominator) for weight in weights]
    divisor = math.gcd(*parts)
    return tuple(part // divisor for part in parts)
