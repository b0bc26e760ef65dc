"""kNN on frozen features: what the nearest training samples say of a sample's labels; nothing is trained.

Shape legend: N training and M test samples, D width, C classes, K neighbours.
"""

from typing import TYPE_CHECKING, Final

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

NUM_NEIGHBOURS: Final = 20
_ROWS: Final = 1024
"""Test samples compared at a time: all against a large training split would not fit into memory."""
_LEAST: Final = 1e-6
"""Weight of a neighbour that is not similar at all. Where all are such, each then counts the same."""


def neighbour_scores(
    train_ND: "Tensor", test_MD: "Tensor", labels_NC: "Tensor", num_neighbours: int = NUM_NEIGHBOURS
) -> "Tensor":
    """Scores (M, C) from 0 to 1: of the K training samples of largest cosine, the share that has the class.

    A neighbour's weight is its cosine, that of an opposite one is nearly 0. Features count as they come: where all
    have a large part in common, take it off before (`pipeline.linear.standardise`). Raises ConfigError unless there
    are K training samples.
    """
    import torch
    from torch.nn.functional import normalize

    if not 1 <= num_neighbours <= len(train_ND):
        raise ConfigError(
            f"{num_neighbours} neighbours cannot be had from {len(train_ND)} training samples; write 1 to "
            f"{len(train_ND)}"
        )
    train_ND, votes_NC = normalize(train_ND.float(), dim=1), labels_NC.float()
    parts = []
    for rows_MD in torch.split(normalize(test_MD.float(), dim=1), _ROWS):
        cosine_MK, nearest_MK = (rows_MD @ train_ND.T).topk(num_neighbours, dim=1)
        weight_MK = cosine_MK.clamp(min=_LEAST)
        votes_MC = (weight_MK[:, :, None] * votes_NC[nearest_MK]).sum(dim=1)
        parts.append(votes_MC / weight_MK.sum(dim=1, keepdim=True))
    return torch.cat(parts)
