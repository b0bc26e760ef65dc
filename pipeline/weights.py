"""Trained weights for everything that comes after training: no engine, no process group needed."""

import atexit
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.checkpoint import WEIGHTS_NAME, read_manifest
from pipeline.config import cross_scale_config, model_config
from pipeline.errors import CheckpointError
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.checkpoint.named import Named


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model in evaluation mode, and the run it comes from."""

    model: Any
    """`fusmae.FusMAE`, fp32."""
    settings: Settings
    step: int
    title: str
    """The checkpoint's path or URL."""
    run_dir: Path


@dataclass(frozen=True, kw_only=True)
class LoadedWeights:
    """The fp32 weights of a checkpoint, and what they are of."""

    config: Any
    """`fusmae.FusMAEConfig`."""
    weights: dict[str, Any]
    """By the names of `fusmae.FusMAE`; of a run that trained at two scales, of the model inside."""
    settings: Settings
    step: int
    title: str
    """The checkpoint's path or URL."""
    manifest: dict[str, Any]
    """What the checkpoint says of itself."""
    run_dir: Path
    """The run's folder; the current one for a run in an object store."""
    config_name: str
    """Path or URL of the run's settings."""


def load_weights(run_dir_or_checkpoint: str) -> LoadedWeights:
    """The fp32 weights of a run's newest whole checkpoint, or of the given one. Raises CheckpointError."""
    from safetensors.torch import load_file

    from fusmae.cross_scale import inner_weights
    from pipeline.checkpoint.named import named

    given = named(run_dir_or_checkpoint)
    path, title = _newest_whole(given)
    settings = given.settings()
    config = model_config(settings)
    weights = load_file(path / WEIGHTS_NAME)
    manifest = read_manifest(path)
    if cross_scale_config(settings) is not None:
        try:
            weights = inner_weights(weights)
        except ValueError as error:
            raise of_another_model(title, given.config, error) from error
    return LoadedWeights(
        config=config,
        weights=weights,
        settings=settings,
        step=manifest["step"],
        title=title,
        manifest=manifest,
        run_dir=given.run_dir,
        config_name=given.config,
    )


def _newest_whole(given: "Named") -> tuple[Path, str]:
    """Folder and title of the newest checkpoint that is whole; CheckpointError says which were damaged."""
    # Fetched from a store, if it lies there; the weights are read at once, the folder is gone at the end.
    into = Path(tempfile.mkdtemp(prefix="fusmae-weights-"))
    atexit.register(shutil.rmtree, into, ignore_errors=True)
    problems: list[str] = []
    for name in given.names():
        try:
            path = given.shelf.fetch(name, into, [WEIGHTS_NAME])
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for said in problems:
            print(f"warning: {said}; using {given.shelf.title(name)}", file=sys.stderr)
        return path, given.shelf.title(name)
    raise CheckpointError(f"no checkpoint of {given.shelf.url} is whole: {problems[0]}")


def load_model(run_dir_or_checkpoint: str, device: Any = "cpu") -> LoadedModel:
    """The fp32 model of a run's newest whole checkpoint, or of the given one. Raises CheckpointError.

    Of a run that trained at two scales it is the model inside.
    """
    from fusmae import FusMAE

    loaded = load_weights(run_dir_or_checkpoint)
    model = FusMAE(loaded.config)
    try:
        model.load_state_dict(loaded.weights)
    except RuntimeError as error:
        raise of_another_model(loaded.title, loaded.config_name, error) from error
    model.to(device).eval()
    return LoadedModel(
        model=model, settings=loaded.settings, step=loaded.step, title=loaded.title, run_dir=loaded.run_dir
    )


def of_another_model(title: str, config: str, error: Exception) -> CheckpointError:
    """What is said of weights that do not fit the settings of their run."""
    reason = " ".join(str(error).split())
    return CheckpointError(f"{title} is not of the model in {config}: {reason}")
