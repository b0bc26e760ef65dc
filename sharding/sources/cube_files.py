"""Which files of a folder make a cube: one with both halves, or one for each half and resolution."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sharding.sources.cube_store import HDF5_SUFFIXES, ZIP_SUFFIXES, is_zarr_folder
from sharding.sources.tree import Tree

_WORLDCEREAL: Final = re.compile(r"(?P<half>S1|S2|OUTPUT)_[^_]+(?:_[^_]+)?_\d+m_(?P<rest>.+)$")
"""`S2_L2A_10m_<id>_…`; `OUTPUT_POLY-110_10m_<id>_…` holds the classes."""
_HALF: Final = re.compile(r"(s[12])(?:grd|rtc|l1c|l2a)?$", re.IGNORECASE)
_DETAIL: Final = re.compile(
    r"(?:s[12]|grd|rtc|sigma0|gamma0|l1c|l2a|asc|desc|ascending|descending|10m|20m|60m)$", re.IGNORECASE
)
"""Words that tell the files of one cube apart."""
MAX_NAME: Final = 60
_DIGEST: Final = 8


@dataclass(frozen=True, kw_only=True)
class CubeFiles:
    """The files of a cube, and the name that its keys begin with."""

    name: str
    files: tuple[str, ...]
    """Paths in the tree, sorted."""
    is_half: bool
    """Whether the names of the files say that they hold halves."""


def find_cubes(tree: Tree, only: str | None = None) -> list[CubeFiles]:
    """All cubes of the tree, or the one at the path `only`, by name."""
    groups: dict[tuple[str, str], list[str]] = {}
    halves: set[tuple[str, str]] = set()
    for path in [only] if only is not None else sorted(_paths(tree, "")):
        place, half = _place(path or tree.store.url.rpartition("/")[2])
        groups.setdefault(place, []).append(path)
        if half:
            halves.add(place)
    names = {place: _name(place) for place in groups}
    counts = Counter(names.values())
    found = []
    for place, files in groups.items():
        name = names[place]
        if counts[name] > 1 or len(name) > MAX_NAME:
            name = f"{name[: MAX_NAME - _DIGEST - 1]}-{_digest('/'.join(place))}"
        found.append(CubeFiles(name=name, files=tuple(files), is_half=place in halves))
    return sorted(found, key=lambda cube: cube.name)


def _paths(tree: Tree, folder: str) -> Iterator[str]:
    prefix = f"{folder}/" if folder else ""
    for name in tree.files(folder):
        if name.lower().endswith((*HDF5_SUFFIXES, ".zarr.zip")):
            yield prefix + name
    for name in tree.folders(folder):
        path = prefix + name
        if is_zarr_folder(tree, path):
            yield path
        else:
            yield from _paths(tree, path)


def _place(path: str) -> tuple[tuple[str, str], bool]:
    """What files of one cube have in common: the folder and the rest of the name; and whether it is a half."""
    folder, _, last = path.rpartition("/")
    suffixes = (*HDF5_SUFFIXES, *ZIP_SUFFIXES, ".zarr")
    stem = next((last[: -len(suffix)] for suffix in suffixes if last.lower().endswith(suffix)), last)
    found = _WORLDCEREAL.match(stem)
    if found:
        return (folder, found["rest"]), found["half"] != "OUTPUT"
    words = re.split(r"[-_]", stem)
    if _HALF.match(words[0]):
        rest = [word for word in words[1:] if not _DETAIL.match(word)]
        return (folder, "_".join(rest)), True
    parts = folder.split("/")
    if _HALF.match(re.sub(r"[-_]", "", parts[-1])):
        return ("/".join(parts[:-1]), stem), True
    return (folder, stem), False


def _name(place: tuple[str, str]) -> str:
    """A key's beginning; a folder that the rest of the name repeats is left out."""
    folder, rest = place
    parts = [part for part in folder.split("/") if part]
    if parts and rest.startswith(parts[-1]):
        parts.pop()
    parts = [re.sub(r"[^A-Za-z0-9_-]+", "_", part) for part in [*parts, rest] if part]
    return "/".join(parts) or "cube"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST // 2).hexdigest()
