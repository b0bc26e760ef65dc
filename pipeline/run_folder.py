"""The folder of a run: one owner at a time, one set of settings, and a record of what it ran on."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.config import dump_settings, load_settings, to_dict
from pipeline.errors import ConfigError, StorageError
from pipeline.metrics import write_whole
from pipeline.settings import Settings
from sharding.lock import hold, may_be_held

CONFIG_NAME = "config.yaml"
COMMIT_NAME = "COMMIT"
"""Beside the packages of a job's copy of the code, which has no history."""
PACKAGES = (
    "torch",
    "deepspeed",
    "xformers",
    "webdataset",
    "zarr",
    "numcodecs",
    "numpy",
    "fsspec",
    "s3fs",
    "submitit",
)

FIXED_KEYS = (
    "model",
    "data.split",
    "data.flips",
    "data.upsample",
    "data.window_gib",
    "data.groups",
    "train.global_batch",
    "train.seed",
    "engine.name",
    "engine.zero_stage",
    "engine.precision",
)
"""What a resumed run must share with its beginning. The rest may change, and is said when it does."""


def check_resumable(settings: Settings) -> list[str]:
    """Keys that differ from those of the run begun in `run.dir`; ConfigError when a fixed one is among them."""
    run_dir = Path(settings.run.dir)
    if "://" in settings.run.dir:
        raise ConfigError(f"run.dir={settings.run.dir} must be a folder of a (shared) file system, not a URL")
    if not (run_dir / CONFIG_NAME).exists():
        if (run_dir / "checkpoints").exists():
            raise ConfigError(f"{run_dir} has checkpoints but no {CONFIG_NAME}; restore it or choose another run.dir")
        return []
    begun = flatten(to_dict(load_settings(run_dir / CONFIG_NAME, [])))
    now = flatten(to_dict(settings))
    changed = sorted(key for key in begun.keys() | now.keys() if begun.get(key) != now.get(key))
    fixed = [key for key in changed if any(key == f or key.startswith(f"{f}.") for f in FIXED_KEYS)]
    if fixed:
        listed = ", ".join(f"{key} ({begun.get(key)!r} there, {now.get(key)!r} now)" for key in fixed[:5])
        raise ConfigError(f"{run_dir} holds a run of another kind: {listed}; set them back or choose another run.dir")
    return changed


def own(run_dir: Path) -> Callable[[], None]:
    """Make the folder and lock it until the function returned is called; StorageError when another trains in it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    try:
        lock = hold(run_dir / "lock", f"the process with rank 0 on {platform.node()}")
    except BlockingIOError as error:
        raise StorageError(
            f"{run_dir} is in use by {error.strerror}; end it first or choose another run.dir"
        ) from error
    return lock.close if lock else lambda: None


def may_be_in_use(run_dir: Path) -> bool:
    """Whether a rank 0 trains in the folder; True where that cannot be told."""
    return may_be_held(run_dir / "lock")


def record(settings: Settings, fingerprint: str, about: dict[str, Any]) -> None:
    """Write the resolved settings and what they run on, before the first step."""
    run_dir = Path(settings.run.dir)
    write_whole(run_dir / CONFIG_NAME, dump_settings(settings))
    host = {"host": platform.node(), "platform": platform.platform()}
    environment = describe_program() | host | {"data_fingerprint": fingerprint} | about
    write_whole(run_dir / "environment.json", json.dumps(environment, indent=1) + "\n")


def describe_program() -> dict[str, Any]:
    """The command of this process and what it runs with: versions and commit."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": _git_commit(),
    }


def say_outcome(run_dir: Path, outcome: str, step: int | None) -> None:
    """Leave word for whoever started the run: done, saved, stopped (by a person, for good), failed, or fatal.

    After `saved` and `failed` another try is worthwhile.

    The attempt tells a job's word from the word that an earlier one left in the same folder.
    """
    own = f"{os.environ.get('SLURM_JOB_ID', 'local')}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    attempt = os.environ.get("FUSMAE_ATTEMPT") or own  # what slurm/attempt.sh calls it, over a chain of jobs
    word = {"outcome": outcome, "step": step, "attempt": attempt}
    write_whole(run_dir / "outcome.json", json.dumps(word) + "\n")


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one dict of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    here = Path(__file__).parent
    if (here.parent / COMMIT_NAME).exists():
        return (here.parent / COMMIT_NAME).read_text().strip()
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() if found.returncode == 0 else None
