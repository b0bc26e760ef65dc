"""What a baseline is: its bands, its units and size, its network, and how the keys of its published file map to ours.

Shape legend: B batch, C bands, S pixels of a side, D width of the features.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.baselines.key_map import KeyMap

S1_DB = ("VV", "VH")
S2_L2A = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """One sensor as a baseline takes it."""

    name: str
    """s1 or s2."""
    bands: tuple[str, ...]
    """By name, in the order of the channels that `Baseline.prepare` is given."""


@dataclass(frozen=True, kw_only=True)
class BandFacts:
    """Mean and standard deviation of a band in the data set's split train, in dB or digital numbers."""

    mean: float
    std: float


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """An encoder that was trained elsewhere, or a floor that nobody trained.

    It takes any of its sensors alone and all together; features are (B, width) for each of these.
    """

    name: str
    title: str
    sensors: tuple[Sensor, ...]
    input_size: int
    """Pixels of the side that images are brought to; 0: as they are."""
    width: int
    """Numbers of a sample's features."""
    resize: str
    """How images come to that size, in words."""
    normalisation: str
    """What is done to dB and digital numbers, in words."""
    feature: str
    """What the features are, for one sensor and for both, in words."""
    source: str
    """Where architecture, keys and preprocessing are documented."""
    file: str = ""
    """Name of the published file of weights; empty: the baseline takes none."""
    verified: str = ""
    """With what our features were compared, and how far they lay apart; empty: with nothing."""
    fill: Mapping[str, float] = field(default_factory=dict)
    """What stands for a band that the data set lacks, in dB or digital numbers; without it, the band is required."""
    needs_statistics: bool = False
    """Whether `prepare` uses the data set's statistics, so that its S1 must be in dB."""
    make: "Callable[[Mapping[str, Tensor]], nn.Module]"
    """The network, with weights drawn from torch's generator; sizes that vary between files come from the tensors of
    one, which may be empty."""
    prepare: "Callable[[Mapping[str, Tensor], Mapping[str, BandFacts]], dict[str, Tensor]]"
    """The network's input from images (B, C, S, S) by sensor, in dB and digital numbers, and facts by band."""
    select: "Callable[[dict[str, Tensor]], dict[str, Tensor]]" = dict
    """The encoder's tensors of a file, whose nested names are joined by points, without prefixes of its trainer."""
    key_map: "Callable[[nn.Module], KeyMap] | None" = None
    """Where each key of the file goes."""

    @property
    def is_verified(self) -> bool:
        """Whether the features were compared with an independent implementation."""
        return bool(self.verified)
