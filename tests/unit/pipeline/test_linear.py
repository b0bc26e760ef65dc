"""The linear probe's arithmetic: a fit that finds what is linear, and that repeats."""

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.evaluation.task import MULTI_LABEL, SINGLE_LABEL
from pipeline.features import standardise
from pipeline.linear import ProbeSettings, fit, score_probe
from pipeline.scores import average_precision, constant_scores


def separable(num: int) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(3)
    features = torch.randn(num, 6, generator=draws)
    return features * 100 + 1000, torch.stack([features[:, 0] > 0, features[:, 1] > 0.5], dim=1)


def test_the_probe_finds_what_is_linear_in_the_features():
    features, labels = separable(400)
    train, test = standardise(features[:300], features[300:])
    scores = average_precision(score_probe(train, test, labels[:300], 0, MULTI_LABEL, ProbeSettings()), labels[300:])
    assert scores.macro > 0.95 > 0.6 > constant_scores(labels[300:]).macro


def test_the_same_probe_gives_the_same_weights_and_another_seed_others():
    features, labels = separable(300)
    features, _ = standardise(features, features)
    first, again = (fit(features, labels, ProbeSettings())[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, fit(features, labels, ProbeSettings(), seed=1)[0])


def test_the_epochs_are_the_papers_unless_they_are_set():
    features, labels = separable(300)
    features, _ = standardise(features, features)
    for task, epochs in ((MULTI_LABEL, 20), (SINGLE_LABEL, 10)):
        own = fit(features, labels, ProbeSettings(), 0, task)[0]
        assert torch.equal(own, fit(features, labels, ProbeSettings(epochs=epochs), 0, task)[0])
        assert not torch.equal(own, fit(features, labels, ProbeSettings(epochs=epochs + 1), 0, task)[0])


def test_a_probe_of_one_label_finds_the_class_and_is_smoothed():
    draws = torch.Generator().manual_seed(1)
    features = torch.randn(600, 5, generator=draws)
    labels = torch.eye(3, dtype=torch.bool)[features[:, :3].argmax(dim=1)]
    scores = score_probe(features[:400], features[400:], labels[:400], 0, SINGLE_LABEL, ProbeSettings(epochs=40))
    found = SINGLE_LABEL.score(scores, labels[400:], ("a", "b", "c"), 1)
    assert found["top1"] > 0.9 and found["top3"] == 1.0
    smoothed, sharp = (
        fit(features, labels, ProbeSettings(epochs=200, label_smoothing=s), 0, SINGLE_LABEL)[0] for s in (0.3, 0.0)
    )
    assert smoothed.norm() < sharp.norm()


WRONG = [
    {"epochs": 0}, {"batch_size": 0}, {"lr": 0.0}, {"weight_decay": -1.0}, {"labels": 0.0}, {"labels": 1.5},
    {"seeds": ()}, {"seeds": (1, 1)}, {"seeds": (-1,)}, {"label_smoothing": 1.0},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"probe.{next(iter(wrong))}"):
        ProbeSettings(**wrong)
