"""Where the checkpoints of a run lie, and how one appears there whole or not at all."""

import json
import os
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from typing_extensions import override

from pipeline.checkpoint.fence import Fence
from pipeline.checkpoint.files import (
    MANIFEST_NAME,
    STEP_PREFIX,
    TEMPORARY_PREFIX,
    committed,
    num_bytes,
    read_manifest,
)
from pipeline.checkpoint.retention import Retention, retain
from pipeline.checkpoint.shelf import FolderShelf
from pipeline.errors import CheckpointError, StorageError
from sharding.store import sync_folder


class Place(ABC):
    """Where the checkpoints of a run lie. What fails raises OSError, StorageError or CheckpointError."""

    name: str
    """As a message shows it."""
    replaceable: tuple[str, ...] = ()
    """Names of checkpoints that were found damaged."""

    @abstractmethod
    def begin(self, step: int) -> None:
        """Make room for `step`; on rank 0, before any rank writes."""

    @abstractmethod
    def folder(self, step: int) -> Path:
        """The folder into which this rank writes the files of `step`."""

    @abstractmethod
    def publish(self, step: int, names: list[str]) -> None:
        """This rank's files are written and synced."""

    @abstractmethod
    def commit(self, step: int, manifest: dict[str, Any]) -> str:
        """All ranks have published: make `step` a checkpoint, and return its name; on rank 0."""

    @abstractmethod
    def settle(self, step: int) -> None:
        """`step` is committed: delete what this machine alone still holds of it; on every rank. Raises nothing."""

    @abstractmethod
    def abandon(self, step: int) -> None:
        """Take back what there is of `step`; on every rank. Raises nothing."""

    @abstractmethod
    def retain(self, wanted: Retention) -> None:
        """Delete what is superfluous; on rank 0."""

    @abstractmethod
    def free_bytes(self) -> int:
        """Free space where this rank's files are written."""


class FolderPlace(Place):
    """A folder that all ranks see: each writes into `.tmp-STEP-ATTEMPT`, and its rename is the commit."""

    def __init__(self, folder: Path, fence: Fence) -> None:
        self.name = str(folder)
        self._folder = folder
        self._fence = fence

    @override
    def begin(self, step: int) -> None:
        self._fence.check()
        for leftover in self._folder.glob(f"{TEMPORARY_PREFIX}*"):
            shutil.rmtree(leftover)
        self.folder(step).mkdir(parents=True)
        self._check_space(step)

    @override
    def folder(self, step: int) -> Path:
        return self._folder / f"{TEMPORARY_PREFIX}{step:08d}-{self._fence.token}"

    @override
    def publish(self, step: int, names: list[str]) -> None:
        """They lie where they belong."""

    @override
    def commit(self, step: int, manifest: dict[str, Any]) -> str:
        temporary, final = self.folder(step), self._folder / f"{STEP_PREFIX}{step:08d}"
        with (temporary / MANIFEST_NAME).open("w") as file:
            json.dump(manifest, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        for folder in {(temporary / name).parent for name in manifest["files"]} | {temporary}:
            sync_folder(folder)
        self._fence.check()
        if final.exists():  # a damaged one that was rejected and is now replaced
            shutil.rmtree(final)
        temporary.rename(final)
        sync_folder(final.parent)
        return str(final)

    @override
    def settle(self, step: int) -> None:
        """Nothing was copied."""

    @override
    def abandon(self, step: int) -> None:
        shutil.rmtree(self.folder(step), ignore_errors=True)

    @override
    def retain(self, wanted: Retention) -> None:
        retain(FolderShelf(self._folder), wanted)

    @override
    def free_bytes(self) -> int:
        return shutil.disk_usage(self._folder if self._folder.exists() else self._folder.parent).free

    def _check_space(self, step: int) -> None:
        """StorageError when the newest checkpoint, which is about as large, would not fit beside the others."""
        newest = next(iter(committed(self._folder)), None)
        if newest is None:
            return
        try:
            needed = num_bytes(read_manifest(newest))
        except CheckpointError:
            return  # damaged; what is written then tells
        free = self.free_bytes()
        if free < needed:
            raise StorageError(
                f"the checkpoint of step {step} needs about {needed / 2**20:.0f} MiB, and {self._folder} has "
                f"{free / 2**20:.0f} MiB free; free space, such as with python -m pipeline.checkpoint prune "
                f"{self._folder.parent}"
            )
