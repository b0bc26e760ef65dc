"""`python -m slurm.snapshot FOLDER CONFIG.yaml`: a job's code and settings, which editing the tree does not change."""

import argparse
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from pipeline.command import run_command
from pipeline.errors import ConfigError, StorageError
from pipeline.run_folder import COMMIT_NAME

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fusmae", "pipeline", "sharding", "slurm")
CONFIG_NAME = "config.yaml"
SETUP_NAME = "setup.sh"
SETUP_HASH_NAME = "SETUP"
"""Hash and origin of the set-up file."""


def take(folder: Path, config: Path, setup: Path | None = None) -> None:
    """Copy the packages, the config file and a set-up file into `folder`, whole or not at all; replaces what was there.

    Raises:
        ConfigError: there is no config file.
        StorageError: the folder cannot be written.
    """
    if not config.is_file():
        raise ConfigError(f"no config file '{config}'; give the path of a YAML file, such as configs/NAME.yaml")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
        partial.chmod(0o755)
        for package in PACKAGES:
            shutil.copytree(ROOT / package, partial / package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copyfile(config, partial / CONFIG_NAME)
        if setup is not None:
            shutil.copyfile(setup, partial / SETUP_NAME)
            digest = hashlib.sha256((partial / SETUP_NAME).read_bytes()).hexdigest()
            (partial / SETUP_HASH_NAME).write_text(f"{digest}  {setup}\n")
        (partial / COMMIT_NAME).write_text(_commit() + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except OSError as error:
        raise StorageError(f"the code of the job cannot be copied to {folder}: {error.strerror}") from error


def _commit() -> str:
    """Of the tree, or of the snapshot that this runs from; "unknown" outside git."""
    if (ROOT / COMMIT_NAME).exists():
        return (ROOT / COMMIT_NAME).read_text().strip()
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return said.stdout.strip() if said.returncode == 0 else "unknown"


def main(argv: list[str] | None = None) -> int:
    """Take the snapshot."""
    parser = argparse.ArgumentParser(prog="python -m slurm.snapshot", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml")
    arguments = parser.parse_args(argv)
    take(arguments.folder, arguments.config)
    return 0


if __name__ == "__main__":
    run_command(main)
