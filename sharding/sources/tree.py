"""The files of an archive, on a disk or in an object store, listed a folder at a time."""

import os
from pathlib import Path

from sharding.errors import ConfigError, DataError
from sharding.sources.base import SourceFile
from sharding.store import Store


class Tree:
    """The folder or prefix `root`; paths are relative to it and use `/`."""

    def __init__(self, root: str) -> None:
        self.store = Store(root)
        self._remote: dict[str, dict[str, SourceFile]] | None = None

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
            prefix = f"{path}/" if path else ""
            below = (folder[len(prefix) :] for folder in self._listed() if folder.startswith(prefix))
            return sorted({folder.split("/")[0] for folder in below if folder})
        try:
            with os.scandir(self.store.full(path)) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def files(self, path: str = "") -> dict[str, SourceFile]:
        """The files in `path` by name, sorted; empty when there is no such folder."""
        if not self.store.is_local:
            return self._listed().get(path, {})
        prefix = f"{path}/" if path else ""
        try:
            with os.scandir(self.store.full(path)) as entries:
                found = [(e.name, e.stat()) for e in entries if e.is_file()]
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return {
            name: SourceFile(path=prefix + name, size=stat.st_size, version=str(stat.st_mtime_ns))
            for name, stat in sorted(found)
        }

    def read(self, path: str) -> bytes:
        """All bytes of a file; DataError when it is not there."""
        if not self.store.is_local:
            return self.store.read(path)
        try:
            return Path(self.store.full(path)).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DataError(f"there is no {self.store.name(path)}") from error

    def _listed(self) -> dict[str, dict[str, SourceFile]]:
        """One listing of the whole prefix: a store answers thousands of names a request, but only one folder."""
        if self._remote is None:
            self._remote = {}
            found = self.store.fs.find(self.store.full(""), detail=True)
            for full, info in sorted(found.items()):
                path = full[len(self.store.root) + 1 :]
                folder, _, name = path.rpartition("/")
                version = info.get("ETag") or info.get("etag") or info.get("LastModified") or info.get("mtime") or ""
                file = SourceFile(path=path, size=int(info["size"]), version=str(version))
                self._remote.setdefault(folder, {})[name] = file
        return self._remote
