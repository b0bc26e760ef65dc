"""Ridge regression on frozen features: how much of the labels is linear in them, in closed form.

Shape legend: N training and M test samples, D width, C classes.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def ridge_scores(train_ND: "Tensor", test_MD: "Tensor", labels_NC: "Tensor", strength: float) -> "Tensor":
    """Scores (M, C) that the labels' ridge regression on `train_ND` gives `test_MD`, in float64.

    Minimises mean squared error + `strength` x squared norm of the weights; the intercept is free. `strength` above 0.
    """
    import torch

    train_ND, test_MD, labels_NC = train_ND.double(), test_MD.double(), labels_NC.double()
    centre_D, share_C = train_ND.mean(dim=0), labels_NC.mean(dim=0)
    train_ND, test_MD, targets_NC = train_ND - centre_D, test_MD - centre_D, labels_NC - share_C
    num_samples, width = train_ND.shape
    weight = strength * num_samples
    if num_samples >= width:
        gram_DD = train_ND.T @ train_ND + weight * torch.eye(width, dtype=torch.float64)
        weights_DC = torch.linalg.solve(gram_DD, train_ND.T @ targets_NC)
    else:
        gram_NN = train_ND @ train_ND.T + weight * torch.eye(num_samples, dtype=torch.float64)
        weights_DC = train_ND.T @ torch.linalg.solve(gram_NN, targets_NC)
    scores_MC: Tensor = test_MD @ weights_DC + share_C
    return scores_MC
