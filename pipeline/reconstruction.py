"""What the loss is worth: masked patches predicted by the model, by the bands' means, and without places.

A loss alone says little. Beside it stand three that need no learning of structure: predicting each band's mean, the
same model with its visible patches shuffled over their positions, and one of the same form that is not trained. Masks
come from a fixed seed, so the figures of two checkpoints can be compared.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.untrained import untrained_twin

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.frozen import FrozenModel

COMMON_SPLITS: Final = ("val", "validation", "test")
_PANELS: Final = {
    "s1": ("Sentinel-1 VV", ("VV",)),
    "s2": ("Sentinel-2 true colour (B04, B03, B02)", ("B04", "B03", "B02")),
}
"""What a picture shows of a modality; where these are not there, its first band that is."""


@dataclass(frozen=True, kw_only=True)
class ReconstructionSettings:
    """On what the reconstruction is measured."""

    splits: tuple[str, ...] = ()
    """Splits to measure; empty: the split trained on, and those called val, validation or test."""
    seed: int = 0
    """Seed of the masks."""
    batch_size: int = 64
    """Samples of one forward pass."""
    pictures: int = 4
    """Samples whose reconstruction is stored for the report."""
    picture_split: str = ""
    """Split to take them from; empty: test where there is one, else the last one measured."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.pictures < 0 or self.seed < 0:
            raise ConfigError(
                f"reconstruction.batch_size = {self.batch_size} must be at least 1, "
                f"reconstruction.pictures = {self.pictures} and reconstruction.seed = {self.seed} at least 0"
            )


def measure(frozen: "FrozenModel", settings: ReconstructionSettings, untrained_seed: int) -> dict[str, Any]:
    """Losses by split, as they are printed and stored; DataError names a split that does not exist.

    Of the modalities of which the data set has a band; the total is over these.
    """
    splits = settings.splits or tuple(
        dict.fromkeys((frozen.data.split, *(name for name in COMMON_SPLITS if name in frozen.manifest.splits)))
    )
    for split in splits:
        frozen.manifest.shards_of(split)
    twin = untrained_twin(frozen.model, untrained_seed)
    return {
        "seed": settings.seed,
        "untrained_seed": untrained_seed,
        "mask_ratio": frozen.model.config.mask_ratio,
        "modalities": list(frozen.given),
        "splits": {split: _measure_split(frozen, twin, split, settings) for split in splits},
    }


def _measure_split(
    frozen: "FrozenModel", untrained: Any, split: str, settings: ReconstructionSettings
) -> dict[str, Any]:
    import torch

    num_samples = 0
    sums: dict[str, dict[str, float]] = {
        key: dict.fromkeys(frozen.given, 0.0) for key in ("model", "shuffled", "untrained")
    }
    constants = {name: ConstantPredictor() for name in frozen.given}
    for batch, images, valid in frozen.batches(split, settings.batch_size):
        draws = _draws(batch, settings.seed)
        with torch.inference_mode():
            output = frozen.model(images, draws, valid)
            outputs = {
                "model": output,
                "shuffled": frozen.model(images, draws, valid, shuffle_visible=True),
                "untrained": untrained(images, draws, valid),
            }
            for name in frozen.given:
                constants[name].add(output.targets[name], output.valid[name])
                for key, own in outputs.items():
                    sums[key][name] += float(own.losses[name]) * len(batch)
        num_samples += len(batch)
    if not num_samples:
        raise DataError(f"the split '{split}' of {frozen.data.url} has no samples; choose another")
    relative = frozen.model.config.target_norm != "none"
    losses = {
        key: {name: total / num_samples for name, total in of_modality.items()} for key, of_modality in sums.items()
    } | {"band_mean": {name: constant.loss(fit=relative) for name, constant in constants.items()}}
    for of_modality in losses.values():
        of_modality["total"] = sum(frozen.model.config.loss_weight(name) * of_modality[name] for name in frozen.given)
    return {"samples": num_samples, **losses}


