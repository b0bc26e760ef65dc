"""Average precision, counted once over the whole test set.

The mean over batches, which much of the field reports, is another number; it is given beside, under a name of its own.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Average precision over one whole test set."""

    micro: float
    """Over all decisions (samples x classes) at once."""
    macro: float
    """Mean over the classes that have a positive in the test set."""
    per_class: tuple[float | None, ...]
    """None for a class without a positive: its average precision is undefined."""


def average_precision(scores: "Tensor", labels: "Tensor") -> Scores:
    """Micro and macro average precision of (samples, classes) scores, over all samples at once."""
    from torchmetrics.functional.classification import binary_average_precision

    scores = _as_ranks(scores)
    labels = labels.long()
    per_class = tuple(
        float(binary_average_precision(scores[:, i], labels[:, i])) if labels[:, i].any() else None
        for i in range(labels.shape[1])
    )
    defined = [value for value in per_class if value is not None]
    if not defined:
        raise DataError("no class has a positive in the test split; choose another test_split")
    return Scores(
        micro=float(binary_average_precision(scores.flatten(), labels.flatten())),
        macro=sum(defined) / len(defined),
        per_class=per_class,
    )


def micro_ap_per_batch(scores: "Tensor", labels: "Tensor", batch: int) -> float | None:
    """The mean of the micro average precisions of batches of `batch` samples, in their order.

    As published code counts it (SSL4EO-S12, DINO-MM, SeCo: scikit-learn's micro average of each batch, averaged; the
    last batch is dropped when it is short, unless there is no other). It depends on the batch size and on the order.
    A batch without any positive has none and is left out; None when there is no other.
    """
    import torch
    from torchmetrics.functional.classification import binary_average_precision

    whole = len(scores) // batch * batch or len(scores)
    found = []
    for own, truth in zip(torch.split(scores[:whole], batch), torch.split(labels[:whole], batch), strict=True):
        if truth.any():
            found.append(float(binary_average_precision(_as_ranks(own).flatten(), truth.long().flatten())))
    return sum(found) / len(found) if found else None


def constant_scores(labels: "Tensor") -> Scores:
    """The scores of a predictor that says the same for every sample and class: the share of positives."""
    share = labels.double().mean(dim=0)
    per_class = tuple(float(value) if value > 0 else None for value in share)
    defined = [value for value in per_class if value is not None]
    if not defined:
        raise DataError("no class has a positive in the test split; choose another test_split")
    return Scores(micro=float(share.mean()), macro=sum(defined) / len(defined), per_class=per_class)


def _as_ranks(scores: "Tensor") -> "Tensor":
    """The same order, from 0 to 1: torchmetrics squashes others with a sigmoid, which makes ties of large ones."""
    import torch

    values, ranks = torch.unique(scores.double(), return_inverse=True)
    places: Tensor = ranks.double() / max(1, len(values) - 1)
    return places


def as_dict(scores: Scores, vocabulary: tuple[str, ...]) -> dict[str, Any]:
    """As they are stored, the classes by name."""
    return {
        "micro": scores.micro,
        "macro": scores.macro,
        "per_class": dict(zip(vocabulary, scores.per_class, strict=True)),
    }
