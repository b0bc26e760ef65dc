"""Where reBEN's pixels lie; here the published tree of GeoTIFFs, in `sharding.sources.reben_lmdb` rico-hdl's LMDB."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pyarrow as pa

from sharding.bands import ARRAY_BANDS, MODALITY_ARRAYS, S1_BANDS
from sharding.sources.band_names import band_name
from sharding.sources.base import MISSING_BAND, MISSING_HALF, PairError, SourceFile
from sharding.sources.raster import Raster, read_raster
from sharding.sources.tree import Tree

S1_FOLDER: Final = "BigEarthNet-S1"
S2_FOLDER: Final = "BigEarthNet-S2"
MAP_FOLDER: Final = "Reference_Maps"
_LISTED_AT_ONCE: Final = 16
_PAIRS_REMEMBERED: Final = 8192


class PatchStore(ABC):
    """Patches by name; S1 names as the table has them."""

    folder: str
    """Where it lies below the root."""

    @property
    @abstractmethod
    def has_maps(self) -> bool:
        """Whether any patch may have a reference map."""

    @abstractmethod
    def s1_patches(self) -> pa.Array:
        """Names of all S1 patches."""

    @abstractmethod
    def s2_patches(self) -> pa.Array:
        """Names of all S2 patches."""

    @abstractmethod
    def s1_path(self, name: str) -> str:
        """How a message names an S1 patch."""

    @abstractmethod
    def s2_path(self, name: str) -> str:
        """How a message names an S2 patch."""

    @abstractmethod
    def files(self, s2: str, s1: str, *, with_map: bool) -> tuple[SourceFile, ...]:
        """The files of a pair; PairError when one that cannot be done without is missing."""

    @abstractmethod
    def read(self, s2: str, s1: str) -> dict[str, Raster]:
        """One raster a band."""

    @abstractmethod
    def reference_map(self, s2: str) -> Raster | None:
        """The codes of CORINE of an S2 patch; None where there is no map."""


def whole_groups(bands: Collection[str], path: str, file_of: str = "{}") -> tuple[str, ...]:
    """The S2 bands in storage order: an archive may leave out whole resolutions, within one all must be there.

    PairError when one is missing; `file_of` a band is its name in the folder `path`.
    """
    present: list[str] = []
    for array in MODALITY_ARRAYS["s2"]:
        order = [band for band in ARRAY_BANDS[array] if band != "B10"]
        missing = [band for band in order if band not in bands]
        if missing and len(missing) < len(order):
            message = f"{', '.join(missing)} missing beside the others of {array}; fetch the patch again"
            raise PairError(MISSING_BAND, f"{path}/{file_of.format(missing[0])}", message)
        present += [] if missing else order
    if not present:
        raise PairError(MISSING_BAND, path, "it holds no band; fetch the patch again")
    return tuple(present)


class TreeStore(PatchStore):
    """`BigEarthNet-S2/<tile>/<patch>/`, `BigEarthNet-S1/<scene>/<patch>/` and `Reference_Maps/<tile>/<patch>/`."""

    folder = ""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._listed: dict[str, dict[str, SourceFile]] = {}
        """By patch: what `files` found and `read` will want, so that folders are listed once."""

    def s1_patches(self) -> pa.Array:
        """Names of the patches' folders."""
        return self._patches(S1_FOLDER)

    def s2_patches(self) -> pa.Array:
        """Names of the patches' folders."""
        return self._patches(S2_FOLDER)

    def _patches(self, half: str) -> pa.Array:
        def names(group: str) -> pa.Array:
            return pa.array(self.tree.folders(f"{half}/{group}"), pa.string())

        with ThreadPoolExecutor(_LISTED_AT_ONCE) as threads:
            groups = threads.map(names, self.tree.folders(half))
            return pa.chunked_array(groups, pa.string()).combine_chunks()

    def s1_path(self, name: str) -> str:
        """The scene is the patch's name without tile, column and row."""
        return f"{S1_FOLDER}/{name.rsplit('_', 3)[0]}/{name}"

    def s2_path(self, name: str) -> str:
        """The tile's folder is the patch's name without column and row."""
        return f"{S2_FOLDER}/{name.rsplit('_', 2)[0]}/{name}"

    def files(self, s2: str, s1: str, *, with_map: bool) -> tuple[SourceFile, ...]:
        """By the names in the two folders."""
        bands = self._bands(s2, s1)
        if len(self._listed) < _PAIRS_REMEMBERED:
            self._listed[s2] = bands
        found = list(bands.values())
        if with_map and (file := self._map_file(s2)) is not None:
            found.append(file)
        return tuple(found)

    def read(self, s2: str, s1: str) -> dict[str, Raster]:
        """One GeoTIFF a band."""
        files = self._listed.pop(s2, None) or self._bands(s2, s1)
        return {band: read_raster(self.tree, file.path, (band,)) for band, file in files.items()}

    def reference_map(self, s2: str) -> Raster | None:
        """The GeoTIFF in a folder of its own."""
        file = self._map_file(s2)
        return None if file is None else read_raster(self.tree, file.path, ("CLC",))

    def _bands(self, s2: str, s1: str) -> dict[str, SourceFile]:
        return {**self._s1_files(s1, s2), **self._s2_files(s2)}

    def _s1_files(self, s1: str, s2: str) -> dict[str, SourceFile]:
        path = self.s1_path(s1)
        files = self.tree.files(path)
        if not files:
            raise PairError(MISSING_HALF, path, f"the S1 half of {s2} is missing; fetch it")
        for band in S1_BANDS:
            if f"{s1}_{band}.tif" not in files:
                message = f"{band} of {s1} is missing; fetch the patch again"
                raise PairError(MISSING_BAND, f"{path}/{s1}_{band}.tif", message)
        return {band: files[f"{s1}_{band}.tif"] for band in S1_BANDS}

    def _s2_files(self, s2: str) -> dict[str, SourceFile]:
        path = self.s2_path(s2)
        bands = {band: file for name, file in self.tree.files(path).items() if (band := _tif_band(name, s2))}
        return {band: bands[band] for band in whole_groups(bands, path, f"{s2}_{{}}.tif")}

    def _map_file(self, s2: str) -> SourceFile | None:
        if not self.has_maps:
            return None
        return self.tree.file(f"{MAP_FOLDER}/{s2.rsplit('_', 2)[0]}/{s2}/{s2}_reference_map.tif")

    @functools.cached_property
    def has_maps(self) -> bool:
        """They have a folder of their own."""
        return MAP_FOLDER in self.tree.folders()


def _tif_band(name: str, patch: str) -> str | None:
    if not name.startswith(f"{patch}_") or not name.endswith(".tif"):
        return None
    band = band_name(name[len(patch) + 1 : -4])
    return band if band and name == f"{patch}_{band}.tif" else None
