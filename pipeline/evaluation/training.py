"""The samples of a split as training wants them: each as often as there are epochs, in an order of the seed's."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.frozen import FrozenModel


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """What one optimiser step is made of; batches run on across the end of an epoch."""

    batch: Any
    """`pipeline.stream.Batch` on the device; valid until the next step is asked for."""
    images: dict[str, "Tensor"]
    """Normalised images by modality, (B, C, S, S)."""
    valid: dict[str, "Tensor"]
    """(B, C) bool: which bands each sample has."""
    counts: "Tensor"
    """(B,) bool: false for what would belong to one epoch more, and for a sample that lacks a modality."""
    number: int
    """From 0."""
    num_steps: int
    ended_epoch: int
    """The epoch, counted from 1, whose last sample is in this step; else 0."""


def training_steps(
    frozen: "FrozenModel",
    split: str,
    *,
    batch_size: int,
    epochs: int,
    seed: int,
    flips: bool = False,
    riders: Collection[str] = (),
) -> Iterator[TrainingStep]:
    """Each sample of `split` exactly `epochs` times, in the order of the exact stream with this seed.

    A function of data set, split, seed and batch size alone. The last step may count fewer samples. Raises DataError
    when there is no such split.
    """
    import torch

    from fusmae.random import CounterRandom, Purpose
    from pipeline.stream.exact import Stream, StreamConfig
    from pipeline.transform import dihedral

    frozen.manifest.shards_of(split)
    num_samples = frozen.manifest.splits[split]
    data, size = frozen.data, min(batch_size, num_samples)
    config = StreamConfig(
        url=data.url,
        split=split,
        global_batch=size,
        seed=seed,
        slots=data.prefetch,
        window_gib=data.window_gib,
        groups=data.groups,
        **data.reading(),
    )
    num_steps = -(-epochs * num_samples // size)
    with Stream(config, riders=riders) as stream:
        for number, stored in enumerate(stream):
            if number == num_steps:
                break
            batch = stored.to(frozen.device)
            images, valid = frozen.transform(batch, None)
            if flips:
                draws = CounterRandom(seed, stored.epoch, stored.position)
                element = (draws.uniform(1, Purpose.FLIP)[:, 0] * 8).long().clamp_(max=7).to(frozen.device)
                images = {name: dihedral(image, element) for name, image in images.items()}
            complete = torch.stack([valid[name].any(dim=1) for name in frozen.given]).all(dim=0)
            before, after = number * size, min((number + 1) * size, epochs * num_samples)
            yield TrainingStep(
                batch=batch,
                images=images,
                valid=valid,
                counts=complete & (batch.epoch < epochs),
                number=number,
                num_steps=num_steps,
                ended_epoch=after // num_samples if after // num_samples > before // num_samples else 0,
            )
