"""kNN on frozen features: what the nearest training samples say of a sample's labels; nothing is trained.

Shape legend: N training and M test samples, D width, C classes, K neighbours.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import ConfigError
from pipeline.evaluation.task import Task, TaskName
from pipeline.features import score_inputs

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.frozen import FrozenModel

_ROWS: Final = 1024
"""Test samples compared at a time: all against a large training split would not fit into memory."""
_LEAST: Final = 1e-6
"""Weight of a neighbour that is not similar at all. Where all are such, each then counts the same."""


@dataclass(frozen=True, kw_only=True)
class KnnSettings:
    """Whose labels are asked, and how many."""

    neighbours: int = 20
    """Training samples that vote on a test sample's labels."""
    task: TaskName = "auto"
    """auto: single-label for SEN12MS, multi-label for all others."""
    batch_size: int = 128
    """Samples of one forward pass, and of the batches that micro_ap_per_batch is a mean over."""
    train_split: str = "train"
    """Split whose samples vote."""
    test_split: str = "test"
    """Split that is scored."""

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.batch_size < 1:
            raise ConfigError(
                f"knn.neighbours = {self.neighbours} and knn.batch_size = {self.batch_size} must be at least 1"
            )


def knn(frozen: "FrozenModel", settings: KnnSettings, untrained_seed: int) -> dict[str, Any]:
    """The figures of kNN for each set of modalities; see `pipeline.features.score_inputs`.

    Raises ConfigError when more neighbours are asked for than there are training samples.
    """

    def scorer(train_ND: "Tensor", test_MD: "Tensor", labels_NC: "Tensor", seed: int, task: Task) -> "Tensor":
        del seed, task  # nothing is drawn, and votes are votes
        if settings.neighbours > len(train_ND):
            raise ConfigError(
                f"knn.neighbours = {settings.neighbours} is more than the {len(train_ND)} labelled samples of "
                f"'{settings.train_split}'; write knn.neighbours={len(train_ND)} or less"
            )
        train_ND, test_MD, labels_NC = (tensor.to(frozen.device) for tensor in (train_ND, test_MD, labels_NC))
        return neighbour_scores(train_ND, test_MD, labels_NC, settings.neighbours).cpu()

    return score_inputs(
        frozen,
        scorer,
        train_split=settings.train_split,
        test_split=settings.test_split,
        batch_size=settings.batch_size,
        untrained_seed=untrained_seed,
        task=settings.task,
    )


def neighbour_scores(train_ND: "Tensor", test_MD: "Tensor", labels_NC: "Tensor", num_neighbours: int) -> "Tensor":
    """Scores (M, C) from 0 to 1: of the K training samples of largest cosine, the share that has the class.

    A neighbour's weight is its cosine, that of an opposite one is nearly 0. Features count as they come: where all
    have a large part in common, take it off before (`pipeline.features.standardise`). Raises ConfigError unless there
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
