"""Copies of a training state in host memory, so that it can be written while training goes on."""

import copy
from collections.abc import Iterator
from typing import Any


class HostCopies:
    """Copies states to the host, into memory that is kept from one snapshot to the next.

    The memory is page-locked where a tensor lies on a GPU. A copy is good until the next `begin`.
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[Any, ...], list[Any]] = {}
        self._taken: dict[tuple[Any, ...], int] = {}
        self._devices: set[Any] = set()

    def begin(self) -> None:
        """Start a snapshot: what earlier ones hold may be written over."""
        self._taken.clear()

    def __call__(self, state: Any) -> Any:
        """A copy of `state` that shares nothing with it; its tensors are there after `wait`."""
        import torch

        tensors = {id(tensor): tensor for tensor in _tensors(state)}
        with torch.no_grad():
            copies: dict[int, Any] = {key: self._copy(tensor) for key, tensor in tensors.items()}
        return copy.deepcopy(state, copies)

    def wait(self) -> None:
        """Wait until the devices have copied."""
        import torch

        for device in self._devices:
            torch.cuda.current_stream(device).synchronize()
        self._devices.clear()

    @property
    def nbytes(self) -> int:
        """Host memory that is held."""
        return sum(tensor.nbytes for tensors in self._memory.values() for tensor in tensors)

    def _copy(self, tensor: Any) -> Any:
        import torch

        is_cuda = tensor.device.type == "cuda"
        key = (tuple(tensor.shape), tensor.dtype, is_cuda)
        number = self._taken.get(key, 0)
        self._taken[key] = number + 1
        kept = self._memory.setdefault(key, [])
        if number == len(kept):
            kept.append(torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=is_cuda))
        if is_cuda:
            self._devices.add(tensor.device)
        return kept[number].copy_(tensor.detach(), non_blocking=True)


def _tensors(state: Any) -> Iterator[Any]:
    import torch

    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value)
