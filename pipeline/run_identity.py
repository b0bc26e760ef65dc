"""What a checkpoint says of its run, and whether a run may go on from it."""

from typing import Any

from pipeline import checkpoint
from pipeline.errors import CheckpointError
from pipeline.run_folder import flatten
from pipeline.settings import Settings
from pipeline.stream.exact import ExactStream
from pipeline.stream.mixture import MixtureStream


def describe(settings: Settings, stream: ExactStream | MixtureStream) -> dict[str, Any]:
    """What a checkpoint's manifest says of its run."""
    fingerprint: str | dict[str, str]
    if isinstance(stream, MixtureStream):
        fingerprint = {name: manifest.fingerprint for name, manifest in stream.manifests.items()}
    else:
        fingerprint = stream.manifest.fingerprint
    return {
        "engine": settings.engine.name,
        "zero_stage": settings.engine.zero_stage,
        "precision": settings.engine.precision,
        "model": settings.model,
        "data_fingerprint": fingerprint,
    }


def check_same_run(found: checkpoint.Found, about: dict[str, Any]) -> None:
    """CheckpointError when the checkpoint is of another model, engine or data set; the world size may differ."""
    there = flatten(checkpoint.read_manifest(found.path))
    now = flatten(about)
    differing = [f"{key} ({there.get(key)!r} there, {now[key]!r} now)" for key in now if there.get(key) != now[key]]
    if differing:
        raise CheckpointError(
            f"{found.title} is of another run: {', '.join(differing[:5])}; choose another run.dir or remove it"
        )


def check_not_moved(changed: list[str], url: str) -> None:
    """CheckpointError when no checkpoint is at `url` and the run's lay elsewhere: it must not start anew unasked.

    `changed`: keys of the settings that differ from those that the run was begun with.
    """
    if "checkpoint.url" in changed:
        raise CheckpointError(
            f"checkpoint.url was changed, and no checkpoint of this run lies in {url}; copy them there, set it back, "
            "or choose another run.dir to start anew"
        )
