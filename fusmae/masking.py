"""Which patches the encoder sees.

Each mask is a function of (seed, epoch, position) alone. What draws from which numbers is part of the format: a change
would give resumed runs other masks.

- `independent`: each modality has the same exact number of visible patches, uniform over all sets of that size
  (Fus-MAE: 75 % hidden, "uniformly across modalities"). Modality i draws from stream i of `Purpose.MASK`.
- `consistent`: all modalities draw from stream 0.
- `disjoint`: one permutation, from stream 0; modality i sees its i-th part (CSMAE).
- `union`: one permutation of the patches of all modalities together, from stream 0; its beginning is visible.
- `dirichlet`: the modalities' shares of all visible patches are uniform over the simplex, Dirichlet(1) as in MultiMAE;
  numbers are rounded to the nearest with the right sum (largest remainders, then the earlier modality), and what does
  not fit into a modality goes to the earliest with room. Positions as `independent`.
- `modality`: a share of the samples hides one modality, drawn uniformly; the others get its patches in equal parts, the
  earlier ones the remainder. Positions as `independent`.
- `band_group`: `independent`, and of each modality with several groups of bands one is drawn, from stream i of
  `Purpose.BAND_GROUP`, that is hidden in the visible patches too.

Under `union`, `dirichlet` and `modality` the number of visible patches of a modality varies, that of all together does
not. `modality_dropout` hides all of one modality besides, drawn uniformly, in a share of the samples; nothing takes its
place, and it is not done where nothing else is visible.

Shape legend: B batch, K modalities, N patches of an image, V visible of them, M = N - V masked, C bands.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fusmae.config import VARYING, FusMAEConfig, MaskingStrategy, count_visible
from fusmae.random import CounterRandom, Purpose


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """How much is hidden, and how the modalities' masks belong together."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    mask_ratio: float = 0.75
    """Share of each modality's patches that is hidden."""
    strategy: MaskingStrategy = "independent"
    """See `fusmae.masking`."""
    modality_mask_ratio: float = 0.25
    """Share of samples that hide a whole modality under `modality`."""
    modality_dropout: float = 0.0
    """Share of samples that hide one more modality."""

    @classmethod
    def of(cls, config: FusMAEConfig, *, training: bool) -> "MaskingConfig":
        """That of a model; dropout is for training."""
        return cls(
            mask_ratio=config.mask_ratio,
            strategy=config.masking,
            modality_mask_ratio=config.modality_mask_ratio,
            modality_dropout=config.modality_dropout if training else 0.0,
        )

    @property
    def varies(self) -> bool:
        """Whether samples may differ in their numbers of visible patches."""
        return self.strategy in VARYING or self.modality_dropout > 0


class ModalityMask(NamedTuple):
    """The mask of one modality; each sample has its own positions.

    Indices are there when all samples have the same number of them.
    """

    ids_visible_BV: Tensor | None
    """int64: indices of the visible patches, ascending."""
    ids_masked_BM: Tensor | None
    """int64: indices of the masked patches, ascending."""
    mask_BN: Tensor
    """bool: true where masked."""


Masks = dict[str, ModalityMask]
"""The mask of each modality, by its name."""


class VaryingMasks(NamedTuple):
    """Masks whose numbers of visible patches differ between samples."""

    masks: dict[str, Tensor]
    """(B, N) bool by modality: true where masked."""
    counts_BK: Tensor
    """int64 on the CPU: visible patches, the modalities in order."""


def sample_masks(config: MaskingConfig, num_patches: int, modalities: Sequence[str], random: CounterRandom) -> Masks:
    """Masks for the samples of `random`, under a strategy with a fixed number of visible patches.

    32-bit words are ranked; equal words go by index, so that every device ranks alike.
    """
    num_visible = count_visible(config.mask_ratio, num_patches)
    masks: Masks = {}
    for number, name in enumerate(modalities):
        if config.strategy == "consistent" and number:
            masks[name] = masks[modalities[0]]
            continue
        if config.strategy == "disjoint":
            ids_BN = random.permutation(num_patches, Purpose.MASK).roll(-number * num_visible, dims=1)
        else:
            ids_BN = random.permutation(num_patches, Purpose.MASK, stream=number)
        visible_BV = ids_BN[:, :num_visible].sort(dim=1).values
        masked_BM = ids_BN[:, num_visible:].sort(dim=1).values
        mask_BN = torch.ones_like(ids_BN, dtype=torch.bool).scatter_(1, visible_BV, False)
        masks[name] = ModalityMask(visible_BV, masked_BM, mask_BN)
    return masks


def sample_varying_masks(
    config: MaskingConfig, num_patches: int, modalities: Sequence[str], random: CounterRandom
) -> VaryingMasks:
    """Masks for the samples of `random` under any strategy; their numbers are drawn on the CPU, nothing waits."""
    num_visible, num = count_visible(config.mask_ratio, num_patches), len(modalities)
    if config.strategy == "union":
        # Drawn twice, so that the CPU knows the numbers without asking the device.
        visible_BKN = _union(num, num_patches, num * num_visible, random.on_cpu)
        counts_BK = visible_BKN.sum(2)
        dropped_BK = _dropped(config, counts_BK, random.on_cpu)
        visible_BKN = _union(num, num_patches, num * num_visible, random)
        visible_BKN &= ~dropped_BK.to(visible_BKN.device, non_blocking=True)[:, :, None]
        masks = {name: ~visible_BKN[:, number] for number, name in enumerate(modalities)}
        return VaryingMasks(masks, counts_BK.masked_fill(dropped_BK, 0))
    if config.strategy in ("dirichlet", "modality"):
        draw = _dirichlet_counts if config.strategy == "dirichlet" else _modality_counts
        counts_BK = draw(config, num, num_patches, num * num_visible, random.on_cpu)
    else:
        counts_BK = torch.full((random.batch_size, num), num_visible)
    counts_BK = counts_BK.masked_fill(_dropped(config, counts_BK, random.on_cpu), 0)
    on_device_BK = counts_BK.to(random.position_B.device, non_blocking=True)
    masks = {}
    for number, name in enumerate(modalities):
        stream = 0 if config.strategy in ("consistent", "disjoint") else number
        ids_BN = random.permutation(num_patches, Purpose.MASK, stream=stream)
        if config.strategy == "disjoint":
            ids_BN = ids_BN.roll(-number * num_visible, dims=1)
        masks[name] = _ranks(ids_BN) >= on_device_BK[:, number, None]
    return VaryingMasks(masks, counts_BK)


