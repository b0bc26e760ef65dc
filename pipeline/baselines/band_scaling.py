"""Scaling bands by numbers of their own."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def standardised(image_BCSS: Tensor, bands: Sequence[str], mean_std: Mapping[str, tuple[float, float]]) -> Tensor:
    """Each band minus its mean, divided by its deviation."""
    mean_C11, std_C11 = columns(image_BCSS, [mean_std[band] for band in bands])
    return (image_BCSS - mean_C11) / std_C11


def eight_bit(image_BCSS: Tensor, mean_std: Sequence[tuple[float, float]]) -> Tensor:
    """Each band's mean minus to plus two deviations as whole levels from 0 to 255, cut off outside (SeCo)."""
    mean_C11, std_C11 = columns(image_BCSS, mean_std)
    return ((image_BCSS - mean_C11 + 2 * std_C11) / (4 * std_C11) * 255).clamp(0, 255).floor()


def columns(like: Tensor, pairs: Sequence[tuple[float, float]]) -> tuple[Tensor, Tensor]:
    """Of pairs by band, the first and the second numbers, each (C, 1, 1) on the device of `like`."""
    both_2C = torch.tensor(pairs, dtype=torch.float32).T.to(like.device)
    return both_2C[0, :, None, None], both_2C[1, :, None, None]
