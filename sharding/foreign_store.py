"""Where an index lies and where the files lie that it points into."""

import os
import posixpath
from typing import Final

from sharding.manifest import Manifest
from sharding.store import Store

BESIDE: Final = "fusmae-index"
"""The folder of an index that is to lie in its archive."""


def output_url(root: str, out: str) -> str:
    """Where the index goes: `out`, or a folder of its own in it when it is the archive itself."""
    return f"{out.rstrip('/')}/{BESIDE}" if _plain(root) == _plain(out) else out


def relative_data_url(root: str, out: str) -> str:
    """What the manifest at `out` says of the archive at `root`: a relative path when it lies inside of the archive.

    So an archive with its index in it can be moved or copied as a whole.
    """
    archive, index = _plain(root), _plain(out)
    if index.startswith(f"{archive}/"):
        return "/".join([".."] * (index.removeprefix(f"{archive}/").count("/") + 1))
    return archive


def data_url(url: str, manifest: Manifest) -> str:
    """The URL of the folder in which the shards of the data set at `url` (without `@`) lie."""
    if not manifest.data_url:
        return url
    if "://" in manifest.data_url or manifest.data_url.startswith("/"):
        return manifest.data_url
    scheme, separator, path = _plain(url).rpartition("://")
    return f"{scheme}{separator}{posixpath.normpath(posixpath.join(path, manifest.data_url))}"


def data_store(store: Store, manifest: Manifest) -> Store:
    """The store of the shards' files, given that of the manifest."""
    return Store(data_url(store.url, manifest)) if manifest.data_url else store


def _plain(url: str) -> str:
    """A URL without a slash at its end, a local path as an absolute one."""
    url = url.removeprefix("file://") if url.startswith("file://") else url
    return url.rstrip("/") if "://" in url else os.path.abspath(url)