def sample_queries(mask: ModalityMask, num_predicted: int, stream: int, random: CounterRandom) -> Tensor:
    """(B, Q) int64, ascending: the masked patches that are predicted, drawn from all of them."""
    assert mask.ids_masked_BM is not None
    num_masked = mask.ids_masked_BM.shape[1]
    if num_predicted == num_masked:
        return mask.ids_masked_BM
    chosen_BQ = random.permutation(num_masked, Purpose.QUERIES, stream)[:, :num_predicted].sort(dim=1).values
    return mask.ids_masked_BM.gather(1, chosen_BQ)


def sample_hidden_bands(config: FusMAEConfig, random: CounterRandom) -> dict[str, Tensor]:
    """(B, C) bool by modality that has several groups of bands: the group that `band_group` hides."""
    hidden = {}
    for number, modality in enumerate(config.modalities):
        groups = modality.group_indices
        if len(groups) < 2:
            continue
        group_C = torch.empty(len(modality.bands), dtype=torch.int64)
        for index, channels in enumerate(groups):
            group_C[list(channels)] = index
        chosen_B1 = _below(random.uniform(1, Purpose.BAND_GROUP, number), len(groups))
        hidden[modality.name] = group_C.to(chosen_B1.device, non_blocking=True)[None] == chosen_B1
    return hidden


def _union(num: int, num_patches: int, num_visible: int, random: CounterRandom) -> Tensor:
    """(B, K, N) bool: true where visible."""
    ids_BU = random.permutation(num * num_patches, Purpose.MASK)
    return (_ranks(ids_BU) < num_visible).unflatten(1, (num, num_patches))


def _ranks(ids_BN: Tensor) -> Tensor:
    """The inverse of each permutation."""
    places_BN = torch.arange(ids_BN.shape[1], device=ids_BN.device).expand_as(ids_BN)
    return torch.empty_like(ids_BN).scatter_(1, ids_BN, places_BN)


def _dirichlet_counts(
    config: MaskingConfig, num: int, num_patches: int, num_visible: int, random: CounterRandom
) -> Tensor:
    # Exponential numbers over their sum are uniform over the simplex. In float64, on the CPU: devices round alike.
    weights_BK = -torch.log1p(-random.uniform(num, Purpose.COUNTS).double())
    wanted_BK = num_visible * weights_BK / weights_BK.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    counts_BK = wanted_BK.floor().long()
    missing_B1 = num_visible - counts_BK.sum(1, keepdim=True)
    order_BK = (wanted_BK - counts_BK).argsort(dim=1, descending=True, stable=True)
    counts_BK += _ranks(order_BK) < missing_B1
    return _with_room(counts_BK, num_patches)


def _modality_counts(
    config: MaskingConfig, num: int, num_patches: int, num_visible: int, random: CounterRandom
) -> Tensor:
    hides_B2 = random.uniform(2, Purpose.COUNTS)
    hidden_B1 = _below(hides_B2[:, 1:], num)
    modality_K = torch.arange(num)[None]
    is_hidden_BK = (modality_K == hidden_B1) & (hides_B2[:, :1] < config.modality_mask_ratio)
    share, remainder = divmod(num_visible, num - 1)
    place_BK = modality_K - (modality_K > hidden_B1).long()  # among the others
    moved_BK = torch.where(is_hidden_BK, 0, share + (place_BK < remainder).long())
    return torch.where(is_hidden_BK.any(1, keepdim=True), moved_BK, num_visible // num)


def _with_room(counts_BK: Tensor, num_patches: int) -> Tensor:
    """What is above `num_patches` goes to the earliest modality with room."""
    over_B = (counts_BK - num_patches).clamp(min=0).sum(1)
    counts_BK = counts_BK.clamp(max=num_patches)
    for number in range(counts_BK.shape[1]):
        added_B = torch.minimum(num_patches - counts_BK[:, number], over_B)
        counts_BK[:, number] += added_B
        over_B = over_B - added_B
    return counts_BK


def _dropped(config: MaskingConfig, counts_BK: Tensor, random: CounterRandom) -> Tensor:
    """(B, K) bool: the modality that dropout hides; none where nothing else is visible."""
    num = counts_BK.shape[1]
    drops_B2 = random.uniform(2, Purpose.DROPOUT)
    is_dropped_BK = torch.arange(num)[None] == _below(drops_B2[:, 1:], num)
    is_dropped_BK &= drops_B2[:, :1] < config.modality_dropout
    return is_dropped_BK & (counts_BK.masked_fill(is_dropped_BK, 0).sum(1, keepdim=True) > 0)


def _below(uniform: Tensor, num: int) -> Tensor:
    """Integers uniform in [0, num)."""
    return (uniform * num).long().clamp_(max=num - 1)
