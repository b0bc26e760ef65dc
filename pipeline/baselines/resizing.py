"""Bringing images to a baseline's size."""

from torch import Tensor
from torch.nn import functional


def bilinear(image_BCSS: Tensor, size: int) -> Tensor:
    """(B, C, size, size), pixels' centres kept in place; antialiased where it shrinks."""
    side = image_BCSS.shape[-1]
    if side == size:
        return image_BCSS
    return functional.interpolate(image_BCSS, (size, size), mode="bilinear", antialias=size < side)


def bicubic(image_BCSS: Tensor, size: int) -> Tensor:
    """The same as OpenCV's cubic interpolation, which does not antialias."""
    if image_BCSS.shape[-1] == size:
        return image_BCSS
    return functional.interpolate(image_BCSS, (size, size), mode="bicubic")


def centre(image_BCSS: Tensor, size: int) -> Tensor:
    """The central window of so many pixels."""
    first = (image_BCSS.shape[-1] - size) // 2
    return image_BCSS[..., first : first + size, first : first + size]
