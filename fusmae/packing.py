"""Where tokens lie when samples have different numbers of them: behind each other in one row, without padding.

Two orders: by modality (all samples' tokens of the first, of the second, ...), in which everything but self-attention
is done, and by sample (its tokens of each modality, then its global token), in which a sample's tokens are next to each
other. All numbers come from counts that are on the CPU; the device is not asked.

Shape legend: B samples, K modalities, R tokens of all samples and modalities, N patches of an image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fusmae.attention import Segments


@dataclass(frozen=True, eq=False)
class Crossing:
    """Who of one modality attends to what of the others; samples that lack one of them do not take part."""

    queries: Tensor
    """int64: tokens of the modality, in the order by modality."""
    own: Tensor
    """int64: the same, counted within the modality."""
    keys: Tensor
    """int64: tokens of the others, sample by sample."""
    segments: Segments


@dataclass(frozen=True, eq=False)
class Packing:
    """The tokens of a batch; orders and places on its device."""

    parts: dict[str, slice]
    """Where each modality lies in the order by modality."""
    patches: dict[str, Tensor]
    """int64: of each token of a modality, sample * N + patch."""
    crossings: dict[str, Crossing | None]
    """For each modality; None when no sample can attend to another modality."""
    decoder_crossings: dict[str, Crossing | None]
    """The same for the XAttnDecoder, which may see the global tokens: they lie behind all others."""
    everything: Crossing | None
    """The patches of all samples, behind each other, attend to all of their sample's tokens; None unless asked for."""
    to_samples: Tensor
    """int64: row of each token of the order by sample in the order by modality, the global tokens behind its end."""
    to_modalities: Tensor
    """int64: row of each token of the order by modality in that by sample."""
    global_tokens: Tensor
    """int64 (B,): rows of the global tokens in the order by sample; empty without."""
    samples: Segments
    """Lengths of the samples, a sample without any token left out."""
    all_patches_BN: Tensor
    """int64: the patches of each sample."""

    @property
    def names(self) -> tuple[str, ...]:
        """Modalities, in order."""
        return tuple(self.parts)


def pack(
    masks: dict[str, Tensor],
    counts_BK: Tensor,
    *,
    global_token: bool,
    decode_global_token: bool = False,
    decode_everything: bool = False,
) -> Packing:
    """The packing of the visible patches of (B, N) masks, true where hidden, with `counts_BK` of them (on the CPU).

    `decode_everything`: decoders first read the latents of all modalities.
    """
    counts = counts_BK
    batch, num = counts.shape
    first_mask_BN = next(iter(masks.values()))
    num_patches, device = first_mask_BN.shape[1], first_mask_BN.device

    def on_device(places: Tensor) -> Tensor:
        # From other than pinned memory the copy of many numbers waits for the device.
        places = places.pin_memory() if device.type == "cuda" else places
        return places.to(device, non_blocking=True)

    totals = counts.sum(0)
    base = totals.cumsum(0) - totals
    # By modality: where each sample's tokens begin; the global tokens as one modality more.
    first = torch.cat([counts.cumsum(0) - counts + base, totals.sum() + torch.arange(batch)[:, None]], 1)
    lengths = torch.cat([counts, torch.ones_like(counts[:, :1])], 1)
    seen = lengths[:, : num + global_token]
    start = (seen.flatten().cumsum(0) - seen.flatten()).unflatten(0, seen.shape)  # the same by sample
    sizes = tuple(size for size in seen.sum(1).tolist() if size)

    def crossing(asking: Tensor, own: Tensor, first_own: int, others: list[int]) -> Crossing | None:
        """Of samples with so many queries, numbered as `own` gives them."""
        takes_part = (asking > 0) & (lengths[:, others].sum(1) > 0)
        if not takes_part.any():
            return None
        theirs = lengths[takes_part][:, others]
        queries = _ranges(own[takes_part], asking[takes_part])
        keys = _ranges(first[takes_part][:, others].flatten(), theirs.flatten())
        segments = Segments(tuple(asking[takes_part].tolist()), tuple(theirs.sum(1).tolist()))
        return Crossing(on_device(queries), on_device(queries - first_own), on_device(keys), segments)

    def crossings(rest: list[int]) -> dict[str, Crossing | None]:
        found = {}
        for own, name in enumerate(masks):
            others = [other for other in range(num) if other != own]
            found[name] = crossing(counts[:, own], first[:, own], int(base[own]), [*others, *rest])
        return found

    rest = [num] if decode_global_token else []
    between = crossings([])
    everything = None
    if decode_everything:
        grids = torch.full((batch,), num_patches)
        everything = crossing(grids, torch.arange(batch) * num_patches, 0, [*range(num), *rest])
    return Packing(
        parts={name: slice(int(base[i]), int(base[i] + totals[i])) for i, name in enumerate(masks)},
        patches={name: visible_numbers(mask_BN, int(totals[i])) for i, (name, mask_BN) in enumerate(masks.items())},
        crossings=between,
        decoder_crossings=crossings(rest) if rest else between,
        everything=everything,
        to_samples=on_device(_ranges(first[:, : seen.shape[1]].flatten(), seen.flatten())),
        to_modalities=on_device(torch.cat([_ranges(start[:, i], counts[:, i]) for i in range(num)])),
        global_tokens=on_device(start[:, num] if global_token else torch.zeros(0, dtype=torch.int64)),
        samples=Segments(sizes, sizes),
        all_patches_BN=torch.arange(num_patches, device=device).expand(batch, -1),
    )


def visible_numbers(mask_BN: Tensor, total: int) -> Tensor:
    """Numbers of the false entries, in order: sorting keeps them first, and their number is known."""
    return mask_BN.flatten().to(torch.uint8).argsort(stable=True)[:total]


def _ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """start, start + 1, ... of each start, behind each other."""
    before = lengths.cumsum(0) - lengths
    return (starts - before).repeat_interleave(lengths) + torch.arange(int(lengths.sum()))
