"""Memory that training takes for activations, found by a forward pass without numbers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fusmae.config import FusMAEConfig
from fusmae.cross_scale_config import CrossScaleConfig
from fusmae.random import CounterRandom


class KeptBytes:
    """Counts what autograd keeps: each memory once, whatever its views, without what was there before."""

    def __init__(self, *known: Tensor) -> None:
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._kept: dict[int, torch.UntypedStorage] = {}

    @property
    def total(self) -> int:
        """Bytes kept so far."""
        return sum(storage.nbytes() for storage in self._kept.values())

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what is kept within."""

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known:
                self._kept[storage._cdata] = storage  # held, so that no other memory takes its place
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield


def activation_bytes(
    config: FusMAEConfig,
    batch: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    cross_scale: CrossScaleConfig | None = None,
) -> int:
    """Bytes that the backward pass of `batch` samples needs to be kept, beside weights and images.

    It is what `torch.autograd.graph.saved_tensors_hooks` sees of a model whose weights have `dtype`, all modalities
    given, on one rank. Nothing is computed and nothing allocated: tensors have shapes only. With `cross_scale` it is a
    `CrossScaleFusMAE`. Raises ValueError where the number of visible patches varies, and so the memory.
    """
    from fusmae.cross_scale import CrossScaleFusMAE
    from fusmae.model import FusMAE

    if config.varies:
        what = "modality_dropout" if config.modality_dropout else f"masking '{config.masking}'"
        raise ValueError(f"under {what} the memory varies with the masks; there is no one number")
    with torch.device("meta"):
        made = FusMAE(config) if cross_scale is None else CrossScaleFusMAE(config, cross_scale)
        model = made.to(dtype).train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = model.to_empty(device=device)
        size = config.image_size
        images = {m.name: torch.empty(batch, len(m.bands), size, size, device=device) for m in config.modalities}
        position_B = torch.arange(batch, device=device)
        kept = KeptBytes(*model.parameters(), *images.values())
        with kept.counting():
            model(images, CounterRandom(0, torch.zeros_like(position_B), position_B))
    return kept.total
