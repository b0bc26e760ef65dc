"""The linear probe's arithmetic: a fit that finds what is linear, and that repeats."""

import pytest
import torch

from pipeline.errors import ConfigError
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
    scores = average_precision(score_probe(train, test, labels[:300], ProbeSettings()), labels[300:])
    assert scores.macro > 0.95 > 0.6 > constant_scores(labels[300:]).macro


def test_the_same_probe_gives_the_same_weights_and_another_seed_others():
    features, labels = separable(300)
    features, _ = standardise(features, features)
    first, again = (fit(features, labels, ProbeSettings())[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, fit(features, labels, ProbeSettings(seed=1))[0])


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_size": 0}, {"lr": 0.0}, {"weight_decay": -1.0}])
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"probe.{next(iter(wrong))}"):
        ProbeSettings(**wrong)
