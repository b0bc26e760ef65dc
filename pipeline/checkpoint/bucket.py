"""Checkpoints in an object store, where nothing can be renamed: a small object COMMIT makes a checkpoint.

    URL/attempt.json                            the attempt that may publish
    URL/config.yaml                             the run's settings
    URL/step-00000040/7f3a91c2/engine/...       what an attempt wrote; each under its own name
    URL/step-00000040/7f3a91c2/manifest.json    size and CRC-32C of every file
    URL/step-00000040/COMMIT                    whose files count, and the manifest's own checksum
    URL/step-00000040/PINNED                    never deleted

COMMIT is put with If-None-Match where the store knows that, and read back: of two attempts that reach the same step,
one commits. Files are written to a local disk first, and uploaded from there; what is read is verified on the way.
"""

import json
import shutil
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import google_crc32c
from typing_extensions import override

from pipeline.checkpoint.fence import Fence
from pipeline.checkpoint.files import MANIFEST_NAME, PIN_NAME, STEP_PREFIX, checked_manifest, checksum
from pipeline.checkpoint.place import Place
from pipeline.checkpoint.retention import Retention, retain
from pipeline.checkpoint.shelf import Shelf
from pipeline.errors import CheckpointError, DataError, StorageError
from sharding.store import Store

COMMIT_NAME: Final = "COMMIT"
_AT_ONCE: Final = 4
"""Files of a rank that are sent or fetched at the same time."""


