"""A preallocated place for a batch: one array each, page-locked where copies to a GPU are to run by themselves."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sharding.manifest import ArraySpec


@dataclass(eq=False)
class Slot:
    """Room for `batch_size` samples."""

    arrays: dict[str, Tensor]
    """By array name: (batch_size, bands, height, width), stored type."""
    views: dict[str, npt.NDArray[Any]]
    """The same memory as numpy arrays."""
    address: npt.NDArray[np.uint64]
    """(batch_size, arrays): of each sample's planes."""
    in_use: list[torch.cuda.Event] = field(default_factory=list)
    """Events after which the copies to the device are done."""

    @classmethod
    def empty(cls, specs: Sequence[ArraySpec], batch_size: int, pin: bool) -> "Slot":
        """A slot of arrays that hold anything."""
        arrays = {
            spec.name: torch.empty(
                (batch_size, len(spec.bands), spec.height, spec.width),
                dtype=getattr(torch, spec.dtype),
                pin_memory=pin,
            )
            for spec in specs
        }
        views = {name: array.numpy() for name, array in arrays.items()}
        sample = np.arange(batch_size, dtype=np.uint64)
        columns = [view.ctypes.data + sample * np.uint64(view.strides[0]) for view in views.values()]
        return cls(arrays, views, np.ascontiguousarray(np.stack(columns, axis=1), np.uint64))

    def sample(self, row: int) -> dict[str, npt.NDArray[Any]]:
        """The planes of one sample, by array name."""
        return {name: view[row] for name, view in self.views.items()}
