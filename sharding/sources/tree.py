"""The files of an archive, on a disk or in an object store, listed a folder at a time and never as a whole."""

import datetime
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sharding.errors import ConfigError, DataError
from sharding.sources.base import SourceFile
from sharding.store import Store

_VERSIONS: Final = ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created")
"""Where the stores say what shows that an object changed; the first one counts."""
_KEPT_S: Final = 10.0
_KEPT_ENTRIES: Final = 100_000


class Tree:
    """The folder or prefix `root`; paths are relative to it and use `/`.

    A listing of an object store is kept for some seconds, for the other pairs of the same folder, and forgotten before
    anyone has mended a file.
    """

    def __init__(self, root: str) -> None:
        self.store = Store(root)
        self._recent = _Recent()

    def require(self) -> None:
        """ConfigError when there is nothing at the root."""
        if not self.store.exists(""):
            raise ConfigError(f"there is no {self.store.url}; give --root the folder of the archive")

    def local(self, path: str) -> Path | None:
        """The file on this machine; None in an object store."""
        return Path(self.store.full(path)) if self.store.is_local else None

    def folders(self, path: str = "") -> list[str]:
        """Names of the folders in `path`, sorted; empty when there is no such folder."""
        if not self.store.is_local:
            return list(self._listed(path).folders)
        try:
            with os.scandir(self.store.full(path)) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def files(self, path: str = "") -> dict[str, SourceFile]:
        """The files in `path` by name, sorted; empty when there is no such folder."""
        if not self.store.is_local:
            return dict(self._listed(path).files)
        prefix = f"{path}/" if path else ""
        try:
            with os.scandir(self.store.full(path)) as found:
                stats = [(entry.name, entry.stat()) for entry in found if entry.is_file()]
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return {name: _local_file(prefix + name, stat) for name, stat in sorted(stats)}

    def file(self, path: str) -> SourceFile | None:
        """The file `path`, None when there is none: where its folder holds many others, cheaper than `files`."""
        if self.store.is_local:
            full = Path(self.store.full(path))
            try:
                return _local_file(path, full.stat()) if full.is_file() else None
            except (FileNotFoundError, NotADirectoryError):
                return None
        try:
            info = self.store.ask("look for", path, lambda: self.store.fs.info(self.store.full(path)))
        except DataError:
            return None
        return _object(path, info) if info["type"] == "file" else None

    def read(self, path: str) -> bytes:
        """All bytes of a file; DataError when it is not there."""
        if not self.store.is_local:
            return self.store.read(path)
        try:
            return Path(self.store.full(path)).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DataError(f"there is no {self.store.name(path)}") from error

    def _listed(self, path: str) -> "_Folder":
        """What a store has in `path`: a request a thousand names, for an archive has millions of objects."""
        known = self._recent.get(path)
        if known is not None:
            return known
        full = self.store.full(path)

        def list_it() -> list[dict[str, Any]]:
            fs = self.store.fs  # another one once its credentials were renewed
            entries: list[dict[str, Any]] = fs.ls(full, detail=True, refresh=True)
            fs.invalidate_cache(full)  # fsspec would keep every listing for as long as the process lives
            return entries

        try:
            entries = self.store.ask("list", path, list_it)
        except DataError:
            entries = []
        found = _folder(path, full.strip("/"), entries)
        self._recent.put(path, found)
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Folder:
    folders: tuple[str, ...]
    files: dict[str, SourceFile]


@dataclass(kw_only=True)
class _Recent:
    """The listings of the last seconds, bounded in the number of their entries."""

    listings: dict[str, tuple[float, _Folder]] = field(default_factory=dict)
    num_entries: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, path: str) -> _Folder | None:
        with self.lock:
            listed_at, found = self.listings.get(path, (0.0, None))
            return found if found is not None and time.monotonic() - listed_at < _KEPT_S else None

    def put(self, path: str, found: _Folder) -> None:
        size = _size(found)
        with self.lock:
            self._drop(path)
            while self.listings and self.num_entries + size > _KEPT_ENTRIES:
                self._drop(next(iter(self.listings)))
            if size <= _KEPT_ENTRIES:
                self.listings[path] = (time.monotonic(), found)
                self.num_entries += size

    def _drop(self, path: str) -> None:
        if path in self.listings:
            self.num_entries -= _size(self.listings.pop(path)[1])


def _size(found: _Folder) -> int:
    return 1 + len(found.folders) + len(found.files)


def _folder(path: str, here: str, entries: list[dict[str, Any]]) -> _Folder:
    """The entries of a listing of `here`, which is `path` as the file system knows it."""
    prefix = f"{path}/" if path else ""
    named = sorted(((entry["name"].strip("/"), entry["type"], entry) for entry in entries), key=lambda named: named[:2])
    # An empty object may stand for the folder itself, and a file is listed as if it were a folder of itself.
    inside = [(name[len(here) :].strip("/"), kind, entry) for name, kind, entry in named if name != here]
    return _Folder(
        folders=tuple(name for name, kind, _ in inside if kind == "directory"),
        files={name: _object(prefix + name, entry) for name, kind, entry in inside if kind == "file"},
    )


def _local_file(path: str, stat: os.stat_result) -> SourceFile:
    return SourceFile(path=path, size=stat.st_size, version=str(stat.st_mtime_ns))


def _object(path: str, info: dict[str, Any]) -> SourceFile:
    version = next((info[key] for key in _VERSIONS if info.get(key)), "")
    if isinstance(version, datetime.datetime):  # some stores say a time in one way in a listing, in another of one file
        version = version.timestamp()
    return SourceFile(path=path, size=int(info["size"]), version=str(version))
