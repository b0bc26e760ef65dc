"""kNN against a loop over samples, neighbours and classes."""

import math

import pytest
import torch

from pipeline import neighbours
from pipeline.errors import ConfigError
from pipeline.neighbours import KnnSettings, neighbour_scores


def by_loop(train, test, labels, k):
    """Literally: every cosine, the k largest, each neighbour's vote."""
    scores = []
    for sample in test.tolist():
        cosines = []
        for number, other in enumerate(train.tolist()):
            dot = sum(a * b for a, b in zip(sample, other, strict=True))
            cosines.append((dot / (math.hypot(*sample) * math.hypot(*other)), number))
        nearest = sorted(cosines, reverse=True)[:k]
        row = []
        for label in range(labels.shape[1]):
            total = voted = 0.0
            for cosine, number in nearest:
                weight = max(cosine, 1e-6)
                total += weight
                voted += weight * float(labels[number, label])
            row.append(voted / total)
        scores.append(row)
    return torch.tensor(scores)


@pytest.fixture
def sets():
    draws = torch.Generator().manual_seed(0)
    train, test = torch.randn(23, 6, generator=draws), torch.randn(11, 6, generator=draws)
    return train, test, torch.rand(23, 4, generator=draws) < 0.4


@pytest.mark.parametrize("k", [1, 5, 20, 23])
def test_scores_are_those_of_a_literal_loop(sets, k):
    torch.testing.assert_close(neighbour_scores(*sets, k), by_loop(*sets, k))


def test_a_nearer_neighbour_counts_more():
    train = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    labels = torch.tensor([[1, 0], [0, 1], [0, 1]]).bool()
    scores = neighbour_scores(train, torch.tensor([[2.0, 0.0]]), labels, 2)
    near, far = 1.0, 0.5**0.5
    assert scores[0].tolist() == pytest.approx([near / (near + far), far / (near + far)])


def test_lengths_do_not_matter(sets):
    train, test, labels = sets
    longer = neighbour_scores(train * torch.arange(1, 24)[:, None], 7 * test, labels, 5)
    torch.testing.assert_close(longer, neighbour_scores(train, test, labels, 5))


def test_opposite_neighbours_only_decide_where_there_are_no_others():
    train = torch.tensor([[-1.0, 0.0], [-1.0, 0.1]])
    labels = torch.tensor([[1], [0]]).bool()
    assert neighbour_scores(train, torch.tensor([[1.0, 0.0]]), labels, 2).item() == pytest.approx(0.5)
    train[1] = torch.tensor([1.0, 0.1])
    assert neighbour_scores(train, torch.tensor([[1.0, 0.0]]), labels, 2).item() < 1e-5


def test_many_samples_are_compared_piece_by_piece(sets, monkeypatch):
    whole = neighbour_scores(*sets, 5)
    monkeypatch.setattr(neighbours, "_ROWS", 3)
    torch.testing.assert_close(neighbour_scores(*sets, 5), whole)


@pytest.mark.parametrize("k", [0, 24])
def test_more_neighbours_than_there_are_samples_are_refused(sets, k):
    with pytest.raises(ConfigError, match=rf"{k} neighbours cannot be had from 23 training samples; write 1 to 23"):
        neighbour_scores(*sets, k)


@pytest.mark.parametrize("wrong", [{"neighbours": 0}, {"batch_size": 0}])
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"knn.{next(iter(wrong))} = 0"):
        KnnSettings(**wrong)
