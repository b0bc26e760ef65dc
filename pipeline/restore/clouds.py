"""Sentinel-2 under clouds: drawn over clear images, so that the truth is known, and filled from Sentinel-1.

A cloud covers whole patches. The model sees all of Sentinel-1 and the patches of Sentinel-2 beside the cloud, and its
decoder predicts those under it. Beside it: the same model without Sentinel-1, which shows what the radar gives, and
three ways that learn nothing.

Shape legend: B batch, C bands, H W pixels of an image, N patches.
"""

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import ConfigError
from pipeline.restore.inpainting import interpolate, pixels_of, visible_mean
from pipeline.restore.pictures import Panel, Picture, grey, true_colour
from pipeline.restore.samples import RestoredSamples
from pipeline.restore.scores import ScoreSum, times_better
from pipeline.restore.sensors import Sensors, as_reflectance
from pipeline.restore.settings import CloudSettings

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.frozen import FrozenModel

TITLES: Final = {
    "model": "the model, with S1",
    "without_radar": "the model, without S1",
    "interpolation": "smooth interpolation",
    "visible_mean": "mean of what is visible",
    "band_mean": "each band's mean",
}
BASELINES: Final = ("interpolation", "visible_mean", "band_mean")


def cloud_masks(keys: Sequence[str], grid: int, cover: float, seed: int) -> "Tensor":
    """(B, N) bool, true under the cloud: the highest part of smooth noise over the grid of patches.

    The noise is normal, smoothed by a Gaussian of a sixth of the grid with mirrored borders. Each cloud covers
    round(cover * N) patches, at least one and not all.
    """
    import numpy as np
    import torch

    distance = np.arange(grid)[:, None] - np.arange(-grid, 2 * grid)[None]
    weight = np.exp(-((distance / (grid / 6)) ** 2) / 2)
    folded = weight[:, grid : 2 * grid] + weight[:, :grid][:, ::-1] + weight[:, 2 * grid :][:, ::-1]
    num_hidden = min(max(round(cover * grid**2), 1), grid**2 - 1)
    masks = np.zeros((len(keys), grid**2), bool)
    for mask_N, key in zip(masks, keys, strict=True):
        noise = np.random.default_rng([seed, zlib.crc32(key.encode())]).standard_normal((grid, grid))
        height_N = (folded @ noise @ folded.T).flatten()
        mask_N[np.argsort(-height_N, kind="stable")[:num_hidden]] = True
    return torch.from_numpy(masks)


def fill_clouds(frozen: "FrozenModel", sensors: Sensors, images: dict[str, Any], mask_BN: "Tensor") -> dict[str, Any]:
    """Sentinel-2 images (B, C, H, W), normalised, with what each way puts under the cloud."""
    import torch

    optical_BCHW = images[sensors.optical]
    hidden_B1HW = pixels_of(mask_BN, frozen.model.config.patch_size)
    hidden = {sensors.optical: mask_BN}
    both = {sensors.radar: images[sensors.radar], sensors.optical: optical_BCHW}
    with torch.inference_mode():
        return {
            "model": frozen.model.fill(both, hidden)[sensors.optical],
            "without_radar": frozen.model.fill({sensors.optical: optical_BCHW}, hidden)[sensors.optical],
            "interpolation": interpolate(optical_BCHW, hidden_B1HW),
            "visible_mean": visible_mean(optical_BCHW, hidden_B1HW),
            "band_mean": optical_BCHW.where(~hidden_B1HW, 0.0),
        }


def measure_clouds(frozen: "FrozenModel", settings: CloudSettings, split: str) -> tuple[dict[str, Any], list[Picture]]:
    """Scores of each way under the clouds, and pictures of the first samples.

    Samples that lack a sensor are left out and counted. Raises DataError for a split without any other.
    """
    sensors = Sensors.of(frozen)
    config = frozen.model.config
    if config.num_patches < 2:
        raise ConfigError("the model has one patch an image: nothing is beside a cloud; take another run")
    samples = RestoredSamples(frozen, sensors, settings, split)
    scores = {name: ScoreSum(sensors.optical_bands, settings.data_range) for name in TITLES}
    pictures: list[Picture] = []
    for keys, images, valid in samples.batches():
        mask_BN = cloud_masks(keys, config.grid, settings.cover, settings.seed).to(images[sensors.optical].device)
        hidden_B1HW = pixels_of(mask_BN, config.patch_size)
        counted_BCHW = hidden_B1HW & valid[sensors.optical][:, :, None, None]
        true_BCHW = as_reflectance(frozen, sensors, images[sensors.optical])
        filled = {
            name: as_reflectance(frozen, sensors, image_BCHW)
            for name, image_BCHW in fill_clouds(frozen, sensors, images, mask_BN).items()
        }
        for name, image_BCHW in filled.items():
            scores[name].add(image_BCHW, true_BCHW, counted_BCHW)
        radar_BCHW = frozen.transform.denormalise(sensors.radar, images[sensors.radar])
        for number in range(min(len(keys), settings.pictures - len(pictures))):
            of_sample = {name: image_BCHW[number] for name, image_BCHW in filled.items()}
            panels = _panels(sensors, true_BCHW[number], hidden_B1HW[number, 0], radar_BCHW[number], of_sample)
            pictures.append(Picture(key=keys[number], panels=panels))
    result = samples.as_dict() | {
        "cover": settings.cover,
        "scores": {name: total.as_dict() for name, total in scores.items()},
        "better_than": times_better("model", scores),
    }
    return result, pictures


def _panels(
    sensors: Sensors, true_CHW: "Tensor", hidden_HW: "Tensor", radar_CHW: "Tensor", filled: dict[str, "Tensor"]
) -> list[Panel]:
    paint = true_colour(sensors.optical_bands, true_CHW)
    shown = [Panel("Sentinel-2", paint(true_CHW)), Panel("under a cloud", paint(true_CHW, hidden_HW))]
    shown.append(Panel(f"Sentinel-1 {sensors.radar_bands[0]}", grey(radar_CHW[0])(radar_CHW[0])))
    return shown + [Panel(TITLES[name], paint(filled[name])) for name in ("model", "without_radar", "interpolation")]
