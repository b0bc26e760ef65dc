"""A batch of several data sets: one ordinary batch for each, since their arrays may differ in bands and pixels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from pipeline.stream.batch import Batch
from sharding.errors import ConfigError

MAX_SAMPLES: Final = 1 << 32
"""Of one data set: above a position within an epoch stands the number of the data set."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MixedBatch:
    """Samples of one rank from a mixture, in slots 0 to len - 1, of which each data set has some.

    As with `Batch`, the arrays stay valid until the next batch is asked for; `copy()` keeps them.
    """

    step: int
    """Number of the global batch, from 0."""
    names: tuple[str, ...]
    """The data set of each part; sets without a sample in this batch have no part."""
    numbers: tuple[int, ...]
    """The place of each part's data set in the mixture."""
    parts: tuple[Batch, ...]
    """In the order of the mixture; none is empty."""
    rows: tuple[Tensor, ...]
    """int64: the slots of each part's samples, rising; they stay on the CPU."""
    wait_s: float = 0.0
    """Time that the consumer waited for this batch."""

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def keys(self) -> list[str]:
        """The samples' keys by slot, behind the name of their data set: `NAME/KEY`."""
        keys = [f"{name}/{key}" for name, part in zip(self.names, self.parts, strict=True) for key in part.keys]
        return [keys[place] for place in self._places().tolist()]

    @property
    def draw_keys(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """By part, int64 (b,) each: epoch and position, which key all that is random about a sample.

        The position is the one within the epoch of the sample's own data set, with that set's number in the bits
        above 32: so no two data sets share their random draws.
        """
        return tuple(
            (part.epoch, part.position + number * MAX_SAMPLES)
            for number, part in zip(self.numbers, self.parts, strict=True)
        )

    @property
    def epoch(self) -> Tensor:
        """int64 (b,): the epoch of each sample in its own data set."""
        return self.join([epoch for epoch, _ in self.draw_keys])

    @property
    def position(self) -> Tensor:
        """int64 (b,): by slot, the positions of `draw_keys`."""
        return self.join([position for _, position in self.draw_keys])

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """One tensor of all samples by slot, from one of each part."""
        joined, places = torch.cat(list(tensors)), self._places()
        is_joined = bool((places == torch.arange(len(places))).all())
        return joined if is_joined else joined[places.to(joined.device, non_blocking=True)]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "MixedBatch":
        """The batch on `device`; with `non_blocking` the copy runs behind the caller, safely for the slots."""
        return self._map(lambda part: part.to(device, non_blocking=non_blocking))

    def copy(self) -> "MixedBatch":
        """A batch of its own memory, valid for ever."""
        return self._map(Batch.copy)

    def pin(self) -> "MixedBatch":
        """The batch in page-locked memory, from which copies to CUDA run asynchronously."""
        return self._map(Batch.pin)

    def split(self, num: int) -> list["MixedBatch"]:
        """`num` micro-batches of equal size, each a stretch of the slots, views of this one, in order."""
        if num < 1 or len(self) % num:
            raise ConfigError(f"a batch of {len(self)} samples cannot be split into {num} equal micro-batches")
        size = len(self) // num
        return [self._stretch(i * size, (i + 1) * size) for i in range(num)]

    def _stretch(self, first: int, last: int) -> "MixedBatch":
        kept = []
        for place, rows in enumerate(self.rows):
            begin, end = torch.searchsorted(rows, torch.tensor([first, last])).tolist()
            if begin < end:
                kept.append((place, slice(begin, end)))
        return replace(
            self,
            names=tuple(self.names[place] for place, _ in kept),
            numbers=tuple(self.numbers[place] for place, _ in kept),
            parts=tuple(self.parts[place]._slice(own) for place, own in kept),
            rows=tuple(self.rows[place][own] - first for place, own in kept),
        )

    def _places(self) -> Tensor:
        """For each slot, the place of its sample when the parts are laid end to end."""
        return torch.cat(self.rows).argsort()

    def _map(self, change: Callable[[Batch], Batch]) -> "MixedBatch":
        return replace(self, parts=tuple(change(part) for part in self.parts))
