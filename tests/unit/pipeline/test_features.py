"""What is made of features before they are scored."""

import pytest
import torch

from pipeline.features import colour_statistics, standardise


def test_features_are_standardised_with_the_training_split_alone():
    train, test = standardise(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.tensor([[5.0, 9.0]]))
    assert train.tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    assert test.tolist() == [[3.0, 0.0]]


def test_colour_statistics_leave_absent_bands_at_0():
    images = torch.arange(8.0).reshape(1, 2, 2, 2)
    found = colour_statistics(images, torch.tensor([[True, False]]))
    assert found[0].tolist() == pytest.approx([1.5, 0.0, 1.25**0.5, 0.0])
