"""Speckle, and two filters against it that learn nothing; all on intensity in linear units.

Shape legend: B batch, C bands, H W pixels of an image.
"""

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor

WINDOW: Final = 7


def speckle(keys: Sequence[str], shape_CHW: tuple[int, ...], looks: float, seed: int) -> "Tensor":
    """(B, C, H, W) float32: what fully developed speckle of so many looks multiplies an intensity with.

    Gamma distributed with mean 1 and variance 1 / looks (Oliver and Quegan, "Understanding synthetic aperture radar
    images", section 4.3), independent from pixel to pixel; a function of seed and key alone.
    """
    import numpy as np
    import torch

    drawn = [np.random.default_rng([seed, zlib.crc32(key.encode())]).gamma(looks, 1 / looks, shape_CHW) for key in keys]
    return torch.from_numpy(np.stack(drawn).astype(np.float32)).clamp(min=torch.finfo(torch.float32).tiny)


def boxcar(intensity_BCHW: "Tensor", window: int = WINDOW) -> "Tensor":
    """The mean of the window around each pixel; borders are mirrored."""
    import torch.nn.functional as F

    half = window // 2
    padded = F.pad(intensity_BCHW, (half, half, half, half), mode="reflect")
    return F.avg_pool2d(padded, window, stride=1)


def lee(intensity_BCHW: "Tensor", looks: float, window: int = WINDOW) -> "Tensor":
    """Lee's filter: mean + W (pixel - mean), W = 1 - Cu^2 / Ci^2, not below 0.

    Cu^2 = 1 / looks is the speckle's squared coefficient of variation, Ci^2 the window's: variance / mean^2. Lee,
    "Digital image enhancement and noise filtering by use of local statistics" (IEEE TPAMI 2(2), 1980), as written by
    Lopes, Touzi and Nezry, "Adaptive speckle filters and scene heterogeneity" (IEEE TGRS 28(6), 1990).
    """
    values = intensity_BCHW.double()
    mean = boxcar(values, window)
    variance = (boxcar(values * values, window) - mean * mean).clamp(min=0)
    weight = (1 - mean * mean / looks / variance.clamp(min=1e-300)).clamp(min=0)
    return (mean + weight * (values - mean)).to(intensity_BCHW.dtype)
