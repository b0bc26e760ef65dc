"""A batch of stored samples: what the stream yields and what goes to the device."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sharding.errors import ConfigError


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Samples of one rank, nothing shifted, scaled or filled: numbers as they lie in the shards.

    Its `arrays` lie in a slot of the stream and stay valid until the next batch is asked for; `copy()` keeps them.
    Copies to a CUDA device may still be under way then: `to` marks the slot, and it is not written again before
    they are done.
    """

    step: int
    """Number of the global batch, from 0 over all epochs."""
    keys: list[str]
    """The samples' keys."""
    sample_id: Tensor
    """int64 (b,): number of each sample in its split."""
    epoch: Tensor
    """int64 (b,): one batch may hold the end of an epoch and the start of the next."""
    position: Tensor
    """int64 (b,): position within the epoch; with the epoch, the key of all that is random about the sample."""
    arrays: dict[str, Tensor]
    """By the manifest's array names: (b, bands, height, width), stored type; absent bands are 0."""
    present: dict[str, Tensor]
    """By array: bool (b, bands), the bands that each sample has."""
    radiometric_offset: Tensor
    """float32 (b, arrays): to be added to the stored numbers of each array, in the manifest's order."""
    labels: Tensor
    """bool (b, labels), in the order of the manifest's vocabulary."""
    replaced: tuple[int, ...] = ()
    """Places of samples that are damaged, where another one of the split was given (`on_corrupt: skip`)."""
    wait_s: float = 0.0
    """Time that the consumer waited for this batch."""
    in_use: list["torch.cuda.Event"] = field(default_factory=list, repr=False)
    """Events after which the slot is free; shared with the slot."""

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The batch on `device`; with `non_blocking` the copy runs behind the caller, safely for the slot."""
        moved = self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        if non_blocking and torch.device(device).type == "cuda":
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(device))
            self.in_use.append(event)
        return moved

    def copy(self) -> "Batch":
        """A batch of its own memory, valid for ever."""
        return replace(self._map(Tensor.clone), keys=list(self.keys), in_use=[])

    def pin(self) -> "Batch":
        """The batch in page-locked memory, from which copies to CUDA run asynchronously."""
        return self._map(lambda tensor: tensor if tensor.is_pinned() else tensor.pin_memory())

    pin_memory = pin  # as torch's DataLoader calls it

    def split(self, num: int) -> list["Batch"]:
        """`num` micro-batches of equal size, views of this one, in order."""
        if num < 1 or len(self) % num:
            raise ConfigError(f"a batch of {len(self)} samples cannot be split into {num} equal micro-batches")
        size = len(self) // num
        return [self._slice(slice(i * size, (i + 1) * size)) for i in range(num)]

    def _slice(self, part: slice) -> "Batch":
        replaced = tuple(place - part.start for place in self.replaced if part.start <= place < part.stop)
        return replace(self._map(lambda tensor: tensor[part]), keys=self.keys[part], replaced=replaced)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            sample_id=change(self.sample_id),
            epoch=change(self.epoch),
            position=change(self.position),
            arrays={name: change(array) for name, array in self.arrays.items()},
            present={name: change(mask) for name, mask in self.present.items()},
            radiometric_offset=change(self.radiometric_offset),
            labels=change(self.labels),
        )
