"""Average precision over the whole test set, against counting by hand."""

import pytest
import torch

from pipeline.errors import DataError
from pipeline.scores import as_dict, average_precision, constant_scores, micro_ap_per_batch


def by_hand(scores: list[float], positives: list[bool]) -> float:
    """Mean, over positives, of the precision at each one's place in the ranking (no ties)."""
    ranked = [positive for _, positive in sorted(zip(scores, positives, strict=True), reverse=True)]
    hits, total = 0, 0.0
    for place, positive in enumerate(ranked, start=1):
        if positive:
            hits += 1
            total += hits / place
    return total / hits


def test_average_precision_is_that_of_the_whole_ranking():
    scores = torch.tensor([[0.9, -3.0], [0.8, 4.0], [0.7, 1.0], [0.1, 2.0]])
    labels = torch.tensor([[0, 1], [1, 0], [1, 0], [0, 1]]).bool()
    found = average_precision(scores, labels)
    columns = [by_hand(scores[:, i].tolist(), labels[:, i].tolist()) for i in range(2)]
    assert found.per_class == pytest.approx(columns)
    assert found.macro == pytest.approx(sum(columns) / 2)
    assert found.micro == pytest.approx(by_hand(scores.flatten().tolist(), labels.flatten().tolist()))


def test_average_precision_is_not_the_mean_over_batches():
    scores = torch.tensor([[0.9], [0.8], [0.2], [0.1]])
    labels = torch.tensor([[0], [0], [1], [1]]).bool()
    scores, labels = scores[[0, 2, 1, 3]], labels[[0, 2, 1, 3]]
    batches = [average_precision(scores[part], labels[part]).micro for part in (slice(0, 2), slice(2, 4))]
    whole = average_precision(scores, labels).micro
    assert sum(batches) / 2 == pytest.approx(0.5)
    assert whole == pytest.approx((1 / 3 + 2 / 4) / 2)


def random_scores(num: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(num, classes, generator=draws) * 20, torch.rand(num, classes, generator=draws) < 0.3


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_equals_torchmetrics_own_micro_and_macro(seed):
    from torchmetrics.functional.classification import multilabel_average_precision

    scores, labels = random_scores(80, 6, seed)
    inside = scores.sigmoid().double()  # no ties: the sigmoid in double keeps the order of these
    found = average_precision(inside, labels)
    for average in ("micro", "macro"):
        expected = multilabel_average_precision(inside, labels.long(), num_labels=6, average=average)
        assert getattr(found, average) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize(("num", "batch", "whole"), [(64, 16, 4), (70, 16, 4), (10, 16, 1)])
def test_the_figure_of_published_code_is_the_mean_of_whole_batches(num, batch, whole):
    scores, labels = random_scores(num, 4, 7)
    batches = list(zip(scores.split(batch), labels.split(batch), strict=True))[:whole]
    by_batch = [by_hand(own.flatten().tolist(), truth.flatten().tolist()) for own, truth in batches]
    assert micro_ap_per_batch(scores, labels, batch) == pytest.approx(sum(by_batch) / whole)
    assert micro_ap_per_batch(scores, labels, num) == pytest.approx(average_precision(scores, labels).micro)


def test_a_batch_without_a_positive_is_left_out_of_the_figure_of_published_code():
    scores, labels = torch.rand(4, 1), torch.tensor([[0], [0], [1], [1]]).bool()
    assert micro_ap_per_batch(scores, labels, 2) == 1.0
    assert micro_ap_per_batch(scores, torch.zeros(4, 1).bool(), 2) is None


def test_scores_far_from_0_are_still_told_apart():
    scores = torch.tensor([[101.0], [102.0], [103.0], [104.0]])
    assert average_precision(scores, torch.tensor([[0], [0], [1], [1]]).bool()).micro == 1.0


def test_a_class_without_positives_is_left_out_of_macro_and_marked():
    scores = torch.tensor([[0.9, 0.5], [0.1, 0.6]])
    found = average_precision(scores, torch.tensor([[1, 0], [0, 0]]).bool())
    assert found.per_class == (1.0, None)
    assert found.macro == 1.0


def test_a_test_set_without_any_positive_is_refused():
    with pytest.raises(DataError, match="no class has a positive"):
        average_precision(torch.zeros(2, 2), torch.zeros(2, 2).bool())


def test_the_constant_predictor_scores_the_prevalence():
    labels = torch.tensor([[1, 0, 1], [0, 0, 1], [0, 0, 0], [0, 0, 1]]).bool()
    expected = constant_scores(labels)
    found = average_precision(torch.full(labels.shape, 0.3), labels)
    assert found.micro == pytest.approx(expected.micro) == pytest.approx(4 / 12)
    assert found.macro == pytest.approx(expected.macro) == pytest.approx((1 / 4 + 3 / 4) / 2)
    assert expected.per_class[1] is None


def test_scores_are_stored_by_the_names_of_the_classes():
    found = average_precision(torch.tensor([[0.9, 0.5], [0.1, 0.6]]), torch.tensor([[1, 0], [0, 0]]).bool())
    assert as_dict(found, ("Pastures", "Sea")) == {
        "micro": found.micro,
        "macro": 1.0,
        "per_class": {"Pastures": 1.0, "Sea": None},
    }
