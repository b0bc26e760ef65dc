"""What the `key.sub=value` of a restoration may set."""

import difflib
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from pipeline.data_settings import DataSettings
from pipeline.errors import ConfigError

_FORBID: dict[str, Any] = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True)
class CloudSettings:
    """Clouds that are drawn over Sentinel-2, and how what fills them is scored."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    cover: float = 0.5
    """Share of an image's patches that lie under the cloud."""
    seed: int = 0
    """Seed of the clouds; a sample's cloud is a function of seed, key, cover and grid."""
    samples: int = 256
    """Samples of the split, the first ones; 0: all."""
    batch_size: int = 16
    """Samples of one forward pass."""
    data_range: float = 1.0
    """Range of reflectance for PSNR and SSIM; a smaller one makes SSIM stricter in dark bands."""
    pictures: int = 4
    """Samples that are drawn."""

    def __post_init__(self) -> None:
        _check("clouds", self)
        if not 0 < self.cover < 1:
            raise ConfigError(f"clouds.cover = {self.cover} must lie between 0 and 1, such as 0.5")


@dataclass(frozen=True, kw_only=True)
class SpeckleSettings:
    """Speckle that is laid over Sentinel-1, and how what takes it out is scored."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    looks: float = 4.0
    """Looks of the speckle: its intensity has mean 1 and variance 1 / looks. Sentinel-1 GRD (IW) has about 4.4."""
    seed: int = 0
    """Seed of speckle and of the patches' parts; a sample's speckle is a function of seed, key and looks."""
    parts: int = 4
    """Parts into which the patches are divided; each is predicted from the others."""
    repeats: int = 4
    """Divisions whose predictions are averaged."""
    samples: int = 256
    """Samples of the split, the first ones; 0: all."""
    batch_size: int = 16
    """Samples of one forward pass."""
    data_range: float = 30.0
    """Range in dB for PSNR and SSIM."""
    pictures: int = 4
    """Samples that are drawn."""

    def __post_init__(self) -> None:
        _check("speckle", self)
        if not self.looks > 0:
            raise ConfigError(f"speckle.looks = {self.looks} must be above 0, such as 4")
        if self.parts < 2 or self.repeats < 1:
            raise ConfigError(
                f"speckle.parts = {self.parts} must be at least 2, speckle.repeats = {self.repeats} at least 1"
            )


@dataclass(frozen=True, kw_only=True)
class RestoreSettings:
    """The settings of `python -m pipeline.restore`, of which a restoration takes its own group alone."""

    data: DataSettings
    """The run's own, unless overridden; data.url gives another data set."""
    clouds: CloudSettings = field(default_factory=CloudSettings)
    """Of `clouds`."""
    speckle: SpeckleSettings = field(default_factory=SpeckleSettings)
    """Of `speckle`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU when there is one."""


GROUPS: dict[str, type[CloudSettings] | type[SpeckleSettings]] = {"clouds": CloudSettings, "speckle": SpeckleSettings}


def resolve(name: str, run_dir_or_checkpoint: str, overrides: list[str]) -> RestoreSettings:
    """The settings of the restoration `name`: the run's data, the defaults, and the overrides.

    Raises ConfigError naming the key that is unknown or cannot work, CheckpointError when there is no run.
    """
    import yaml
    from pydantic import TypeAdapter, ValidationError

    from pipeline.evaluate import resolve_settings

    own_keys = [f"{name}.{each.name}" for each in fields(GROUPS[name])]
    own: dict[str, Any] = {}
    of_evaluations = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if key == "device" or key.startswith("data."):
            of_evaluations.append(override)
        elif not equals or key not in own_keys:
            known = [*own_keys, "data.url", "device"]
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
            hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(known)}"
            raise ConfigError(f"'{override}' sets nothing that '{name}' knows; {hint}")
        else:
            try:
                own[key.partition(".")[2]] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise ConfigError(f"'{override}': the value is not YAML") from error
    shared = resolve_settings(run_dir_or_checkpoint, of_evaluations)
    try:
        group = TypeAdapter(GROUPS[name]).validate_python(own)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([name, *(str(part) for part in first["loc"])])
        raise ConfigError(f"key '{key}' = {first['input']!r}: {first['msg']}") from error
    of_group: dict[str, Any] = {name: group}
    return RestoreSettings(data=shared.data, device=shared.device, **of_group)


def _check(name: str, group: CloudSettings | SpeckleSettings) -> None:
    if group.batch_size < 1 or group.seed < 0 or group.samples < 0 or group.pictures < 0:
        raise ConfigError(
            f"{name}.batch_size = {group.batch_size} must be at least 1; {name}.seed = {group.seed}, "
            f"{name}.samples = {group.samples} and {name}.pictures = {group.pictures} at least 0"
        )
    if not group.data_range > 0:
        raise ConfigError(f"{name}.data_range = {group.data_range} must be above 0")
