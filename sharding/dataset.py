"""A data set by its URL, in any of its versions: `URL`, `URL@3` (the third version), `URL@NAME` (a subset)."""

import re
from typing import Final

from sharding.errors import ConfigError, DataError
from sharding.manifest import MANIFEST_NAME, Manifest, parse_manifest
from sharding.store import Store

VERSIONS: Final = "versions"
NAME_PATTERN: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_SUFFIX: Final = re.compile(r"(?P<base>.+[^/])@(?P<name>[A-Za-z0-9_-]+)")


def split_version(url: str) -> tuple[str, str]:
    """The data set's own URL, and the version or subset asked for (empty: the newest version)."""
    found = _SUFFIX.fullmatch(str(url).rstrip("/"))
    return (found["base"], found["name"]) if found else (str(url), "")


def version_path(name: str | int) -> str:
    """Where the manifest of a version (a number) or a subset (a name) lies in the data set."""
    return f"{VERSIONS}/{int(name):06d}.json" if str(name).isdigit() else f"{VERSIONS}/{name}.json"


def open_dataset(url: str) -> tuple[Store, Manifest]:
    """The store of the data set at `url` and the manifest asked for; DataError when there is none."""
    base, name = split_version(url)
    store = Store(base)
    newest = _newest(store, base)
    if not name or (name.isdigit() and int(name) == newest.version):
        return store, newest
    path = version_path(name)
    if not store.exists(path):
        others = versions_of(store, newest)
        raise DataError(f"{base} has no version or subset '{name}'; it has {', '.join(others)}")
    return store, parse_manifest(store.read(path), store.name(path))


def read_manifest(url: str) -> Manifest:
    """The manifest of the data set, version or subset at `url`; DataError when there is none."""
    return open_dataset(url)[1]


def versions_of(store: Store, newest: Manifest) -> list[str]:
    """Numbers of all versions, then names of all subsets."""
    prefix, suffix = f"{VERSIONS}/", ".json"
    names = [path[len(prefix) : -len(suffix)] for path in store.files(VERSIONS) if path.endswith(suffix)]
    numbers = {int(name) for name in names if name.isdigit()} | {newest.version}
    return [*map(str, sorted(numbers)), *sorted(name for name in names if NAME_PATTERN.fullmatch(name))]


def require_subset_name(name: str) -> None:
    """ConfigError when a subset cannot be called so."""
    if not NAME_PATTERN.fullmatch(name):
        raise ConfigError(f"a subset cannot be called '{name}'; letters, digits, _ and -, beginning with a letter")


def _newest(store: Store, url: str) -> Manifest:
    if not store.exists(MANIFEST_NAME):
        raise DataError(
            f"{url} holds no finished data set (no {MANIFEST_NAME}); make one with python -m sharding.build --out {url}"
        )
    return parse_manifest(store.read(MANIFEST_NAME), store.name(MANIFEST_NAME))