class BucketShelf(Shelf):
    """The checkpoints below a URL."""

    def __init__(self, store: Store) -> None:
        self.url = store.url
        self.store = store

    @override
    def names(self) -> list[str]:
        found = [path.split("/") for path in self.store.files()]
        return sorted(
            (p[0] for p in found if len(p) == 2 and p[1] == COMMIT_NAME and p[0].startswith(STEP_PREFIX)), reverse=True
        )

    @override
    def manifest(self, name: str) -> dict[str, Any]:
        commit = self._commit(name)
        path = f"{name}/{commit['attempt']}/{MANIFEST_NAME}"
        try:
            content = self.store.read(path)
        except DataError as error:
            raise CheckpointError(f"{self.store.name(path)} is missing") from error
        if google_crc32c.value(content) != commit["manifest_crc32c"]:
            raise CheckpointError(f"{self.store.name(path)} is damaged: its CRC-32C does not match")
        return checked_manifest(content, self.title(name))

    @override
    def read(self, name: str, file: str) -> bytes:
        return self.store.read(self.path(name, file))

    @override
    def defect(self, name: str) -> str | None:
        import tempfile

        try:
            with tempfile.TemporaryDirectory() as folder:
                self.fetch(name, Path(folder))
        except CheckpointError as error:
            return str(error)
        return None

    @override
    def fetch(self, name: str, into: Path, files: Collection[str] | None = None) -> Path:
        manifest, folder = self.manifest(name), into / name
        wanted = {file: manifest["files"][file] for file in files or manifest["files"]}
        attempt = self._commit(name)["attempt"]

        def get(file: str) -> None:
            target, path = folder / file, f"{name}/{attempt}/{file}"
            target.parent.mkdir(parents=True, exist_ok=True)
            for is_last in (False, True):
                try:
                    self.store.get(path, target)
                except DataError as error:
                    raise CheckpointError(f"{self.store.name(path)} is missing") from error
                size, crc = checksum(target, sync=False)
                if [size, crc] == list(wanted[file]):
                    return
                if is_last and size != wanted[file][0]:
                    raise CheckpointError(f"{self.store.name(path)} has {size} bytes instead of {wanted[file][0]}")
            raise CheckpointError(f"{self.store.name(path)} is damaged: its CRC-32C does not match")

        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(get, wanted))
        (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
        return folder

    @override
    def obtain(self, name: str, into: Path, rank: int, world_size: int, local_rank: int) -> tuple[Path, str | None]:
        if local_rank == 0:
            try:
                self.fetch(name, into)
            except CheckpointError as error:
                shutil.rmtree(into / name, ignore_errors=True)
                return into / name, str(error)
        return into / name, None

    @override
    def saved(self, name: str) -> datetime:
        return datetime.fromisoformat(self._commit(name)["saved"])

    @override
    def is_pinned(self, name: str) -> bool:
        return self.store.exists(f"{name}/{PIN_NAME}")

    @override
    def pin(self, name: str, is_pinned: bool) -> None:
        if is_pinned:
            self.store.write(f"{name}/{PIN_NAME}", b"")
        else:
            self.store.remove(f"{name}/{PIN_NAME}")

    @override
    def delete(self, name: str) -> None:
        self.store.remove(f"{name}/{COMMIT_NAME}")
        for path in self.store.files(name):
            self.store.remove(path)

    @override
    def set_aside(self, name: str, new_name: str) -> None:
        for path in self.store.files(name):
            self.store.copy(path, new_name + path.removeprefix(name))
        self.delete(name)

    @override
    def remains(self) -> list[str]:
        return [self.store.name(path) for path in self.strays()]

    @override
    def remove_remains(self) -> None:
        for path in self.strays():
            self.store.remove(path)
        self.store.abort_uploads()

    def path(self, name: str, file: str) -> str:
        """Where a file of a checkpoint lies below the URL."""
        return f"{name}/{self._commit(name)['attempt']}/{file}"

    def strays(self, but: str = "") -> list[str]:
        """Files of steps that no COMMIT names, those of the attempt `but` left out."""
        found = [path for path in self.store.files() if path.startswith(STEP_PREFIX)]
        steps = {path.split("/")[0] for path in found if path.endswith(f"/{COMMIT_NAME}")}
        attempts = {step: self._commit(step)["attempt"] for step in steps}
        return [
            path
            for path in found
            if len(parts := path.split("/")) > 2 and parts[1] not in (but, attempts.get(parts[0]))
        ]

    def _commit(self, name: str) -> dict[str, Any]:
        path = f"{name}/{COMMIT_NAME}"
        try:
            commit: dict[str, Any] = json.loads(self.store.read(path))
            return {"attempt": commit["attempt"], "manifest_crc32c": commit["manifest_crc32c"]} | commit
        except (DataError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self.store.name(path)} is no commit of this program: {error}") from error


class BucketPlace(Place):
    """Below a URL; `staging` is a local folder that the ranks of a node may share."""

    def __init__(self, store: Store, fence: Fence, staging: Path) -> None:
        self.name = store.url
        self.shelf = BucketShelf(store)
        self._store = store
        self._fence = fence
        self._staging = staging
        self._is_swept = False
        self._sent: list[str] = []

    @override
    def begin(self, step: int) -> None:
        self._fence.check()
        if not self._is_swept:
            for path in self.shelf.strays(but=self._fence.token):
                self._store.remove(path)
            self._store.abort_uploads()
            self._is_swept = True
        if (name := _name(step)) in self.replaceable:
            self.shelf.delete(name)

    @override
    def folder(self, step: int) -> Path:
        return self._staging / self._fence.token / _name(step)

    @override
    def publish(self, step: int, names: list[str]) -> None:
        folder, prefix = self.folder(step), self._prefix(step)
        self._sent = [f"{prefix}/{name}" for name in names]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda name: self._store.put(folder / name, f"{prefix}/{name}"), names))

    @override
    def commit(self, step: int, manifest: dict[str, Any]) -> str:
        content = json.dumps(manifest, indent=1, sort_keys=True).encode()
        self._store.write(f"{self._prefix(step)}/{MANIFEST_NAME}", content)
        self._fence.check()
        commit = {
            "attempt": self._fence.token,
            "manifest_crc32c": google_crc32c.value(content),
            "saved": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        path = f"{_name(step)}/{COMMIT_NAME}"
        if not self._store.write_new(path, json.dumps(commit).encode()):
            raise CheckpointError(
                f"{self._store.name(path)} was written by another attempt of this run; end the other one, and run the "
                "same command again, which goes on from there"
            )
        return self._store.name(_name(step))

    @override
    def settle(self, step: int) -> None:
        self._sent = []
        shutil.rmtree(self.folder(step), ignore_errors=True)

    @override
    def abandon(self, step: int) -> None:
        shutil.rmtree(self.folder(step), ignore_errors=True)
        for path in self._sent:
            try:
                self._store.remove(path)
            except StorageError:
                break  # the store does not answer; the next attempt sweeps
        self._sent = []

    @override
    def retain(self, wanted: Retention) -> None:
        retain(self.shelf, wanted)

    @override
    def free_bytes(self) -> int:
        self._staging.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self._staging).free

    def _prefix(self, step: int) -> str:
        return f"{_name(step)}/{self._fence.token}"


def _name(step: int) -> str:
    return f"{STEP_PREFIX}{step:08d}"
