"""A baseline in the place of a run's model: what evaluations ask of a model, around a network of someone else's."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.baselines.interface import BandFacts, Baseline, Sensor


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """What an evaluation reads of a model's config."""

    modalities: tuple[Sensor, ...]
    """The baseline's sensors of which the data set has a band."""
    image_size: int
    """Pixels of the side of an image that it is given: the data set's own, brought to the baseline's size inside."""
    width: int
    """Numbers of a sample's features."""


class BaselineModel(nn.Module):
    """Features of images in dB and digital numbers; scaling and resizing are the baseline's own and happen inside."""

    def __init__(
        self, baseline: Baseline, network: nn.Module, config: BaselineConfig, facts: Mapping[str, BandFacts]
    ) -> None:
        super().__init__()
        self.baseline, self.config, self._facts = baseline, config, facts
        self.network = network

    def features(self, images: dict[str, Tensor]) -> Tensor:
        """(B, width) float32 of images (B, C, S, S) by sensor: any of `config.modalities`, at least one."""
        ordered = {sensor.name: images[sensor.name] for sensor in self.config.modalities if sensor.name in images}
        features_BD: Tensor = self.network(self.baseline.prepare(ordered, self._facts))
        return features_BD.float()

    def untrained(self, seed: int) -> "BaselineModel":
        """The same with weights drawn from `seed`; a floor that has no weights is itself."""
        network = random_network(self.baseline, seed, self.network.state_dict())
        return BaselineModel(self.baseline, network, self.config, self._facts).eval()


def random_network(baseline: Baseline, seed: int, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The baseline's network, sized as a file of these tensors asks, as `seed` draws it; torch's own state stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return baseline.make(tensors)
