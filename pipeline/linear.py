"""The linear probe: how much of a scene's labels a frozen encoder's features hold.

Protocol of Fus-MAE section 4.2 (encoder and projection frozen, AdamW, multi-label soft margin loss, 20 epochs,
batch 128) for S1 alone, S2 alone and both. What the paper leaves open is a setting.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError
from pipeline.features import score_inputs

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.frozen import FrozenModel


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """How the linear probe is trained and scored."""

    epochs: int = 20
    """Passes over the training split."""
    lr: float = 0.01
    """AdamW's learning rate, constant, on standardised features; the paper does not give one."""
    weight_decay: float = 0.01
    """AdamW's decay of the probe's weights."""
    batch_size: int = 128
    """Samples of one step, of the probe and of the feature extraction."""
    seed: int = 0
    """Seed of the order of the samples."""
    train_split: str = "train"
    """Split on whose features the probe is trained."""
    test_split: str = "test"
    """Split on which it is scored."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ConfigError(
                f"probe.epochs = {self.epochs} and probe.batch_size = {self.batch_size} must be at least 1"
            )
        if not self.lr > 0 or self.weight_decay < 0:
            raise ConfigError(
                f"probe.lr = {self.lr} must be above 0 and probe.weight_decay = {self.weight_decay} at least 0"
            )


def probe(frozen: "FrozenModel", settings: ProbeSettings) -> dict[str, Any]:
    """The probe's figures for each set of modalities; see `pipeline.features.score_inputs`."""
    return score_inputs(
        frozen,
        partial(score_probe, settings=settings),
        train_split=settings.train_split,
        test_split=settings.test_split,
        batch_size=settings.batch_size,
    )


def score_probe(train: "Tensor", test: "Tensor", labels: "Tensor", settings: ProbeSettings) -> "Tensor":
    """Scores (samples, classes) that a linear layer trained on `train` (samples, width) gives `test`."""
    weight, bias = fit(train, labels, settings)
    return test @ weight.T + bias


def fit(features: "Tensor", labels: "Tensor", settings: ProbeSettings) -> tuple["Tensor", "Tensor"]:
    """Weight (classes, width) and bias (classes,) of the probe, begun at 0: the same call gives the same numbers."""
    import torch
    from torch.nn.functional import linear, multilabel_soft_margin_loss

    weight = torch.zeros(labels.shape[1], features.shape[1], requires_grad=True)
    bias = torch.zeros(labels.shape[1], requires_grad=True)
    optimiser = torch.optim.AdamW(
        [{"params": [weight], "weight_decay": settings.weight_decay}, {"params": [bias], "weight_decay": 0.0}],
        lr=settings.lr,
    )
    order = torch.Generator().manual_seed(settings.seed)
    targets = labels.float()
    for _ in range(settings.epochs):
        for chosen in torch.split(torch.randperm(len(features), generator=order), settings.batch_size):
            loss = multilabel_soft_margin_loss(linear(features[chosen], weight, bias), targets[chosen])
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
    return weight.detach(), bias.detach()
