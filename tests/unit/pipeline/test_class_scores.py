"""Scores of one class a sample and of pixels, against torchmetrics and against definitions written out in numpy."""

import numpy as np
import pytest
import torch
from torchmetrics.functional import classification as theirs

from pipeline.class_scores import class_scores
from pipeline.pixel_scores import confusion, pixel_scores

CLASSES = 6


def drawn(seed: int, num: int = 200, classes: int = CLASSES) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores with some sense and targets, unbalanced; the last class never occurs."""
    draws = torch.Generator().manual_seed(seed)
    weight = torch.arange(1, classes + 1, dtype=torch.float)
    weight[-1] = 0
    target = torch.multinomial(weight, num, replacement=True, generator=draws)
    scores = torch.randn(num, classes, generator=draws) + 1.5 * torch.eye(classes)[target]
    return scores, target


def written_out(predicted: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Precision, recall and F1 of each class that occurs, weighted by how often it does."""
    total = {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    for label in np.unique(target):
        hits = np.sum((predicted == label) & (target == label))
        precision = hits / np.sum(predicted == label) if np.any(predicted == label) else 0.0
        recall = hits / np.sum(target == label)
        f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
        share = np.mean(target == label)
        for key, value in (("precision", precision), ("recall", recall), ("f1", f1)):
            total[key] += share * value
    return total


@pytest.mark.parametrize("seed", range(5))
def test_scores_of_one_class_equal_torchmetrics_and_the_definition(seed):
    scores, target = drawn(seed)
    found = class_scores(scores, target)
    expected = written_out(scores.argmax(dim=1).numpy(), target.numpy())
    assert {key: getattr(found, key) for key in expected} == pytest.approx(expected)
    options = {"num_classes": CLASSES, "average": "weighted"}
    assert found.precision == pytest.approx(float(theirs.multiclass_precision(scores, target, **options)), abs=1e-6)
    assert found.recall == pytest.approx(float(theirs.multiclass_recall(scores, target, **options)), abs=1e-6)
    assert found.f1 == pytest.approx(float(theirs.multiclass_f1_score(scores, target, **options)), abs=1e-6)
    for key, top_k in (("top1", 1), ("top3", 3)):
        accuracy = theirs.multiclass_accuracy(scores, target, num_classes=CLASSES, average="micro", top_k=top_k)
        assert getattr(found, key) == pytest.approx(float(accuracy), abs=1e-6)
    assert found.recall == pytest.approx(found.top1)  # an identity, and a check on the paper's table 2
    assert found.per_class_f1[-1] is None and None not in found.per_class_f1[:-1]


def test_of_equal_scores_the_earlier_class_comes_first():
    found = class_scores(torch.zeros(4, 5), torch.tensor([0, 1, 2, 3]))
    assert (found.top1, found.top3) == (0.25, 0.75)


def test_fewer_than_three_classes_are_all_among_the_first_three():
    found = class_scores(torch.tensor([[0.1, 0.9], [0.9, 0.1]]), torch.tensor([0, 0]))
    assert (found.top1, found.top3) == (0.5, 1.0)


@pytest.mark.parametrize("seed", range(5))
def test_pixel_scores_equal_torchmetrics_and_the_definition(seed):
    scores, target = drawn(seed, num=500)
    predicted = scores.argmax(dim=1)
    target[::7] = -1  # no class
    found = pixel_scores(confusion(predicted, target, CLASSES))
    kept = target >= 0
    p, t = predicted[kept].numpy(), target[kept].numpy()
    for label, value in enumerate(found.per_class):
        union = np.sum((p == label) | (t == label))
        assert value == pytest.approx(np.sum((p == label) & (t == label)) / union) if union else value is None
    options = {"num_classes": CLASSES, "ignore_index": -1}
    assert found.miou == pytest.approx(float(theirs.multiclass_jaccard_index(predicted, target, **options)), abs=1e-6)
    accuracy = theirs.multiclass_accuracy(predicted, target, average="micro", **options)
    assert found.pixel_accuracy == pytest.approx(float(accuracy), abs=1e-6)


def test_a_class_that_is_neither_there_nor_predicted_is_in_no_mean():
    target = torch.tensor([0, 0, 1, 1])
    found = pixel_scores(confusion(torch.tensor([0, 0, 1, 0]), target, 3))
    assert found.per_class == (pytest.approx(2 / 3), 0.5, None)
    assert found.miou == pytest.approx((2 / 3 + 0.5) / 2)
