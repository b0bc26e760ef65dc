"""One view of every place where data sets lie: a folder, `s3://`, `gs://`, `memory://`, all through fsspec.

What is written appears whole or not at all: on a disk by writing beside it, fsync and rename; on an object store an
object exists only once its upload is complete.
"""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from sharding.errors import DataError, StorageError
from sharding.manifest import MANIFEST_NAME, Manifest, parse_manifest


class Store:
    """The folder or prefix `url`; all paths are relative to it. Errors are StorageError, a missing file DataError."""

    def __init__(self, url: str) -> None:
        self.url = str(url).rstrip("/") or "/"
        try:
            self.fs, self.root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise StorageError(f"cannot open {url}: {error}") from error
        self.root = self.root.rstrip("/")

    @property
    def is_local(self) -> bool:
        """True when paths are files of this machine."""
        return isinstance(self.fs, LocalFileSystem)

    def full(self, path: str) -> str:
        """The path as the file system knows it."""
        return f"{self.root}/{path}" if path else self.root

    def name(self, path: str) -> str:
        """The path as a message shows it."""
        return f"{self.url}/{path}" if path else self.url

    @contextlib.contextmanager
    def _told(self, action: str, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise DataError(f"there is no {self.name(path)}") from error
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno and self.is_local:
                raise  # a full or read-only disk keeps its errno and the file's name
            raise StorageError(f"cannot {action} {self.name(path)}: {error or type(error).__name__}") from error
        except Exception as error:
            # Object stores raise their SDK's own classes; whoever reads the message needs the place, not the brand.
            if type(error).__module__.split(".")[0] not in (
                "botocore",
                "aiobotocore",
                "aiohttp",
                "asyncio",
                "fsspec",
            ):
                raise
            raise StorageError(f"cannot {action} {self.name(path)}: {error or type(error).__name__}") from error

    def exists(self, path: str) -> bool:
        """Whether a file `path` is there."""
        with self._told("look for", path):
            return bool(self.fs.exists(self.full(path)))

    def size(self, path: str) -> int:
        """Size of `path` in bytes."""
        with self._told("read the size of", path):
            return int(self.fs.size(self.full(path)))

    def files(self, path: str = "") -> list[str]:
        """Relative paths of all files below `path`, sorted; empty when there is none."""
        with self._told("list", path):
            if not self.fs.exists(self.full(path)):
                return []
            found = self.fs.find(self.full(path))
        return sorted(f[len(self.root) + 1 :] for f in found)

    def read(self, path: str) -> bytes:
        """All bytes of `path`."""
        with self._told("read", path):
            return bytes(self.fs.cat_file(self.full(path)))

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` of `path`; StorageError when the store gives fewer."""
        with self._told("read", path):
            content = bytes(self.fs.cat_file(self.full(path), start=start, end=end))
        if len(content) != end - start:
            raise StorageError(f"{self.name(path)} gave {len(content)} of the bytes {start} to {end}: it is cut short")
        return content

    def write(self, path: str, content: bytes) -> None:
        """Write a whole small file, atomically."""
        if self.is_local:
            with _appearing_whole(Path(self.full(path))) as partial:
                partial.write_bytes(content)
            return
        with self._told("write", path):
            self.fs.pipe_file(self.full(path), content)

    def put(self, local: Path, path: str) -> None:
        """Move the finished local file to `path`, atomically; the local file is gone afterwards."""
        if self.is_local:
            with _appearing_whole(Path(self.full(path))) as partial:
                shutil.move(local, partial)
            return
        with self._told("write", path):
            self.fs.put_file(str(local), self.full(path))
            self.fs.invalidate_cache()
            stored = int(self.fs.size(self.full(path)))
        expected = local.stat().st_size
        if stored != expected:
            raise StorageError(f"{self.name(path)} holds {stored} bytes after an upload of {expected}; run it again")
        local.unlink()

    def remove(self, path: str) -> None:
        """Delete a file; nothing happens when it is not there."""
        with contextlib.suppress(DataError), self._told("delete", path):
            self.fs.rm_file(self.full(path))


@contextlib.contextmanager
def _appearing_whole(target: Path) -> Iterator[Path]:
    """Gives a path to write to, beside `target`; after the block it is synced to disk and takes the target's place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(target)
        sync_folder(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_manifest(url: str) -> Manifest:
    """The manifest of the data set at `url`; DataError when there is no finished data set."""
    store = Store(url)
    if not store.exists(MANIFEST_NAME):
        raise DataError(
            f"{url} holds no finished data set (no {MANIFEST_NAME}); make one with python -m sharding.build --out {url}"
        )
    return parse_manifest(store.read(MANIFEST_NAME), store.name(MANIFEST_NAME))
