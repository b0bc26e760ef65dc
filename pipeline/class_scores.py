"""Scores of a classifier of one class a sample: top-k accuracy and the weighted averages of the field.

Shape legend: N samples, C classes.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """Over one whole test set. Averages are weighted by each class's samples in it, as Fus-MAE table 2 has them."""

    top1: float
    """Share of samples whose class has the highest score; equals the weighted recall."""
    top3: float
    """Share of samples whose class is among the three highest scores."""
    precision: float
    """Of a class that is never predicted: 0."""
    recall: float
    f1: float
    per_class_f1: tuple[float | None, ...]
    """None for a class without a sample in the test set."""
    per_class_recall: tuple[float | None, ...]
    """None for a class without a sample in the test set."""


def class_scores(scores_NC: "Tensor", target_N: "Tensor") -> ClassScores:
    """The scores of (N, C) predictions against class numbers (N,); of equal scores the earlier class comes first."""
    import torch

    num_classes = scores_NC.shape[1]
    ranked = scores_NC.double().sort(dim=1, descending=True, stable=True).indices
    is_right = ranked == target_N[:, None]
    cells = torch.bincount(target_N * num_classes + ranked[:, 0], minlength=num_classes**2)
    confusion_CC = cells.reshape(num_classes, num_classes).double()
    right_C, actual_C, predicted_C = confusion_CC.diagonal(), confusion_CC.sum(dim=1), confusion_CC.sum(dim=0)
    precision_C = right_C / predicted_C.clamp(min=1)
    recall_C = right_C / actual_C.clamp(min=1)
    f1_C = 2 * right_C / (actual_C + predicted_C).clamp(min=1)
    weight_C = actual_C / actual_C.sum()

    def defined(values_C: "Tensor") -> tuple[float | None, ...]:
        return tuple(float(v) if n > 0 else None for v, n in zip(values_C, actual_C, strict=True))

    return ClassScores(
        top1=float(is_right[:, 0].double().mean()),
        top3=float(is_right[:, :3].any(dim=1).double().mean()),
        precision=float((weight_C * precision_C).sum()),
        recall=float((weight_C * recall_C).sum()),
        f1=float((weight_C * f1_C).sum()),
        per_class_f1=defined(f1_C),
        per_class_recall=defined(recall_C),
    )
