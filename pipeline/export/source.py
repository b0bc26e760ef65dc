"""What is exported: a checkpoint's weights, and the statistics of the data that it was trained on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from pipeline.config import cross_scale_config, to_dict
from pipeline.errors import CheckpointError, ConfigError
from pipeline.export.fusmae_inference import FORMAT, FusMAE
from pipeline.run_folder import flatten
from pipeline.stream.exact import read_image_manifest
from pipeline.weights import LoadedWeights, load_weights, of_another_model
from sharding.manifest import ALL_SPLITS, Manifest

EXPRESSED: Final = {
    "encoder_fusion": ("none", "xae"),
    "positions": ("sincos", "learned"),
    "attention_backend": ("xformers", "sdpa", "math"),
}
"""Settings that decide what the encoder computes, with the choices that `fusmae_inference` has."""
_ENCODER: Final = ("projections.", "encoder.", "positions.")
_ONE: Final = "training"
"""Name of the data set of a run that has only one."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint, ready to be written."""

    loaded: LoadedWeights
    config: dict[str, Any]
    """The content of `config.json`."""

    @property
    def encoder_weights(self) -> dict[str, Any]:
        """What features need."""
        return {name: value for name, value in self.loaded.weights.items() if name.startswith(_ENCODER)}

    def encoder(self) -> FusMAE:
        """The encoder as the exported file computes it, in evaluation mode."""
        model = FusMAE(self.config)
        model.load_state_dict(self.encoder_weights)
        return model.eval()


def open_source(run_dir_or_checkpoint: str, data: Sequence[str] = ()) -> Source:
    """The newest whole checkpoint of a run, or the given one, with its data's statistics.

    Args:
        run_dir_or_checkpoint: where it lies.
        data: `URL`, or `NAME=URL` for a data set of a mixture: where the data set lies now, if it was moved.

    Raises CheckpointError when it is damaged or of another model, DataError when a data set is not there, ConfigError
    when the data set is another one than that of the training, or the exported file cannot compute this encoder.
    """
    loaded = load_weights(run_dir_or_checkpoint)
    _check_expressed(loaded)
    config = {
        "format": FORMAT,
        "step": loaded.step,
        "features": "mean of the patch tokens of all given sensors, behind the last LayerNorm, without global token",
        "model": to_dict(loaded.config),
        "upsample": loaded.settings.data.upsample,
        "data_sets": _data_sets(loaded, data),
        "training": _training(loaded),
    }
    source = Source(loaded=loaded, config=config)
    try:
        source.encoder()
    except RuntimeError as error:
        raise of_another_model(loaded.title, loaded.config_name, error) from error
    return source


def _check_expressed(loaded: LoadedWeights) -> None:
    import torch

    import fusmae

    for field, choices in EXPRESSED.items():
        if (value := getattr(loaded.config, field)) not in choices:
            raise ConfigError(
                f"an encoder with {field} '{value}' cannot be exported; those with {', '.join(choices)} can"
            )
    with torch.device("meta"):
        model = fusmae.FusMAE(replace(loaded.config, attention_backend="sdpa"))
    try:
        model.load_state_dict(loaded.weights, assign=True)
    except RuntimeError as error:
        raise of_another_model(loaded.title, loaded.config_name, error) from error


def _data_sets(loaded: LoadedWeights, data: Sequence[str]) -> list[dict[str, Any]]:
    """Each data set's statistics of the model's bands; first the one on which evaluations are made."""
    settings = loaded.settings.data
    urls = {member.title: member.url for member in settings.mixture} or {_ONE: settings.url}
    for given in data:
        name, equals, url = given.partition("=")
        if equals and name in urls:
            urls[name] = url
        elif len(urls) == 1:
            urls = dict.fromkeys(urls, given)
        else:
            raise ConfigError(f"--data {given} names none of the data sets {', '.join(urls)}; write NAME=URL")
    trained_on = loaded.manifest.get("data_fingerprint")
    fingerprints = trained_on if isinstance(trained_on, dict) else {_ONE: trained_on}
    bands = [band for modality in loaded.config.modalities for band in modality.bands]
    entries = []
    for name in sorted(urls, key=lambda name: urls[name] != settings.url):
        manifest = read_image_manifest(urls[name])
        if (wanted := fingerprints.get(name)) not in (None, manifest.fingerprint):
            raise ConfigError(
                f"the data set at {urls[name]} has the fingerprint {manifest.fingerprint[:12]}, the run was trained on"
                f" {str(wanted)[:12]}; say where that one lies: --data {'URL' if name == _ONE else f'{name}=URL'}"
            )
        entries.append(_described(name, manifest, bands))
    found = {band for entry in entries for band in entry["bands"]}
    if missing := [band for band in bands if band not in found]:
        raise CheckpointError(f"{loaded.title} is of a model with band {missing[0]}, which its data set does not have")
    return entries


def _described(name: str, manifest: Manifest, bands: list[str]) -> dict[str, Any]:
    specs = {band: spec for spec in manifest.arrays for band in spec.bands}
    statistics = manifest.training_statistics
    known = [band for band in bands if band in specs and band in statistics]
    return {
        "name": name,
        "fingerprint": manifest.fingerprint,
        "version": manifest.version,
        "subset": manifest.subset,
        "statistics_of": "train" if manifest.statistics.get("train") else ALL_SPLITS,
        "sources": [to_dict(source) for source in manifest.sources],
        "samples": manifest.splits,
        "bands": {
            band: {
                "units": specs[band].units,
                "gsd_m": specs[band].gsd_m,
                "mean": statistics[band].mean,
                "std": statistics[band].std,
                "nodata": None if (nodata := specs[band].nodata) is None else nodata * specs[band].scale,
            }
            for band in known
        },
    }


def _training(loaded: LoadedWeights) -> dict[str, Any]:
    """How it was trained, without the places of files."""
    settings, manifest = loaded.settings, flatten(loaded.manifest)
    cross_scale = cross_scale_config(settings)
    mixture = [{"name": m.title, "split": m.split, "weight": m.weight} for m in settings.data.mixture]
    return {
        "steps": settings.train.steps,
        "global_batch": settings.train.global_batch,
        "seed": settings.train.seed,
        "init_weights": settings.train.init_weights.rstrip("/").rpartition("/")[2],
        "split": settings.data.split,
        "mixture": mixture,
        "temperature": settings.data.temperature,
        "flips": settings.data.flips,
        "cross_scale": None if cross_scale is None else to_dict(cross_scale),
        "optim": to_dict(settings.optim),
        "engine": settings.engine.name,
        "zero_stage": settings.engine.zero_stage,
        "precision": settings.engine.precision,
        "world_size": manifest["world_size"],
    }
