"""Scores of a map of classes: intersection over union and the share of pixels that are right.

Shape legend: C classes.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PixelScores:
    """Over all pixels of a test set that have a class."""

    miou: float
    """Mean of the classes that are there or are predicted."""
    pixel_accuracy: float
    per_class: tuple[float | None, ...]
    """Intersection over union; None for a class that is neither there nor predicted."""


def confusion(predicted: "Tensor", target: "Tensor", num_classes: int) -> "Tensor":
    """(C, C) int64, rows true and columns predicted, of equally many of both; targets below 0 are left out."""
    import torch

    known = target >= 0
    cells = torch.bincount(target[known] * num_classes + predicted[known], minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def pixel_scores(confusion_CC: "Tensor") -> PixelScores:
    """The scores of a confusion matrix with at least one pixel."""
    counts_CC = confusion_CC.double()
    right_C = counts_CC.diagonal()
    union_C = counts_CC.sum(dim=0) + counts_CC.sum(dim=1) - right_C
    per_class = tuple(float(r / u) if u > 0 else None for r, u in zip(right_C, union_C, strict=True))
    there = [value for value in per_class if value is not None]
    return PixelScores(
        miou=sum(there) / len(there), pixel_accuracy=float(right_C.sum() / counts_CC.sum()), per_class=per_class
    )
