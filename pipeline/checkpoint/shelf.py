"""The committed checkpoints of a run, in a folder; `pipeline.checkpoint.bucket` has those in an object store."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from typing_extensions import override

from pipeline.checkpoint.files import (
    MANIFEST_NAME,
    PIN_NAME,
    TEMPORARY_PREFIX,
    committed,
    defect,
    read_manifest,
)
from pipeline.errors import CheckpointError


class Shelf(ABC):
    """The committed checkpoints of a run, by their names `step-STEP`."""

    url: str
    """Where they lie."""

    def title(self, name: str) -> str:
        """A checkpoint's path or URL."""
        return f"{self.url}/{name}"

    @abstractmethod
    def names(self) -> list[str]:
        """Newest first."""

    @abstractmethod
    def manifest(self, name: str) -> dict[str, Any]:
        """CheckpointError when it cannot be read."""

    @abstractmethod
    def read(self, name: str, file: str) -> bytes:
        """A small file of a checkpoint."""

    @abstractmethod
    def defect(self, name: str) -> str | None:
        """What is wrong with a checkpoint; every byte is read."""

    @abstractmethod
    def fetch(self, name: str, into: Path, files: Collection[str] | None = None) -> Path:
        """A folder of this machine with the files of a checkpoint, or the given ones; CheckpointError when one is bad.

        It is `into/NAME` where it must be fetched, else the checkpoint's own, of which every file is verified.
        """

    @abstractmethod
    def obtain(self, name: str, into: Path, rank: int, world_size: int, local_rank: int) -> tuple[Path, str | None]:
        """The folder of `name` on this rank's machine, and what this rank found wrong with it.

        The ranks share the work, so that all know together; `into` is the same folder for the ranks of a machine.
        """

    @abstractmethod
    def saved(self, name: str) -> datetime:
        """When it was committed."""

    @abstractmethod
    def is_pinned(self, name: str) -> bool:
        """Whether a checkpoint was pinned, so that nothing deletes it."""

    @abstractmethod
    def pin(self, name: str, is_pinned: bool) -> None:
        """Pin a checkpoint, or let it go again."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete a checkpoint; what makes it one goes first, so that what a kill leaves of it does not look whole."""

    @abstractmethod
    def set_aside(self, name: str, new_name: str) -> None:
        """Keep a checkpoint under a name that is no step's."""

    @abstractmethod
    def remains(self) -> list[str]:
        """Paths or URLs of what killed saves left."""

    @abstractmethod
    def remove_remains(self) -> None:
        """Delete them."""


class FolderShelf(Shelf):
    """A run's folder `checkpoints`."""

    def __init__(self, folder: Path) -> None:
        self.url = str(folder)
        self._folder = folder

    @override
    def names(self) -> list[str]:
        return [path.name for path in committed(self._folder)]

    @override
    def manifest(self, name: str) -> dict[str, Any]:
        return read_manifest(self._folder / name)

    @override
    def read(self, name: str, file: str) -> bytes:
        return (self._folder / name / file).read_bytes()

    @override
    def defect(self, name: str) -> str | None:
        return defect(self._folder / name)

    @override
    def fetch(self, name: str, into: Path, files: Collection[str] | None = None) -> Path:
        if (problem := defect(self._folder / name)) is not None:
            raise CheckpointError(problem)
        return self._folder / name

    @override
    def obtain(self, name: str, into: Path, rank: int, world_size: int, local_rank: int) -> tuple[Path, str | None]:
        return self._folder / name, defect(self._folder / name, rank, world_size)

    @override
    def saved(self, name: str) -> datetime:
        return datetime.fromtimestamp((self._folder / name / MANIFEST_NAME).stat().st_mtime, UTC)

    @override
    def is_pinned(self, name: str) -> bool:
        return (self._folder / name / PIN_NAME).exists()

    @override
    def pin(self, name: str, is_pinned: bool) -> None:
        if is_pinned:
            (self._folder / name / PIN_NAME).touch()
        else:
            (self._folder / name / PIN_NAME).unlink(missing_ok=True)

    @override
    def delete(self, name: str) -> None:
        (self._folder / name / MANIFEST_NAME).unlink()
        shutil.rmtree(self._folder / name)

    @override
    def set_aside(self, name: str, new_name: str) -> None:
        (self._folder / name).rename(self._folder / new_name)

    @override
    def remains(self) -> list[str]:
        return [str(path) for path in self._remains()]

    @override
    def remove_remains(self) -> None:
        for path in self._remains():
            shutil.rmtree(path)

    def _remains(self) -> list[Path]:
        return sorted(path for prefix in (TEMPORARY_PREFIX, ".universal-") for path in self._folder.glob(f"{prefix}*"))
