"""The files of a checkpoint: their names, checksums, and what can be told without an engine."""

import json
import os
from pathlib import Path
from typing import Any, Final

import google_crc32c

from pipeline.errors import CheckpointError

MANIFEST_NAME: Final = "manifest.json"
STATE_NAME: Final = "state.json"
WEIGHTS_NAME: Final = "model.safetensors"
PIN_NAME: Final = "PINNED"
STEP_PREFIX: Final = "step-"
TEMPORARY_PREFIX: Final = ".tmp-"
_CHUNK: Final = 1 << 22


def committed(folder: Path) -> list[Path]:
    """Committed checkpoints of a run's `checkpoints` folder, newest first."""
    return sorted((p for p in folder.glob(f"{STEP_PREFIX}*") if (p / MANIFEST_NAME).is_file()), reverse=True)


def read_manifest(path: Path) -> dict[str, Any]:
    """A checkpoint's manifest; CheckpointError when it is not one."""
    try:
        content = (path / MANIFEST_NAME).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} is no checkpoint of this program: {MANIFEST_NAME}: {error}") from error
    return checked_manifest(content, str(path))


def checked_manifest(content: bytes, title: str) -> dict[str, Any]:
    """The manifest of the checkpoint `title`; CheckpointError when it is not one."""
    try:
        manifest: dict[str, Any] = json.loads(content)
        return {"files": manifest["files"], "step": manifest["step"], "world_size": manifest["world_size"]} | manifest
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{title} is no checkpoint of this program: {MANIFEST_NAME}: {error}") from error


def num_bytes(manifest: dict[str, Any]) -> int:
    """Bytes of all files that a manifest names."""
    return sum(size for size, _ in manifest["files"].values())


def defect(path: Path, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with a checkpoint's files, or None; every `parts`-th file from `part` is read."""
    try:
        files = sorted(read_manifest(path)["files"].items())
    except CheckpointError as error:
        return str(error)
    for name, expected in files[part::parts]:
        file = path / name
        if not file.is_file():
            return f"{file} is missing"
        try:
            size, crc = checksum(file, sync=False)
        except OSError as error:
            return f"{file} cannot be read: {error.strerror}"
        if size != expected[0]:
            return f"{file} has {size} bytes instead of {expected[0]}"
        if crc != expected[1]:
            return f"{file} is damaged: its CRC-32C does not match"
    return None


def checksum(path: Path, sync: bool) -> tuple[int, int]:
    """Size and CRC-32C of a file; with `sync`, once it is on the disk."""
    size = crc = 0
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        while chunk := file.read(_CHUNK):
            crc = google_crc32c.extend(crc, chunk)
            size += len(chunk)
    return size, crc
