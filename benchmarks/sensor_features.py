"""Frozen features and band statistics of the samples of a split, for one sensor alone and for both.

A model with a modality a sensor is given the modalities that there are; one with both sensors in one modality is given
0, the mean, in place of the other's bands.
"""

from dataclasses import dataclass
from typing import Any, Final

from pipeline.errors import DataError
from sharding.bands import S1_BANDS, S2_BANDS

INPUTS: Final[dict[str, tuple[str, ...]]] = {"s1": S1_BANDS, "s2": S2_BANDS, "s1+s2": S1_BANDS + S2_BANDS}
"""Bands of each input that is studied."""


@dataclass(frozen=True, kw_only=True)
class SensorFeatures:
    """One split, by input."""

    encoder: dict[str, Any]
    """(samples, width)."""
    statistics: dict[str, Any]
    """Mean and standard deviation of each band, (samples, 2 x bands)."""
    labels: Any
    """(samples, classes), bool."""
    keys: tuple[str, ...]


def collect(frozen: Any, split: str, batch_size: int = 64) -> SensorFeatures:
    """Features of every sample of `split` with labels and a band of both sensors; DataError when there is none."""
    import torch

    from pipeline.features import colour_statistics

    encoder: dict[str, list[Any]] = {name: [] for name in INPUTS}
    statistics: dict[str, list[Any]] = {name: [] for name in INPUTS}
    labels, keys = [], []
    for batch, images, valid in frozen.batches(split, batch_size):
        kept = batch.labels.bool().any(dim=1)
        for name in ("s1", "s2"):
            _, there = of_bands(frozen.model.config, images, valid, INPUTS[name])
            kept &= torch.cat([*there.values()], dim=1).any(dim=1)
        if not kept.any():
            continue
        for name, bands in INPUTS.items():
            own, there = of_bands(frozen.model.config, images, valid, bands)
            own = {modality: image[kept] for modality, image in own.items()}
            with torch.inference_mode():
                encoder[name].append(frozen.model.features(own).float().cpu())
            parts = [colour_statistics(own[modality], there[modality][kept]) for modality in own]
            statistics[name].append(torch.cat(parts, dim=1).cpu())
        labels.append(batch.labels[kept].bool().cpu())
        keys += [key for key, is_kept in zip(batch.keys, kept.tolist(), strict=True) if is_kept]
    if not keys:
        raise DataError(f"the split '{split}' of {frozen.data.url} has no sample with labels and both sensors")
    return SensorFeatures(
        encoder={name: torch.cat(parts) for name, parts in encoder.items()},
        statistics={name: torch.cat(parts) for name, parts in statistics.items()},
        labels=torch.cat(labels),
        keys=tuple(keys),
    )


def of_bands(
    config: Any, images: dict[str, Any], valid: dict[str, Any], bands: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of images (B, C, S, S) and valid (B, C), the modalities with one of `bands`; other bands are 0 and not valid."""
    import torch

    own, there = {}, {}
    for modality in config.modalities:
        image, name = images[modality.name], modality.name
        is_given = torch.tensor([band in bands for band in modality.bands], device=image.device)
        if is_given.any():
            own[name], there[name] = image * is_given[:, None, None], valid[name] & is_given
    return own, there
