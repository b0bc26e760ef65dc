"""The linear probe: how much of a scene's labels a frozen encoder's features hold.

Protocols of Fus-MAE section 4 (encoder and projection frozen, AdamW) for S1 alone, S2 alone and both: BigEarthNet with
the multi-label soft margin loss, 20 epochs, batch 128, 1 % of the labels; SEN12MS with one class a scene,
label-smoothing cross entropy, 10 epochs. What the paper leaves open is a setting.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError
from pipeline.evaluation.seeds import check_seeds
from pipeline.evaluation.task import MULTI_LABEL, Task, TaskName
from pipeline.features import check_share, score_inputs

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.frozen import FrozenModel


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """How the linear probe is trained and scored."""

    labels: float = 1.0
    """Share of the labelled training samples that is used, drawn by the seed without replacement; the paper: 0.01."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each draws its own subset and order of the samples; figures are the mean, with the spread and each seed's."""
    task: TaskName = "auto"
    """auto: single-label for SEN12MS, multi-label for all others."""
    epochs: int | None = None
    """Passes over the training samples; by default the paper's, 20 for multi-label and 10 for single-label."""
    lr: float = 0.01
    """AdamW's learning rate, constant, on standardised features; the paper does not give one."""
    weight_decay: float = 0.01
    """AdamW's decay of the probe's weights."""
    label_smoothing: float = 0.1
    """Of the single-label loss; the paper has it, but not how much."""
    batch_size: int = 128
    """Samples of one step, of the feature extraction, and of the batches that micro_ap_per_batch is a mean over."""
    train_split: str = "train"
    """Split on whose features the probe is trained."""
    test_split: str = "test"
    """Split on which it is scored."""

    def __post_init__(self) -> None:
        if (self.epochs is not None and self.epochs < 1) or self.batch_size < 1:
            raise ConfigError(
                f"probe.epochs = {self.epochs} and probe.batch_size = {self.batch_size} must be at least 1"
            )
        check_share("probe.labels", self.labels)
        check_seeds("probe.seeds", self.seeds)
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"probe.label_smoothing = {self.label_smoothing} must be at least 0 and below 1")
        if not self.lr > 0 or self.weight_decay < 0:
            raise ConfigError(
                f"probe.lr = {self.lr} must be above 0 and probe.weight_decay = {self.weight_decay} at least 0"
            )


def probe(frozen: "FrozenModel", settings: ProbeSettings, untrained_seed: int) -> dict[str, Any]:
    """The probe's figures for each set of modalities; see `pipeline.features.score_inputs`."""
    return score_inputs(
        frozen,
        partial(score_probe, settings=settings),
        train_split=settings.train_split,
        test_split=settings.test_split,
        batch_size=settings.batch_size,
        untrained_seed=untrained_seed,
        task=settings.task,
        labels=settings.labels,
        seeds=settings.seeds,
    )


def score_probe(
    train: "Tensor", test: "Tensor", labels: "Tensor", seed: int, task: Task, settings: ProbeSettings
) -> "Tensor":
    """Scores (samples, classes) that a linear layer trained on `train` (samples, width) gives `test`."""
    weight, bias = fit(train, labels, settings, seed, task)
    return test @ weight.T + bias


def fit(
    features: "Tensor", labels: "Tensor", settings: ProbeSettings, seed: int = 0, task: Task = MULTI_LABEL
) -> tuple["Tensor", "Tensor"]:
    """Weight (classes, width) and bias (classes,) of the probe, begun at 0: the same call gives the same numbers."""
    import torch
    from torch.nn.functional import linear

    weight = torch.zeros(labels.shape[1], features.shape[1], requires_grad=True)
    bias = torch.zeros(labels.shape[1], requires_grad=True)
    optimiser = torch.optim.AdamW(
        [{"params": [weight], "weight_decay": settings.weight_decay}, {"params": [bias], "weight_decay": 0.0}],
        lr=settings.lr,
    )
    order = torch.Generator().manual_seed(seed)
    for _ in range(settings.epochs or task.probe_epochs):
        for chosen in torch.split(torch.randperm(len(features), generator=order), settings.batch_size):
            loss = task.loss(linear(features[chosen], weight, bias), labels[chosen], settings.label_smoothing)
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
    return weight.detach(), bias.detach()
