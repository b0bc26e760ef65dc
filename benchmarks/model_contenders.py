"""Models with a batch of their own, ready to be timed, for `benchmarks.model` and `benchmarks.gpu`.

Images are random: the time of a step does not depend on what is in them. Masks are drawn within the step, by ours from
counters (the same masks in every step and for every backend), by the rivals from torch's generator.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.model_rivals import NaiveFusMAE, TimmBlockMAE, equal_flops_visible
from fusmae import CounterRandom, FusMAE, FusMAEConfig
from fusmae.memory import KeptBytes

TIMM, NAIVE = "timm-block MAE", "naive Fus-MAE"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model, a batch for it and what a step costs."""

    model: nn.Module
    loss: Callable[[Any], Tensor]
    """The forward pass on the batch of the model, or of what wraps it."""
    features: Callable[[], Tensor]
    """Features of one pair, nothing being masked."""
    batch: int
    train_flops: int
    """Operations of a training step a sample: three times the forward pass. Of the naive model: those of ours, so that
    what it does beyond them is waste."""


def make_ours(config: FusMAEConfig, batch: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Contender:
    model = _build(lambda: FusMAE(config), device, dtype)
    images = _images(config, batch, device)
    random = CounterRandom(0, torch.zeros(batch, dtype=torch.int64), torch.arange(batch)).to(device)
    one = {name: image_BCHW[:1] for name, image_BCHW in images.items()}
    return Contender(
        model=model,
        loss=lambda call: call(images, random).loss,
        features=lambda: model.features(one),
        batch=batch,
        train_flops=model.train_flops(),
    )


def make_timm_mae(
    config: FusMAEConfig, batch: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> Contender:
    num_visible, forward_flops = equal_flops_visible(config)
    model = _build(lambda: TimmBlockMAE(config, num_visible), device, dtype)
    image_BCHW = torch.cat([*_images(config, batch, device).values()], dim=1)
    return Contender(
        model=model,
        loss=lambda call: call(image_BCHW),
        features=lambda: model.features(image_BCHW[:1]),
        batch=batch,
        train_flops=3 * forward_flops,
    )


def make_naive(config: FusMAEConfig, batch: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Contender:
    model = _build(lambda: NaiveFusMAE(config), device, dtype)
    images = _images(config, batch, device)
    one = {name: image_BCHW[:1] for name, image_BCHW in images.items()}
    with torch.device("meta"):
        train_flops = FusMAE(config).train_flops()
    return Contender(
        model=model,
        loss=lambda call: call(images),
        features=lambda: model.features(one),
        batch=batch,
        train_flops=train_flops,
    )


def activation_bytes(contender: Contender) -> int:
    """Bytes that a forward pass keeps for the backward pass, each storage counted once, weights not."""
    kept = KeptBytes(*contender.model.parameters(), *contender.model.buffers())
    with kept.counting():
        contender.loss(contender.model)
    return kept.total


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Torch's CPU threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def free_memory(device: torch.device) -> None:
    """Give back what the last contender held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _build(make: Callable[[], Any], device: torch.device, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    with device:
        return make().to(dtype).train()


def _images(config: FusMAEConfig, batch: int, device: torch.device) -> dict[str, Tensor]:
    torch.manual_seed(1)
    size = config.image_size
    return {m.name: torch.randn(batch, len(m.bands), size, size, device=device) for m in config.modalities}
