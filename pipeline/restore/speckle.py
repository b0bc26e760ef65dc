"""Sentinel-1 under speckle: laid over held-out images that are taken for the truth, and taken out again.

The truth has speckle of its own (Sentinel-1 GRD has about 4.4 looks), so that no way reaches it, and one that takes
out the truth's speckle, too, scores lower for it. The figures order the ways; they do not say how much speckle is left.

The model never sees the patch that it restores (a blind spot as large as a patch): the patches are divided at random
into parts, each part is predicted from all others, and several divisions are averaged. What is speckle in a patch
cannot be known from other patches, so it is left out; what is detail in it mostly cannot either.

Shape legend: B batch, C bands, H W pixels of an image, N patches.
"""

import math
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import ConfigError
from pipeline.restore.filters import boxcar, lee, speckle
from pipeline.restore.homogeneous import WindowLevels
from pipeline.restore.inpainting import pixels_of
from pipeline.restore.pictures import Panel, Picture, grey
from pipeline.restore.samples import RestoredSamples
from pipeline.restore.scores import ScoreSum, times_better
from pipeline.restore.sensors import Sensors, is_in_db
from pipeline.restore.settings import SpeckleSettings

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.frozen import FrozenModel

TITLES: Final = {
    "model": "the model, with S2",
    "without_optical": "the model, without S2",
    "lee": "Lee filter, 7 x 7",
    "boxcar": "mean, 7 x 7",
    "noisy": "nothing done",
}
BASELINES: Final = ("lee", "boxcar", "noisy")


def mean_db(looks: float) -> float:
    """The mean of speckle in dB, which is below 0 though its mean intensity is 1: (digamma(L) - ln L) * 10 / ln 10."""
    import torch

    return (float(torch.digamma(torch.tensor(looks, dtype=torch.float64))) - math.log(looks)) * 10 / math.log(10)


def divisions(keys: Sequence[str], num_patches: int, parts: int, repeats: int, seed: int) -> "Tensor":
    """(repeats, B, N) int64: the part in which each patch lies; parts differ by one patch at most."""
    import numpy as np
    import torch

    part_N = np.arange(num_patches) % parts
    drawn = np.empty((repeats, len(keys), num_patches), np.int64)
    for number, key in enumerate(keys):
        random = np.random.default_rng([seed, zlib.crc32(key.encode()), 1])
        for repeat in range(repeats):
            drawn[repeat, number] = random.permutation(part_N)
    return torch.from_numpy(drawn)


def blind_spot(model: Any, images: dict[str, "Tensor"], name: str, part_RBN: "Tensor", parts: int) -> "Tensor":
    """(B, C, H, W): each patch of the modality `name` as predicted from all other parts, the mean of the divisions."""
    import torch

    total_BCHW = torch.zeros_like(images[name])
    for part_BN in part_RBN:
        for part in range(parts):
            mask_BN = part_BN == part
            filled_BCHW = model.fill(images, {name: mask_BN})[name]
            total_BCHW = total_BCHW + filled_BCHW.where(pixels_of(mask_BN, model.config.patch_size), 0.0)
    return total_BCHW / len(part_RBN)


def measure_speckle(
    frozen: "FrozenModel", settings: SpeckleSettings, split: str
) -> tuple[dict[str, Any], list[Picture]]:
    """Scores of each way against speckle, in dB, and pictures of the first samples.

    Samples that lack a band of Sentinel-1, or all of Sentinel-2, are left out and counted. Raises DataError for a split
    without any other.
    """
    sensors = Sensors.of(frozen)
    num_patches = frozen.model.config.num_patches
    if num_patches < settings.parts:
        raise ConfigError(f"speckle.parts = {settings.parts}, but an image has {num_patches} patches; write fewer")
    is_db = is_in_db(frozen, sensors)
    samples = RestoredSamples(frozen, sensors, settings, split, all_radar_bands=True)
    scores = {name: ScoreSum(sensors.radar_bands, settings.data_range) for name in TITLES}
    levels = WindowLevels(tuple(TITLES))
    pictures: list[Picture] = []
    for keys, images, _ in samples.batches():
        true_BCHW = _intensity(frozen.transform.denormalise(sensors.radar, images[sensors.radar]), is_db)
        restored = take_out(frozen, sensors, settings, keys, images, true_BCHW, is_db)
        for name, intensity_BCHW in restored.items():
            scores[name].add(_db(intensity_BCHW), _db(true_BCHW), true_BCHW > 0)
        levels.add(true_BCHW, restored)
        for number in range(min(len(keys), settings.pictures - len(pictures))):
            true_HW = _db(true_BCHW)[number, 0]
            paint = grey(true_HW)
            panels = [Panel("taken for the truth", paint(true_HW))]
            for name in ("noisy", "boxcar", "lee", "model", "without_optical"):
                panels.append(Panel(TITLES[name], paint(_db(restored[name])[number, 0])))
            pictures.append(Picture(key=keys[number], panels=panels))
    homogeneous = levels.as_dict()
    result = samples.as_dict() | {
        "looks": settings.looks,
        "scores": {name: total.as_dict() | homogeneous["ways"][name] for name, total in scores.items()},
        "homogeneous_windows": homogeneous["windows"],
        "better_than": times_better("model", scores),
    }
    return result, pictures


def take_out(
    frozen: "FrozenModel",
    sensors: Sensors,
    settings: SpeckleSettings,
    keys: Sequence[str],
    images: dict[str, Any],
    true_BCHW: "Tensor",
    is_db: bool,
) -> dict[str, "Tensor"]:
    """Intensities (B, C, H, W) that each way makes of the true ones under speckle.

    Where the model's numbers are dB, the mean of the speckle in dB, which its predictions have too, is taken off them;
    the filters average intensities, in which it is 1.
    """
    import torch

    drawn = speckle(keys, tuple(true_BCHW.shape[1:]), settings.looks, settings.seed).to(true_BCHW.device)
    noisy_BCHW = true_BCHW * drawn
    values = _db(noisy_BCHW) if is_db else noisy_BCHW
    given = {sensors.radar: frozen.transform.normalise(sensors.radar, values).float()}
    number = frozen.model.config.num_patches
    part_RBN = divisions(keys, number, settings.parts, settings.repeats, settings.seed).to(true_BCHW.device)
    found = {"noisy": noisy_BCHW, "boxcar": boxcar(noisy_BCHW), "lee": lee(noisy_BCHW, settings.looks)}
    shift = 10 ** (-mean_db(settings.looks) / 10) if is_db else 1.0
    for name, others in (("model", {sensors.optical: images[sensors.optical]}), ("without_optical", {})):
        with torch.inference_mode():
            filled = blind_spot(frozen.model, given | others, sensors.radar, part_RBN, settings.parts)
        found[name] = _intensity(frozen.transform.denormalise(sensors.radar, filled), is_db) * shift
    return found


def _intensity(values: "Tensor", is_db: bool) -> "Tensor":
    """Linear power; what is not above 0, as a prediction of it may be, is very little."""
    import torch

    power: Tensor = 10 ** (values.double() / 10) if is_db else values.double()
    return power.clamp(min=torch.finfo(torch.float32).tiny)


def _db(intensity: "Tensor") -> "Tensor":
    return 10 * intensity.log10()
