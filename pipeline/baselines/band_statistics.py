"""The floor: mean and standard deviation of each band, nothing learnt and nothing seen of where things are."""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn

from pipeline.baselines.interface import S1_DB, S2_L2A, BandFacts, Baseline, Sensor
from pipeline.features import colour_statistics

_SENSORS: Final = (Sensor(name="s1", bands=S1_DB), Sensor(name="s2", bands=S2_L2A))


class BandStatistics(nn.Module):
    """Means, then deviations, of the bands of each sensor; 0 for a sensor that is not given."""

    def __init__(self) -> None:
        super().__init__()
        # A module without parameters has no device that could be asked for.
        self.nothing = nn.Parameter(torch.zeros(0), requires_grad=False)

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        """(B, 28)."""
        first = next(iter(images.values()))
        parts = []
        for sensor in _SENSORS:
            image_BCSS = images.get(sensor.name, first.new_zeros(len(first), len(sensor.bands), 1, 1))
            is_there = torch.ones(image_BCSS.shape[:2], dtype=torch.bool, device=first.device)
            parts.append(colour_statistics(image_BCSS, is_there))
        return torch.cat(parts, dim=1)


def _prepare(images: Mapping[str, Tensor], facts: Mapping[str, BandFacts]) -> dict[str, Tensor]:
    del facts
    return dict(images)


BASELINES: Final = {
    "band_statistics": Baseline(
        name="band_statistics",
        title="band statistics",
        sensors=_SENSORS,
        input_size=0,
        width=2 * (len(S1_DB) + len(S2_L2A)),
        resize="none",
        normalisation="none",
        feature="mean and standard deviation of each band; 0 for a sensor that is not given",
        source="a floor of ours",
        verified="their definition, in the tests",
        fill=dict.fromkeys((*S1_DB, *S2_L2A), 0.0),
        make=lambda tensors: BandStatistics(),
        prepare=_prepare,
    )
}
