"""What of a batch's patches the encoder gets, and what is asked of the decoders.

Shape legend: B batch, N patches of an image, V visible and Q predicted of them, E = P·P·C numbers of a patch, R tokens
of samples behind each other.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fusmae.config import FusMAEConfig
from fusmae.masking import (
    MaskingConfig,
    Masks,
    ModalityMask,
    sample_hidden_bands,
    sample_masks,
    sample_queries,
    sample_varying_masks,
)
from fusmae.packing import Packing, pack, visible_numbers
from fusmae.patch import gather_patches
from fusmae.random import CounterRandom, Purpose


class Hiding(NamedTuple):
    """Masks of the given modalities, and what follows from them."""

    masks: Masks
    queries: dict[str, Tensor] | None
    """(B, Q): the patches that are predicted; None: all, as their number varies."""
    packing: Packing | None
    """Where tokens lie when their numbers vary."""
    hidden_bands: dict[str, Tensor]
    """(B, C) bool: bands that are hidden everywhere."""

    def visible_ids(self, name: str) -> Tensor:
        """Patches (B, V) that the encoder sees of a modality, or (1, R) where their number varies."""
        mask = self.masks[name]
        if mask.ids_visible_BV is not None:
            return mask.ids_visible_BV
        assert self.packing is not None
        return self.packing.patches[name][None] % mask.mask_BN.shape[1]


def hide(
    config: FusMAEConfig, names: list[str], random: CounterRandom, *, training: bool, predict_all: bool = False
) -> Hiding:
    """Draw what is hidden of the modalities `names`; with `predict_all`, all that is hidden is predicted.

    It is drawn for all modalities of the model, so that a modality's mask does not depend on which others are given.
    """
    masking = MaskingConfig.of(config, training=training)
    hidden_bands = sample_hidden_bands(config, random) if config.masking == "band_group" else {}
    if masking.varies:
        varying = sample_varying_masks(masking, config.num_patches, config.modality_names, random)
        masks = {name: varying.masks[name] for name in names}
        counts = varying.counts_BK[:, [config.modality_names.index(name) for name in names]]
        packing = _packed(config, masks, counts)
        return Hiding({n: ModalityMask(None, None, mask) for n, mask in masks.items()}, None, packing, hidden_bands)
    drawn = sample_masks(masking, config.num_patches, config.modality_names, random)
    queries = {}
    for name in names:
        number = config.modality_names.index(name)
        num_masked = config.num_patches - config.num_visible
        num_predicted = num_masked if predict_all else config.num_predicted
        queries[name] = sample_queries(drawn[name], num_predicted, number, random)
    return Hiding({name: drawn[name] for name in names}, queries, None, hidden_bands)


def hide_given(config: FusMAEConfig, masks: dict[str, Tensor]) -> Hiding:
    """Hide what `masks`, (B, N) bool by given modality, say; all patches are predicted, the visible ones too.

    Raises ValueError where decoders take the same number of visible patches of all samples and theirs differ.
    """
    kept = {name: ModalityMask(None, None, mask_BN) for name, mask_BN in masks.items()}
    counts_BK = torch.stack([(~mask_BN).sum(1) for mask_BN in masks.values()], dim=1).cpu()
    if config.decoder_attention != "cross":
        return Hiding(kept, None, _packed(config, masks, counts_BK), {})
    if (counts_BK != counts_BK[:1]).any():
        raise ValueError("decoder_attention 'cross' takes masks that hide the same number of patches in all samples")
    queries = {}
    for (name, mask_BN), num_visible in zip(masks.items(), counts_BK[0].tolist(), strict=True):
        order_BN = mask_BN.to(torch.uint8).argsort(dim=1, stable=True)
        kept[name] = ModalityMask(order_BN[:, :num_visible], order_BN[:, num_visible:], mask_BN)
        # Here mask tokens see no other mask token, so that asking for more of them changes none.
        queries[name] = torch.arange(config.num_patches, device=mask_BN.device).expand_as(mask_BN)
    return Hiding(kept, queries, None, {})


def _packed(config: FusMAEConfig, masks: dict[str, Tensor], counts_BK: Tensor) -> Packing:
    return pack(
        masks,
        counts_BK,
        global_token=config.global_token,
        decode_global_token=config.decode_global_token,
        decode_everything=config.decoder_fusion == "multimae",
    )


def visible_contents(
    config: FusMAEConfig,
    patches: dict[str, Tensor],
    hiding: Hiding,
    shuffle: CounterRandom | None,
) -> dict[str, Tensor]:
    """The patches that the encoder gets: (B, V, E), or (1, R, E) where their number varies, by modality.

    With `shuffle`, those of each sample and modality are permuted among each other.
    """
    contents = {}
    for name, patches_BNE in patches.items():
        stream = config.modality_names.index(name)
        ids_BV = hiding.masks[name].ids_visible_BV
        if ids_BV is None:
            content = _packed_contents(name, patches_BNE, hiding, shuffle, stream)
        else:
            if shuffle is not None:
                ids_BV = ids_BV.gather(1, shuffle.permutation(ids_BV.shape[1], Purpose.SHUFFLE, stream))
            content = gather_patches(patches_BNE, ids_BV)
        if name in hiding.hidden_bands:
            hidden_BE = hiding.hidden_bands[name].repeat(1, patches_BNE.shape[-1] // hiding.hidden_bands[name].shape[1])
            if hiding.packing is None:
                content = content.masked_fill(hidden_BE[:, None], 0)
            else:
                sample_R = hiding.packing.patches[name] // patches_BNE.shape[1]
                content = content.masked_fill(hidden_BE[sample_R][None], 0)
        contents[name] = content
    return contents


def _packed_contents(
    name: str, patches_BNE: Tensor, hiding: Hiding, shuffle: CounterRandom | None, stream: int
) -> Tensor:
    assert hiding.packing is not None
    rows_R = hiding.packing.patches[name]
    if shuffle is not None:
        mask_BN, num_patches = hiding.masks[name].mask_BN, patches_BNE.shape[1]
        # Visible patches in a random order before hidden ones; of each sample as many as it has visible.
        words_BN = shuffle.words(num_patches, Purpose.SHUFFLE, stream).masked_fill(mask_BN, 1 << 32)
        order_BN = words_BN.argsort(dim=1, stable=True)
        order_BN = order_BN + num_patches * torch.arange(len(order_BN), device=order_BN.device)[:, None]
        place_N = torch.arange(num_patches, device=order_BN.device)
        is_behind_BN = place_N[None] >= (~mask_BN).sum(1, keepdim=True)
        rows_R = order_BN.flatten()[visible_numbers(is_behind_BN, len(rows_R))]
    return patches_BNE.flatten(0, 1)[rows_R][None]
