"""The second view of a cross-scale model: a square window of the image, enlarged to the image's size.

Shape legend: B batch, C bands (or the width of a token), S pixels (or tokens) of a side, V patches, D width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fusmae.random import CounterRandom, Purpose


class Windows(NamedTuple):
    """A square window of each sample, float64, in sides of the image; 0, 0, 1 is all of it."""

    top_B: Tensor
    left_B: Tensor
    side_B: Tensor


def draw_windows(min_area: float, max_area: float, random: CounterRandom) -> Windows:
    """A window for each sample of `random`, on its device: the area uniform in the range, then the place.

    What is drawn from which word of `Purpose.SCALE` is part of the format: area, top, left.
    """
    area_B, top_B, left_B = random.uniform(3, Purpose.SCALE).double().unbind(1)
    side_B = (min_area + (max_area - min_area) * area_B).sqrt()
    return Windows(top_B * (1 - side_B), left_B * (1 - side_B), side_B)


def resample(x_BCSS: Tensor, windows: Windows) -> Tensor:
    """What lies in each sample's window, (B, C, S, S), bilinear between the centres of pixels, the border repeated.

    The same as affine_grid and grid_sample with align_corners=False. These round the places to float32 and back, so
    that the window of the whole image would not give the image; here it does, bit for bit, on every device. Rows and
    columns are interpolated one after the other, as the window stands upright.
    """
    if x_BCSS.ndim != 4 or x_BCSS.shape[2] != x_BCSS.shape[3] or len(x_BCSS) != len(windows.side_B):
        raise ValueError(f"{len(windows.side_B)} square windows do not fit images of shape {tuple(x_BCSS.shape)}")
    return _interpolate(_interpolate(x_BCSS, 2, windows.top_B, windows.side_B), 3, windows.left_B, windows.side_B)


def _interpolate(x_BCSS: Tensor, dim: int, start_B: Tensor, side_B: Tensor) -> Tensor:
    size = x_BCSS.shape[dim]
    centre_S = torch.arange(size, dtype=torch.float64, device=x_BCSS.device) + 0.5
    place_BS = (centre_S * side_B[:, None] + size * start_B[:, None] - 0.5).clamp(0, size - 1)
    lower_BS = place_BS.long()
    along = [len(x_BCSS), 1, 1, 1]
    along[dim] = size

    def pixels(index_BS: Tensor) -> Tensor:
        return x_BCSS.gather(dim, index_BS.view(along).expand_as(x_BCSS))

    weight_BS = (place_BS - lower_BS).to(x_BCSS.dtype)
    return pixels(lower_BS).lerp(pixels((lower_BS + 1).clamp(max=size - 1)), weight_BS.view(along))


def scaled_positions(ids_BV: Tensor, side_B: Tensor, grid: int, width: int, dtype: torch.dtype) -> Tensor:
    """Sin-cos positions (B, V, D) as `fusmae.patch.sincos_positions`, rows and columns times the window's side first.

    As in Scale-MAE, where they are multiplied by the ground sampling distance: relative to the full view's, that of a
    view of the window is its side. Computed in float64 and rounded once.
    """
    quarter = width // 4
    frequency_E = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64, device=ids_BV.device) / quarter)

    def encode(index_BV: Tensor) -> Tensor:
        angle_BVE = (index_BV * side_B[:, None])[:, :, None] * frequency_E
        return torch.cat([angle_BVE.sin(), angle_BVE.cos()], dim=2)

    return torch.cat([encode(ids_BV // grid), encode(ids_BV % grid)], dim=2).to(dtype)
