"""Which patches the encoder sees.

Shape legend: B batch, N patches of an image, V visible of them, M = N - V masked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fusmae.config import MaskingStrategy, count_visible
from fusmae.random import CounterRandom, Purpose


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """How much is hidden, and whether all modalities hide the same."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    mask_ratio: float = 0.75
    """Share of each modality's patches that is hidden."""
    strategy: MaskingStrategy = "independent"
    """independent: positions are drawn for each modality. consistent: the same positions in all."""


class ModalityMask(NamedTuple):
    """The mask of one modality; each sample has its own positions and all have the same number of them."""

    ids_visible_BV: Tensor
    """int64: indices of the visible patches, ascending."""
    ids_masked_BM: Tensor
    """int64: indices of the masked patches, ascending."""
    mask_BN: Tensor
    """bool: true where masked."""


Masks = dict[str, ModalityMask]
"""The mask of each modality, by its name."""


def sample_masks(config: MaskingConfig, num_patches: int, modalities: Sequence[str], random: CounterRandom) -> Masks:
    """Masks for the samples of `random`; each depends on (seed, epoch, position) and nothing else.

    Every modality has the same exact number of visible patches, uniform over all sets of that size (Fus-MAE:
    75 % hidden, "uniformly across modalities"). Modality i draws from stream i of `Purpose.MASK`; under
    `consistent` all draw from stream 0. 32-bit words are ranked; equal words go by index, so that every
    device ranks alike.
    """
    num_visible = count_visible(config.mask_ratio, num_patches)
    masks: Masks = {}
    for number, name in enumerate(modalities):
        if config.strategy == "consistent" and number:
            masks[name] = masks[modalities[0]]
            continue
        ids_BN = random.permutation(num_patches, Purpose.MASK, stream=number)
        visible_BV = ids_BN[:, :num_visible].sort(dim=1).values
        masked_BM = ids_BN[:, num_visible:].sort(dim=1).values
        mask_BN = torch.ones_like(ids_BN, dtype=torch.bool).scatter_(1, visible_BV, False)
        masks[name] = ModalityMask(visible_BV, masked_BM, mask_BN)
    return masks
