"""A data set's images in the units that baselines ask for: radar in dB, optical bands in digital numbers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.baselines.interface import BandFacts, Sensor
from pipeline.errors import ConfigError
from pipeline.transform import ImageTransform

if TYPE_CHECKING:
    from sharding.manifest import ArraySpec, Manifest

_LEAST = 1e-5
"""Backscatter below which the logarithm is not taken: -50 dB, which is noise."""
_FULL = 10_000.0
"""Digital number of a reflectance of 1."""


class UnitsTransform:
    """Makes `images` and `valid` of a batch, as `pipeline.transform.ImageTransform`, but in dB and digital numbers.

    A sample's band that is absent is the data set's mean of it; one that the data set lacks is what `fill` says.
    """

    def __init__(
        self, manifest: "Manifest", sensors: Sequence[Sensor], fill: Mapping[str, float], upsample: Any = "nearest"
    ) -> None:
        """For these sensors; ConfigError for a band that is neither there nor filled, or has other units."""
        specs = {band: spec for spec in manifest.arrays for band in spec.bands}
        self.size = max(spec.height for spec in manifest.arrays)
        """Pixels of an image's side: all that is stored."""
        lacking = [band for sensor in sensors for band in sensor.bands if band not in specs]
        if required := [band for band in lacking if band not in fill]:
            raise ConfigError(
                f"the data set lacks {', '.join(required)}, which this baseline cannot do without; it has "
                f"{', '.join(manifest.bands)}"
            )
        self._sensors = {sensor.name: sensor.bands for sensor in sensors}
        self._units = {band: _units_of(spec) for band, spec in specs.items() if band in _all_bands(sensors)}
        self._fill = {band: fill[band] for band in lacking}
        self._stored = ImageTransform(
            manifest,
            [(sensor.name, sensor.bands) for sensor in sensors],
            self.size,
            flips=False,
            upsample=upsample,
            absent_bands=True,
        )
        self._on_device: dict[tuple[str, torch.device], Tensor] = {}

    def __call__(self, batch: Any, random: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """By sensor, float32 images (B, C, S, S) in dB or digital numbers, and bool (B, C): which bands there are."""
        images, valid = self._stored(batch, random)
        return {name: self._in_units(name, image_BCSS) for name, image_BCSS in images.items()}, valid

    def _in_units(self, name: str, image_BCSS: Tensor) -> Tensor:
        value_BCSS = self._stored.denormalise(name, image_BCSS)
        bands = self._sensors[name]
        if any(self._units.get(band) == "linear" for band in bands):
            value_BCSS = 10 * value_BCSS.clamp(min=_LEAST).log10()
        if any(self._units.get(band) == "reflectance" for band in bands):
            value_BCSS = value_BCSS * _FULL
        if not self._fill.keys() & set(bands):
            return value_BCSS
        if (name, image_BCSS.device) not in self._on_device:
            fill_C = torch.tensor([self._fill.get(band, float("nan")) for band in bands], device=image_BCSS.device)
            self._on_device[name, image_BCSS.device] = fill_C[:, None, None]
        fill_C11 = self._on_device[name, image_BCSS.device]
        return torch.where(fill_C11.isnan(), value_BCSS, fill_C11)


def band_facts(manifest: "Manifest", sensors: Sequence[Sensor]) -> dict[str, BandFacts]:
    """Of each band that the data set has, in dB and digital numbers.

    ConfigError for radar in linear units, whose mean in dB the data set does not know.
    """
    facts = {}
    for spec in manifest.arrays:
        for band in set(spec.bands) & _all_bands(sensors):
            units, statistics = _units_of(spec), manifest.training_statistics[band]
            if units == "linear":
                raise ConfigError(
                    f"this baseline scales by the data set's statistics in dB, and {band} is stored as linear "
                    "backscatter; build the data set with dB"
                )
            scale = _FULL if units == "reflectance" else 1.0
            # A band that never varies tells nothing, whatever it is divided by.
            facts[band] = BandFacts(mean=statistics.mean * scale, std=statistics.std * scale or 1.0)
    return facts


def given_sensors(manifest: "Manifest", sensors: Sequence[Sensor]) -> tuple[Sensor, ...]:
    """Those of which the data set has a band; ConfigError when there is none."""
    found = tuple(sensor for sensor in sensors if set(sensor.bands) & set(manifest.bands))
    if not found:
        asked = ", ".join(band for sensor in sensors for band in sensor.bands)
        raise ConfigError(f"the data set has none of the bands {asked}; it has {', '.join(manifest.bands)}")
    return found


def _all_bands(sensors: Sequence[Sensor]) -> set[str]:
    return {band for sensor in sensors for band in sensor.bands}


def _units_of(spec: "ArraySpec") -> str:
    if spec.units not in ("dB", "linear", "DN", "reflectance"):
        raise ConfigError(f"array {spec.name} is in {spec.units}; baselines take dB, linear, DN and reflectance")
    return spec.units
