"""The linear probe's arithmetic: average precision over the whole test set, and a fit that repeats."""

import pytest
import torch

from pipeline.errors import ConfigError, DataError
from pipeline.linear import (
    ProbeSettings,
    average_precision,
    colour_statistics,
    constant_scores,
    fit,
    score_probe,
    standardise,
)


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


def separable(num: int) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(3)
    features = torch.randn(num, 6, generator=draws)
    return features * 100 + 1000, torch.stack([features[:, 0] > 0, features[:, 1] > 0.5], dim=1)


def test_the_probe_finds_what_is_linear_in_the_features():
    features, labels = separable(400)
    scores = score_probe(features[:300], features[300:], labels[:300], labels[300:], ProbeSettings())
    assert scores.macro > 0.95 > 0.6 > constant_scores(labels[300:]).macro


def test_the_same_probe_gives_the_same_weights_and_another_seed_others():
    features, labels = separable(300)
    features, _ = standardise(features, features)
    first, again = (fit(features, labels, ProbeSettings())[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, fit(features, labels, ProbeSettings(seed=1))[0])


def test_features_are_standardised_with_the_training_split_alone():
    train, test = standardise(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.tensor([[5.0, 9.0]]))
    assert train.tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    assert test.tolist() == [[3.0, 0.0]]


def test_colour_statistics_leave_absent_bands_at_0():
    images = torch.arange(8.0).reshape(1, 2, 2, 2)
    found = colour_statistics(images, torch.tensor([[True, False]]))
    assert found[0].tolist() == pytest.approx([1.5, 0.0, 1.25**0.5, 0.0])


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_size": 0}, {"lr": 0.0}, {"weight_decay": -1.0}])
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"probe.{next(iter(wrong))}"):
        ProbeSettings(**wrong)
