"""What an evaluation is given: a run or one of its checkpoints, or `baseline:NAME`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.baselines.registry import PREFIX, RANDOM, baseline_name, load_baseline
from pipeline.baselines.settings import BaselineSettings
from pipeline.data_settings import DataSettings
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.baselines.interface import Baseline
    from pipeline.frozen import FrozenModel


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model before a data set, and what is said of it."""

    frozen: "FrozenModel"
    folder: Path
    """Where results go."""
    about: dict[str, Any] = field(default_factory=dict)
    """Under `baseline`: what the result of a baseline says of it; nothing for a run."""


def open_evaluated(given: str, data: DataSettings, baseline: BaselineSettings, device: str) -> Opened:
    """The model of a run or checkpoint, or the baseline `baseline:NAME`, before the data set of `data`.

    Raises ConfigError when settings, file or data set do not go with it, and what `pipeline.frozen.open_frozen` raises.
    """
    from pipeline.frozen import open_frozen

    name = baseline_name(given)
    if name is None:
        if baseline != BaselineSettings():
            raise ConfigError(f"baseline.* belongs to {PREFIX}NAME, not to the run {given}; leave it out")
        frozen = open_frozen(given, data, device)
        return Opened(frozen=frozen, folder=frozen.run_dir / "evaluation")
    folder = Path(baseline.out or f"evaluation-{name}")
    if name == RANDOM:
        return _open_random(data, baseline, device, folder)
    if baseline.config:
        raise ConfigError(f"baseline.config = {baseline.config} belongs to {PREFIX}{RANDOM}; leave it out")
    return _open_published(load_baseline(name), data, baseline, device, folder)


def data_of(given: str) -> dict[str, Any]:
    """The data settings that an evaluation starts from: a run's own, or the defaults without a data set."""
    from pipeline.checkpoint.named import named
    from pipeline.config import to_dict

    if baseline_name(given) is not None:
        return {}
    own: dict[str, Any] = to_dict(named(given).settings().data)
    return own


def describe(about: Mapping[str, Any]) -> list[str]:
    """What is printed of a baseline below its figures."""
    verified = f"verified: {about['verified']}" if about["verified"] else "unverified: compared with no other program"
    weights = about["weights"] or f"random, seed {about['seed']}"
    bands = "; ".join(f"{name} {' '.join(of_sensor)}" for name, of_sensor in about["bands"].items())
    lines = [
        f"{about['name']}: {about['title']}, weights: {weights}; {verified}",
        f"bands: {bands}",
        f"size: {about['stored_size']} -> {about['input_size']} pixels ({about['resize']}); {about['normalisation']}",
        f"features: {about['feature']} ({about['width']} numbers)",
    ]
    if about["filled"]:
        filled = ", ".join(f"{band} = {value:g}" for band, value in about["filled"].items())
        lines.append(f"absent from the data set and filled for all samples: {filled}")
    return lines


def _open_published(
    baseline: "Baseline", data: DataSettings, settings: BaselineSettings, device: str, folder: Path
) -> Opened:
    from pipeline.baselines.model import BaselineConfig, BaselineModel, random_network
    from pipeline.baselines.units import UnitsTransform, band_facts, given_sensors
    from pipeline.distributed import choose_device
    from pipeline.frozen import FrozenModel
    from pipeline.stream.exact import read_image_manifest

    manifest = read_image_manifest(data.url)
    sensors = given_sensors(manifest, baseline.sensors)
    transform = UnitsTransform(manifest, sensors, baseline.fill, data.upsample)
    facts = band_facts(manifest, sensors) if baseline.needs_statistics else {}
    tensors = _read(baseline, settings.weights)
    network = random_network(baseline, settings.seed, tensors)
    if tensors:
        from pipeline.baselines.key_map import load_into

        assert baseline.key_map is not None, baseline.name
        load_into(network, tensors, baseline.key_map(network), settings.weights)
    config = BaselineConfig(modalities=sensors, image_size=transform.size, width=baseline.width)
    target = choose_device(device, 0)
    model = BaselineModel(baseline, network, config, facts).to(target).eval()
    frozen = FrozenModel(
        model=model, step=0, run_dir=folder, data=data, manifest=manifest, transform=transform, device=target
    )
    about = {
        "name": baseline.name,
        "title": baseline.title,
        "weights": settings.weights,
        "seed": settings.seed,
        "verified": baseline.verified,
        "bands": {sensor.name: list(sensor.bands) for sensor in sensors},
        "stored_size": transform.size,
        "input_size": baseline.input_size or transform.size,
        "resize": baseline.resize,
        "normalisation": baseline.normalisation,
        "feature": baseline.feature,
        "width": baseline.width,
        "filled": {band: baseline.fill[band] for band in frozen.absent_bands},
        "source": baseline.source,
    }
    return Opened(frozen=frozen, folder=folder, about={"baseline": about})


def _read(baseline: "Baseline", path_or_url: str) -> dict[str, "Tensor"]:
    """The encoder's tensors of the file; none for a baseline without one. ConfigError when it lacks or is too much."""
    from pipeline.pretrained import read_nested

    if not baseline.file:
        if path_or_url:
            raise ConfigError(f"{PREFIX}{baseline.name} takes no weights; leave baseline.weights out")
        return {}
    if not path_or_url:
        raise ConfigError(f"{PREFIX}{baseline.name} needs baseline.weights=FILE, the published {baseline.file}")
    return baseline.select(read_nested(path_or_url))


def _open_random(data: DataSettings, settings: BaselineSettings, device: str, folder: Path) -> Opened:
    import torch

    from fusmae import FusMAE
    from pipeline.config import load_settings, model_config
    from pipeline.distributed import choose_device
    from pipeline.frozen import before_data

    if settings.weights:
        raise ConfigError(f"{PREFIX}{RANDOM} takes no weights; leave baseline.weights out")
    if not settings.config:
        raise ConfigError(f"{PREFIX}{RANDOM} needs baseline.config=CONFIG.yaml, the settings of a run")
    config = model_config(load_settings(settings.config, []))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = FusMAE(config)
    target = choose_device(device, 0)
    frozen = before_data(model.to(target).eval(), data, target, step=0, run_dir=folder)
    about = {
        "name": RANDOM,
        "title": f"the encoder of {settings.config}, untrained",
        "weights": "",
        "seed": settings.seed,
        "verified": "it is the model that a run trains",
        "bands": {modality.name: list(modality.bands) for modality in config.modalities},
        "stored_size": max(spec.height for spec in frozen.manifest.arrays),
        "input_size": config.image_size,
        "resize": "the central window",
        "normalisation": "each band minus its mean, divided by its deviation, both of the data set",
        "feature": "mean of the patch tokens of all given sensors",
        "width": config.width,
        "filled": {},
        "source": "fusmae",
    }
    return Opened(frozen=frozen, folder=folder, about={"baseline": about})
