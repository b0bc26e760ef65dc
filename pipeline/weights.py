"""Trained weights for everything that comes after training: no engine, no process group needed."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.checkpoint import WEIGHTS_NAME, committed, defect, read_manifest
from pipeline.config import cross_scale_config, load_settings, model_config
from pipeline.errors import CheckpointError
from pipeline.settings import Settings


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model in evaluation mode, and the run it comes from."""

    model: Any
    """`fusmae.FusMAE`, fp32."""
    settings: Settings
    step: int
    path: Path
    """The checkpoint's folder."""
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
    path: Path
    """The checkpoint's folder."""
    run_dir: Path


def find_checkpoint(run_dir_or_checkpoint: str) -> Path:
    """The given checkpoint, or the newest whole one of a run; CheckpointError says which were damaged."""
    given = Path(run_dir_or_checkpoint)
    if not given.is_dir():
        raise CheckpointError(f"there is no folder {given}; give a run folder or one of its checkpoints/step-*")
    candidates = [given] if (given / WEIGHTS_NAME).exists() else committed(given / "checkpoints")
    if not candidates:
        raise CheckpointError(f"{given} holds no checkpoint; train with python -m pipeline.pretrain run.dir={given}")
    problems: list[str] = []
    for path in candidates:
        problem = defect(path)
        if problem is None:
            for said in problems:
                print(f"warning: {said}; using {path}", file=sys.stderr)
            return path
        problems.append(problem)
    raise CheckpointError(f"no checkpoint of {given} is whole: {problems[0]}")


def load_weights(run_dir_or_checkpoint: str) -> LoadedWeights:
    """The fp32 weights of a run's newest whole checkpoint, or of the given one. Raises CheckpointError."""
    from safetensors.torch import load_file

    from fusmae.cross_scale import inner_weights

    path = find_checkpoint(run_dir_or_checkpoint)
    run_dir = path.parent.parent
    settings = load_settings(run_dir / "config.yaml", [])
    config = model_config(settings)
    weights = load_file(path / WEIGHTS_NAME)
    if cross_scale_config(settings) is not None:
        try:
            weights = inner_weights(weights)
        except ValueError as error:
            raise of_another_model(path, run_dir, error) from error
    step = read_manifest(path)["step"]
    return LoadedWeights(config=config, weights=weights, settings=settings, step=step, path=path, run_dir=run_dir)


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
        raise of_another_model(loaded.path, loaded.run_dir, error) from error
    model.to(device).eval()
    return LoadedModel(
        model=model, settings=loaded.settings, step=loaded.step, path=loaded.path, run_dir=loaded.run_dir
    )


def of_another_model(path: Path, run_dir: Path, error: Exception) -> CheckpointError:
    """What is said of weights that do not fit the settings of their run."""
    reason = " ".join(str(error).split())
    return CheckpointError(f"{path} is not of the model in {run_dir / 'config.yaml'}: {reason}")