class ConstantPredictor:
    """The loss of predicting one number for each band, gathered batch by batch.

    Normalised images have mean 0 over the training split, so the bands' means are 0. Where targets are normalised
    patch by patch, the bands' means in those units are taken from the measured targets themselves (`fit`), which
    is the best that a constant can do.
    """

    def __init__(self) -> None:
        self._num_samples = 0
        self._weights: Any = 0.0
        self._sums: Any = 0.0
        self._squares: Any = 0.0

    def add(self, target_BQE: "Tensor", valid_BQC: "Tensor") -> None:
        """Count the targets (band fastest) of a batch, those of valid bands: (B, 1 or Q, C)."""
        num_patches, num_bands = target_BQE.shape[1], valid_BQC.shape[2]
        target_BQPC = target_BQE.double().reshape(*target_BQE.shape[:2], -1, num_bands)
        valid_BQ1C = valid_BQC.expand(-1, num_patches, -1)[:, :, None]
        # As in the loss: every sample is the mean of its own valid numbers, and the loss the mean of the samples.
        count_B = valid_BQ1C.sum((1, 2, 3)).clamp(min=1) * target_BQPC.shape[2]
        weight_BQPC = (valid_BQ1C / count_B[:, None, None, None]).expand_as(target_BQPC)
        target_BQPC = target_BQPC.where(valid_BQ1C, 0)
        self._num_samples += len(target_BQE)
        self._weights = self._weights + weight_BQPC.sum((0, 1, 2))
        self._sums = self._sums + (weight_BQPC * target_BQPC).sum((0, 1, 2))
        self._squares = self._squares + (weight_BQPC * target_BQPC.square()).sum((0, 1, 2))

    def loss(self, fit: bool) -> float:
        """The loss of predicting 0, or each band's own mean (`fit`)."""
        gain = self._sums.square() / self._weights.clamp(min=1e-12) if fit else 0.0
        return float((self._squares - gain).sum()) / self._num_samples


def store_pictures(frozen: "FrozenModel", settings: ReconstructionSettings, path: Path) -> str | None:
    """Write reconstructions in physical units for the report to `path`; returns the split, None for no pictures.

    The file is a numpy archive: `keys`, `panels` (JSON: name, title, bands, units), and for each panel `NAME.input`
    and `NAME.reconstruction` (samples, bands, height, width) and `NAME.hidden` (samples, rows, columns).
    """
    import numpy as np

    if not settings.pictures:
        return None
    splits = frozen.manifest.splits
    split = settings.picture_split or ("test" if "test" in splits else list(splits)[-1])
    frozen.manifest.shards_of(split)
    batch, images, valid = next(frozen.batches(split, min(settings.pictures, splits[split])))
    filled = frozen.model.reconstruct(images, _draws(batch, settings.seed), valid)
    grid = frozen.model.config.grid
    panels, arrays = [], {}
    for modality in frozen.model.config.modalities:
        name = modality.name
        there = tuple(band for band in modality.bands if band in frozen.manifest.bands)
        if not there:
            continue
        title, bands = _PANELS.get(name, ("", ()))
        if not bands or not set(bands) <= set(there):
            bands = there[:1]
            title = f"{name} {bands[0]}"
        panels.append({"name": name, "title": title, "bands": bands, "units": _units(frozen, bands[0])})
        channels = [modality.bands.index(band) for band in bands]
        for key, tensor in (("input", images[name]), ("reconstruction", filled.images[name])):
            arrays[f"{name}.{key}"] = frozen.transform.denormalise(name, tensor)[:, channels].cpu().numpy()
        arrays[f"{name}.hidden"] = filled.masks[name].mask_BN.reshape(-1, grid, grid).cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial.npz")
    np.savez_compressed(partial, keys=np.array(batch.keys), panels=np.array(json.dumps(panels)), **arrays)
    partial.replace(path)
    return split


def _units(frozen: "FrozenModel", band: str) -> str:
    return next((array.units for array in frozen.manifest.arrays if band in array.bands), "")


def _draws(batch: Any, seed: int) -> Any:
    from fusmae.random import CounterRandom

    return CounterRandom(seed, batch.epoch, batch.position)
