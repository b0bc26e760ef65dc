"""Which of a model's modalities is the radar and which the optical one, and what their numbers mean."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import ConfigError, DataError
from sharding.bands import S1_BANDS, S2_BANDS

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.frozen import FrozenModel

_REFLECTANCE_OF: Final = {"DN": 1e-4, "reflectance": 1.0}
"""Sentinel-2 products give 10,000 times the reflectance (QUANTIFICATION_VALUE)."""


@dataclass(frozen=True, kw_only=True)
class Sensors:
    """The two sensors of a model."""

    radar: str
    optical: str
    radar_bands: tuple[str, ...]
    optical_bands: tuple[str, ...]

    @classmethod
    def of(cls, frozen: "FrozenModel") -> "Sensors":
        """Those of a model that can restore; ConfigError says why it cannot."""
        config = frozen.model.config
        if config.target_norm != "none":
            raise ConfigError(
                f"the run has model.target_norm={config.target_norm}: it predicts patches relative to their own mean "
                "and deviation, which are not known of what is to be restored; take a run with model.target_norm=none"
            )
        found: dict[str, list[Any]] = {"radar": [], "optical": []}
        for modality in config.modalities:
            for kind, bands in (("radar", S1_BANDS), ("optical", S2_BANDS)):
                if set(modality.bands) <= set(bands):
                    found[kind].append(modality)
        for kind, sensor in (("radar", "Sentinel-1"), ("optical", "Sentinel-2")):
            if len(found[kind]) != 1:
                have = ", ".join(f"{m.name} ({', '.join(m.bands)})" for m in config.modalities)
                raise ConfigError(
                    f"one modality of {sensor} bands alone is needed, and the model has {have}; take a run with "
                    "modalities of their own for the two sensors"
                )
        (radar,), (optical,) = found["radar"], found["optical"]
        for modality in (radar, optical):
            if modality.name not in frozen.given:
                raise DataError(f"{frozen.data.url} has no band of {modality.name}; give another data.url=URL")
        return cls(
            radar=radar.name,
            optical=optical.name,
            radar_bands=tuple(radar.bands),
            optical_bands=tuple(optical.bands),
        )


def units_of(frozen: "FrozenModel", band: str) -> str:
    """Units of a band of the data set; empty for one that it lacks."""
    return next((array.units for array in frozen.manifest.arrays if band in array.bands), "")


def as_reflectance(frozen: "FrozenModel", sensors: Sensors, images_BCHW: "Tensor") -> "Tensor":
    """Normalised images of the optical sensor as reflectance; DataError for units of which that is not known."""
    import torch

    factors = []
    for band in sensors.optical_bands:
        units = units_of(frozen, band)
        if units and units not in _REFLECTANCE_OF:
            known = " or ".join(_REFLECTANCE_OF)
            raise DataError(f"{band} of {frozen.data.url} is in '{units}', not in {known}; give another data.url=URL")
        factors.append(_REFLECTANCE_OF.get(units, 1.0))
    factor_C = torch.tensor(factors, device=images_BCHW.device)[:, None, None]
    values: Tensor = frozen.transform.denormalise(sensors.optical, images_BCHW) * factor_C
    return values


def is_in_db(frozen: "FrozenModel", sensors: Sensors) -> bool:
    """Whether the data set has its radar in dB; DataError for other units than dB and linear power."""
    units = {units_of(frozen, band) for band in sensors.radar_bands} - {""}
    if units not in ({"dB"}, {"linear"}):
        raise DataError(f"{sensors.radar} of {frozen.data.url} is in {', '.join(sorted(units))}, not in dB or linear")
    return units == {"dB"}
