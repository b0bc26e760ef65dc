"""The two kinds of labels: any number of classes a sample, or one. What each is trained with and scored by.

Shape legend: N samples, C classes.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final, Literal

from pipeline.class_scores import class_scores
from pipeline.scores import as_dict, average_precision, constant_scores, micro_ap_per_batch

if TYPE_CHECKING:
    from torch import Tensor

    from sharding.manifest import Manifest

TaskName = Literal["auto", "multi-label", "single-label"]

_SINGLE_LABEL_SOURCES: Final = frozenset({"sen12ms"})
"""Sources whose protocol has one class a scene, though several labels are stored (Fus-MAE table 2)."""


class Task(ABC):
    """One kind of labels."""

    name: str
    probe_epochs: int
    """Of the paper's linear evaluation."""
    columns: tuple[tuple[str, str], ...]
    """Key and title of the figures that tables show."""
    chosen_by: str
    """Key of the figure by which a best epoch is chosen."""

    @abstractmethod
    def loss(self, logits_NC: "Tensor", labels_NC: "Tensor", label_smoothing: float) -> "Tensor":
        """The mean loss over the samples, a scalar."""

    @abstractmethod
    def score(
        self, scores_NC: "Tensor", labels_NC: "Tensor", vocabulary: tuple[str, ...], batch: int
    ) -> dict[str, Any]:
        """The figures over all samples at once, and `per_class` by the classes' names.

        `batch` is the size of the batches of what published code counts by the batch.
        """

    @abstractmethod
    def constant(self, train_NC: "Tensor", test_NC: "Tensor", vocabulary: tuple[str, ...]) -> dict[str, Any]:
        """The figures of a predictor that says the same for every sample."""


class MultiLabel(Task):
    """Multi-label soft margin loss and average precision: BigEarthNet."""

    name = "multi-label"
    probe_epochs = 20
    columns = (("micro", "micro AP"), ("macro", "macro AP"), ("micro_ap_per_batch", "by batch*"))
    chosen_by = "micro"

    def loss(self, logits_NC: "Tensor", labels_NC: "Tensor", label_smoothing: float) -> "Tensor":
        """Without smoothing, which the paper has for single labels only."""
        from torch.nn.functional import multilabel_soft_margin_loss

        del label_smoothing
        return multilabel_soft_margin_loss(logits_NC, labels_NC.float())

    def score(
        self, scores_NC: "Tensor", labels_NC: "Tensor", vocabulary: tuple[str, ...], batch: int
    ) -> dict[str, Any]:
        """Micro and macro average precision, and the mean of the batches' that published code counts."""
        found = as_dict(average_precision(scores_NC, labels_NC), vocabulary)
        return found | {"micro_ap_per_batch": micro_ap_per_batch(scores_NC, labels_NC, batch)}

    def constant(self, train_NC: "Tensor", test_NC: "Tensor", vocabulary: tuple[str, ...]) -> dict[str, Any]:
        """The share of positives in the test set; nothing is taken from training."""
        del train_NC
        return as_dict(constant_scores(test_NC), vocabulary)


class SingleLabel(Task):
    """Cross entropy with label smoothing; top-1, top-3, weighted precision, recall and F1: SEN12MS."""

    name = "single-label"
    probe_epochs = 10
    columns = (("top1", "top-1"), ("top3", "top-3"), ("precision", "prec."), ("recall", "recall"), ("f1", "F1"))
    chosen_by = "top1"

    def loss(self, logits_NC: "Tensor", labels_NC: "Tensor", label_smoothing: float) -> "Tensor":
        """Cross entropy against the one class of each row."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits_NC, labels_NC.int().argmax(dim=1), label_smoothing=label_smoothing)

    def score(
        self, scores_NC: "Tensor", labels_NC: "Tensor", vocabulary: tuple[str, ...], batch: int
    ) -> dict[str, Any]:
        """All over the whole test set; `per_class` is F1."""
        del batch
        found = class_scores(scores_NC, labels_NC.int().argmax(dim=1))
        return {key: getattr(found, key) for key, _ in self.columns} | {
            "per_class": dict(zip(vocabulary, found.per_class_f1, strict=True)),
            "per_class_recall": dict(zip(vocabulary, found.per_class_recall, strict=True)),
        }

    def constant(self, train_NC: "Tensor", test_NC: "Tensor", vocabulary: tuple[str, ...]) -> dict[str, Any]:
        """The training split's most frequent classes, for every sample."""
        shares_C = train_NC.double().mean(dim=0)
        return self.score(shares_C.expand(len(test_NC), -1), test_NC, vocabulary, 1)


MULTI_LABEL: Final = MultiLabel()
SINGLE_LABEL: Final = SingleLabel()


def task_of(manifest: "Manifest", asked: TaskName) -> Task:
    """What was asked for; with `auto`, single-label where all sources are of a single-label protocol."""
    if asked == "auto":
        sources = {source.name for source in manifest.sources}
        return SINGLE_LABEL if sources and sources <= _SINGLE_LABEL_SOURCES else MULTI_LABEL
    return SINGLE_LABEL if asked == SINGLE_LABEL.name else MULTI_LABEL
