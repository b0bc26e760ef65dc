"""From stored numbers to the model's input, on the device: one image a modality, normalised, cut and turned.

Per band: (stored + radiometric offset) * scale is the value in units; minus the mean, divided by the standard
deviation of the data set's statistics it is the input. Bands are asked for by name. A band that a sample lacks is 0,
which is the mean, and so is a pixel without data, or one that is no finite number.

Shape legend: B batch, C bands asked for, P pixels of the stored patch's side, S of the image's side.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from fusmae.random import CounterRandom, Purpose
from pipeline.stream.batch import Batch
from pipeline.stream.mixed_batch import MixedBatch
from sharding.errors import ConfigError
from sharding.manifest import ArraySpec, Manifest


class ImageTransform:
    """Makes `images` and `valid` of a batch that is on the device already."""

    def __init__(
        self,
        manifest: Manifest,
        modalities: Sequence[tuple[str, Sequence[str]]],
        image_size: int,
        *,
        flips: bool = True,
        upsample: Literal["nearest", "bilinear"] = "nearest",
        absent_bands: bool = False,
    ) -> None:
        """For a data set and the bands asked for, by modality; ConfigError when they cannot be given.

        With `absent_bands`, a band that the data set lacks is absent from all samples: 0, and not valid. Without, it is
        refused, as is a data set that has none of the bands.
        """
        self._order = [spec.name for spec in manifest.arrays]
        lacking = set[str]()
        if absent_bands:
            asked = {band for _, bands in modalities for band in bands}
            lacking = asked - set(manifest.bands)
            if lacking == asked:
                there = ", ".join(manifest.bands)
                raise ConfigError(f"no band that the model asks for is there, only {there}; leave the data set out")
        self._modalities = {
            name: [None if band in lacking else _Band(manifest, name, band) for band in bands]
            for name, bands in modalities
        }
        self._on_device: dict[tuple[str, torch.device], tuple[Tensor, Tensor]] = {}
        self._image_size = image_size
        self._flips = flips
        self._upsample = upsample
        used = [band.spec for bands in self._modalities.values() for band in bands if band is not None]
        self._patch_size = max(spec.height for spec in manifest.arrays)
        for spec in used:
            if spec.height != spec.width or self._patch_size % spec.height:
                raise ConfigError(
                    f"array {spec.name} has {spec.height} x {spec.width} pixels, which does not fill a square of "
                    f"{self._patch_size} pixels; leave its bands out"
                )
        if image_size > self._patch_size:
            raise ConfigError(
                f"the image size is {image_size}, but the data set's patches have {self._patch_size} pixels a side; "
                f"set model.image_size to {self._patch_size} or less"
            )

    def __call__(self, batch: Batch, random: CounterRandom | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """By modality, float32 images (B, C, S, S) and bool (B, C): which bands each sample has.

        With `random`, windows, flips and turns are drawn for each sample, the same for all its modalities; without,
        the window is the central one and nothing is turned.
        """
        images, valid = {}, {}
        window = self._windows(batch, random)
        for name, bands in self._modalities.items():
            valid_BC = torch.stack([_present(batch, band) for band in bands], dim=1)
            image_BCPP = torch.stack([self._plane(batch, band) for band in bands], dim=1)
            mean_C, std_C = self._statistics(name, image_BCPP.device)
            image_BCPP = (image_BCPP - mean_C) / std_C
            image_BCPP = torch.where(valid_BC[:, :, None, None], image_BCPP, 0.0)
            image_BCSS = _cut(image_BCPP, *window, self._image_size)
            if random is not None and self._flips:
                image_BCSS = dihedral(image_BCSS, self._elements(random).to(image_BCSS.device))
            images[name], valid[name] = image_BCSS, valid_BC
        return images, valid

    def denormalise(self, modality: str, images: Tensor) -> Tensor:
        """Images (..., C, S, S) of a modality in the data set's units (dB, digital numbers).

        A band that the data set lacks has no units there and stays as it is.
        """
        mean_C, std_C = self._statistics(modality, images.device)
        return images * std_C + mean_C

    def normalise(self, modality: str, images: Tensor) -> Tensor:
        """The inverse of `denormalise`."""
        mean_C, std_C = self._statistics(modality, images.device)
        return (images - mean_C) / std_C

    def _plane(self, batch: Batch, band: "_Band | None") -> Tensor:
        if band is None:
            return torch.zeros((len(batch), self._patch_size, self._patch_size), device=batch.sample_id.device)
        stored_BPP = batch.arrays[band.spec.name][:, band.plane].float()
        offset_B = batch.radiometric_offset[:, self._order.index(band.spec.name)]
        value_BPP = (stored_BPP + offset_B[:, None, None]) * band.spec.scale
        if band.spec.nodata is not None:
            value_BPP = torch.where(stored_BPP == band.spec.nodata, band.mean, value_BPP)
        if batch.arrays[band.spec.name].is_floating_point():
            value_BPP = torch.where(value_BPP.isfinite(), value_BPP, band.mean)
        if band.spec.height == self._patch_size:
            return value_BPP
        return functional.interpolate(value_BPP[:, None], size=(self._patch_size,) * 2, mode=self._upsample)[:, 0]

    def _statistics(self, modality: str, device: torch.device) -> tuple[Tensor, Tensor]:
        if (modality, device) in self._on_device:
            return self._on_device[modality, device]
        bands = self._modalities[modality]
        mean_C = torch.tensor([band.mean if band else 0.0 for band in bands], dtype=torch.float32, device=device)
        std_C = torch.tensor([band.std if band else 1.0 for band in bands], dtype=torch.float32, device=device)
        # Kept: to bring numbers of Python's to a GPU waits for it.
        self._on_device[modality, device] = mean_C[:, None, None], std_C[:, None, None]
        return self._on_device[modality, device]

    def _windows(self, batch: Batch, random: CounterRandom | None) -> tuple[Tensor, Tensor]:
        """Row and column at which each sample's window starts: int64 (B,)."""
        room = self._patch_size - self._image_size
        device = batch.sample_id.device
        if random is None or not room:
            centre = torch.full((len(batch),), room // 2, device=device)
            return centre, centre
        corner_B2 = (random.uniform(2, Purpose.CROP).to(device) * (room + 1)).long().clamp_(max=room)
        return corner_B2[:, 0], corner_B2[:, 1]

    def _elements(self, random: CounterRandom) -> Tensor:
        return (random.uniform(1, Purpose.FLIP)[:, 0] * 8).long().clamp_(max=7)


class MixtureTransform:
    """Makes `images` and `valid` of a mixture's batch: each sample with the statistics of its own data set.

    A band that a data set lacks is absent from its samples: 0, and not valid.
    """

    def __init__(
        self,
        manifests: Mapping[str, Manifest],
        modalities: Sequence[tuple[str, Sequence[str]]],
        image_size: int,
        *,
        flips: bool = True,
        upsample: Literal["nearest", "bilinear"] = "nearest",
    ) -> None:
        """For data sets by name; ConfigError names the data set that cannot work, or the band that none has."""
        self._modalities = [name for name, _ in modalities]
        self._transforms: dict[str, ImageTransform] = {}
        for dataset, manifest in manifests.items():
            try:
                self._transforms[dataset] = ImageTransform(
                    manifest, modalities, image_size, flips=flips, upsample=upsample, absent_bands=True
                )
            except ConfigError as error:
                raise ConfigError(f"data set {dataset} of the mixture: {error}") from error
        for name, bands in modalities:
            missing = [band for band in bands if not any(band in manifest.bands for manifest in manifests.values())]
            if missing:
                raise ConfigError(f"modality {name} asks for band {missing[0]}, which no data set of the mixture has")

    def __call__(self, batch: MixedBatch, random: CounterRandom | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """As `ImageTransform`, by the batch's slots; `random` must be keyed by the batch's epochs and positions."""
        made = []
        for name, part, keys in zip(batch.names, batch.parts, batch.draw_keys, strict=True):
            own_random = None if random is None else CounterRandom(random.seed, *keys)
            made.append(self._transforms[name](part, own_random))
        images = {name: batch.join([own[name] for own, _ in made]) for name in self._modalities}
        valid = {name: batch.join([own[name] for _, own in made]) for name in self._modalities}
        return images, valid


def dihedral(images_BCSS: Tensor, element_B: Tensor) -> Tensor:
    """Each image under one of the square's eight symmetries: bit 0 transposes, bit 1 flips rows, bit 2 columns.

    Selected without looking at the elements, so that the device need not be waited for.
    """

    def chosen(bit: int) -> Tensor:
        return (element_B >> bit & 1).bool()[:, None, None, None]

    images_BCSS = torch.where(chosen(0), images_BCSS.transpose(-1, -2), images_BCSS)
    images_BCSS = torch.where(chosen(1), images_BCSS.flip(-2), images_BCSS)
    return torch.where(chosen(2), images_BCSS.flip(-1), images_BCSS)


def _present(batch: Batch, band: "_Band | None") -> Tensor:
    if band is None:
        return torch.zeros(len(batch), dtype=torch.bool, device=batch.sample_id.device)
    return batch.present[band.spec.name][:, band.plane]


def _cut(images_BCPP: Tensor, row_B: Tensor, column_B: Tensor, size: int) -> Tensor:
    if images_BCPP.shape[-1] == size:
        return images_BCPP
    steps = torch.arange(size, device=images_BCPP.device)
    sample = torch.arange(len(row_B), device=images_BCPP.device)[:, None, None]
    rows, columns = (row_B[:, None] + steps)[:, :, None], (column_B[:, None] + steps)[:, None, :]
    cut_BSSC = images_BCPP.permute(0, 2, 3, 1)[sample, rows, columns]
    return cut_BSSC.permute(0, 3, 1, 2).contiguous()


class _Band:
    """Where one band asked for is stored and how it is normalised."""

    def __init__(self, manifest: Manifest, modality: str, band: str) -> None:
        spec = next((spec for spec in manifest.arrays if band in spec.bands), None)
        if spec is None:
            raise ConfigError(
                f"modality {modality} asks for band {band}, which the data set does not have; "
                f"it has {', '.join(manifest.bands)}"
            )
        statistics = manifest.training_statistics
        if band not in statistics:
            raise ConfigError(f"the data set has no statistics of band {band}; build it again")
        self.spec: ArraySpec = spec
        self.plane = spec.bands.index(band)
        self.mean = statistics[band].mean
        # A band that never varies tells nothing; it becomes 0 instead of a division by 0.
        self.std = statistics[band].std or 1.0
