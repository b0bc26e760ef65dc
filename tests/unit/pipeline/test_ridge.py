"""Ridge regression in closed form is the minimum of its loss."""

import numpy as np
import pytest
import torch

from pipeline.ridge import ridge_scores


@pytest.mark.parametrize(("num_samples", "width"), [(40, 7), (12, 30)])
def test_scores_equal_a_direct_solve(num_samples: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    train, test = (torch.randn(n, width, generator=generator) + 3 for n in (num_samples, 9))
    labels = torch.rand(num_samples, 4, generator=generator) > 0.6
    found = ridge_scores(train, test, labels, 0.3).numpy()
    # The intercept as one more column without a penalty.
    x = np.hstack([train.double().numpy(), np.ones((num_samples, 1))])
    penalty = np.diag([0.3 * num_samples] * width + [0.0])
    weights = np.linalg.solve(x.T @ x + penalty, x.T @ labels.double().numpy())
    expected = np.hstack([test.double().numpy(), np.ones((9, 1))]) @ weights
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-9)


def test_strong_ridge_says_the_share_of_positives() -> None:
    train, labels = torch.randn(20, 5), torch.arange(20)[:, None] % 4 == 0
    assert torch.allclose(ridge_scores(train, torch.randn(3, 5), labels, 1e12), torch.full((3, 1), 0.25).double())
