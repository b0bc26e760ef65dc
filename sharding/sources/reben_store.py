"""Where reBEN's pixels lie: the published tree of GeoTIFFs, or rico-hdl's LMDB (a patch's name -> safetensors)."""

import functools
import json
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from sharding.bands import ALL_BANDS, ARRAY_GSD_M, S1_BANDS, array_of
from sharding.errors import ConfigError, DataError
from sharding.sources.band_names import band_name
from sharding.sources.base import (
    CORRUPT,
    MISSING_BAND,
    MISSING_HALF,
    WRONG_SIZE,
    Pair,
    PairError,
    SourceFile,
)
from sharding.sources.names import PATCH_M, parse_s2_v2, patch_corner
from sharding.sources.raster import Grid, Raster, read_raster
from sharding.sources.tree import Tree


class PatchStore(ABC):
    """Patches by name; S1 names as the table has them."""

    folder: str
    """Where it lies below the root."""

    @abstractmethod
    def s1_patches(self) -> list[str]:
        """Names of all S1 patches, sorted."""

    @abstractmethod
    def s2_patches(self) -> list[str]:
        """Names of all S2 patches, sorted."""

    @abstractmethod
    def s1_path(self, name: str) -> str:
        """How a message names an S1 patch."""

    @abstractmethod
    def s2_path(self, name: str) -> str:
        """How a message names an S2 patch."""

    @abstractmethod
    def contents(self, s2: str, s1: str) -> tuple[tuple[str, ...], tuple[SourceFile, ...]]:
        """The S2 bands that are there, and the files; PairError when the S1 half is missing or lacks a band."""

    @abstractmethod
    def read(self, pair: Pair) -> dict[str, Raster]:
        """One raster a band."""


class TreeStore(PatchStore):
    """`BigEarthNet-S2/<tile>/<patch>/` and `BigEarthNet-S1/<scene>/<patch>/`."""

    folder = ""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    def s1_patches(self) -> list[str]:
        """Names of the patches' folders."""
        return self._patches("BigEarthNet-S1")

    def s2_patches(self) -> list[str]:
        """Names of the patches' folders."""
        return self._patches("BigEarthNet-S2")

    def _patches(self, half: str) -> list[str]:
        return sorted(patch for group in self.tree.folders(half) for patch in self.tree.folders(f"{half}/{group}"))

    def s1_path(self, name: str) -> str:
        """The scene is the patch's name without tile, column and row."""
        return f"BigEarthNet-S1/{name.rsplit('_', 3)[0]}/{name}"

    def s2_path(self, name: str) -> str:
        """The tile's folder is the patch's name without column and row."""
        return f"BigEarthNet-S2/{name.rsplit('_', 2)[0]}/{name}"

    def contents(self, s2: str, s1: str) -> tuple[tuple[str, ...], tuple[SourceFile, ...]]:
        """By the names of the files."""
        s1_files, s2_files = self.tree.files(self.s1_path(s1)), self.tree.files(self.s2_path(s2))
        if not s1_files:
            raise PairError(MISSING_HALF, self.s1_path(s1), f"the S1 half of {s2} is missing; fetch it")
        for band in S1_BANDS:
            if f"{s1}_{band}.tif" not in s1_files:
                path = f"{self.s1_path(s1)}/{s1}_{band}.tif"
                raise PairError(MISSING_BAND, path, f"{band} of {s1} is missing; fetch the patch again")
        rasters = {found: file for name, file in s2_files.items() if (found := _tif_band(name, s2))}
        s1_rasters = [s1_files[f"{s1}_{band}.tif"] for band in S1_BANDS]
        return tuple(rasters), (*s1_rasters, *rasters.values())

    def read(self, pair: Pair) -> dict[str, Raster]:
        """One GeoTIFF a band."""
        rasters = {}
        for band in pair.bands:
            folder, name = (self.s1_path(pair.s1), pair.s1) if band in S1_BANDS else (self.s2_path(pair.s2), pair.s2)
            rasters[band] = read_raster(self.tree, f"{folder}/{name}_{band}.tif", (band,))
        return rasters


def _tif_band(name: str, patch: str) -> str | None:
    if not name.startswith(f"{patch}_") or not name.endswith(".tif"):
        return None
    return band_name(name[len(patch) + 1 : -4])


class LmdbStore(PatchStore):
    """Two keys a pair; the grids follow from the patches' names, for the LMDB does not keep them."""

    def __init__(self, tree: Tree, folder: str) -> None:
        self.tree, self.folder = tree, folder
        path = tree.local(folder)
        if path is None:
            raise ConfigError(f"{tree.store.name(folder)} is an LMDB, which is read from a disk only; copy it first")
        self.path = str(path)
        self._names: list[str] | None = None

    @property
    def _environment(self) -> Any:
        return _open_lmdb(self.path)

    def _all(self) -> list[str]:
        if self._names is None:
            with self._environment.begin() as transaction:
                keys = transaction.cursor().iternext(keys=True, values=False)
                self._names = sorted(key.decode() for key in keys)
        return self._names

    def s1_patches(self) -> list[str]:
        """Keys that begin with S1."""
        return [name for name in self._all() if name.startswith("S1")]

    def s2_patches(self) -> list[str]:
        """Keys that begin with S2, reference maps aside."""
        return [name for name in self._all() if name.startswith("S2") and not name.endswith("_reference_map")]

    def s1_path(self, name: str) -> str:
        """A message names the LMDB's folder and the key."""
        return f"{self.folder or '.'}/{name}"

    def s2_path(self, name: str) -> str:
        """A message names the LMDB's folder and the key."""
        return f"{self.folder or '.'}/{name}"

    def contents(self, s2: str, s1: str) -> tuple[tuple[str, ...], tuple[SourceFile, ...]]:
        """By the header of the S2 patch's safetensors; the first page of each value is touched."""
        data = self.tree.files(self.folder)["data.mdb"]
        with self._environment.begin(buffers=True) as transaction:
            if transaction.get(s1.encode()) is None:
                raise PairError(MISSING_HALF, self.s1_path(s1), f"the S1 half of {s2} is missing; fetch it")
            bands = tuple(_header(transaction.get(s2.encode()), self.s2_path(s2)))
        return bands, (data,)

    def read(self, pair: Pair) -> dict[str, Raster]:
        """One plane a band."""
        name = parse_s2_v2(pair.key)
        assert name is not None
        crs, left, top = patch_corner(name)
        planes = {**self._planes(self.s1_path(pair.s1), pair.s1), **self._planes(self.s2_path(pair.s2), pair.s2)}
        rasters = {}
        for band in pair.bands:
            path = self.s1_path(pair.s1) if band in S1_BANDS else self.s2_path(pair.s2)
            if band not in planes:
                raise PairError(MISSING_BAND, path, f"it has no {band}; make the LMDB again with rico-hdl")
            data = planes[band]
            if data.ndim != 2:
                raise PairError(WRONG_SIZE, path, f"{band} has shape {data.shape}, height and width were expected")
            side = float(ARRAY_GSD_M[array_of(band)])
            grid = Grid(
                crs=crs,
                transform=(side, 0.0, float(left), 0.0, -side, float(top)),
                height=PATCH_M // int(side),
                width=PATCH_M // int(side),
            )
            rasters[band] = Raster(path=path, data=data[None], grid=grid)
        return rasters

    def _planes(self, path: str, key: str) -> dict[str, np.ndarray[Any, Any]]:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        with self._environment.begin() as transaction:
            value = transaction.get(key.encode())
        if value is None:
            raise PairError(MISSING_HALF, path, "the LMDB has no such key; make it again with rico-hdl")
        try:
            planes = load(value)
        except (SafetensorError, ValueError, KeyError) as error:
            raise PairError(CORRUPT, path, f"its value is no safetensors ({error}); make the LMDB again") from error
        return {band: data for band, data in planes.items() if band in ALL_BANDS}


@functools.cache
def _open_lmdb(path: str) -> Any:
    # A process may open an environment only once; it stays open until the process ends.
    import lmdb

    try:
        return lmdb.open(path, readonly=True, lock=False, readahead=False, create=False)
    except lmdb.Error as error:
        raise DataError(f"{path} cannot be opened as an LMDB ({error}); fetch it again") from error


def _header(value: Any, path: str) -> list[str]:
    """Bands in a safetensors value: u64 length, then JSON."""
    try:
        length = int.from_bytes(bytes(value[:8]), "little")
        header = json.loads(bytes(value[8 : 8 + length]))
        return [name for name in header if name in ALL_BANDS]
    except (ValueError, TypeError) as error:
        raise PairError(CORRUPT, path, f"its value is no safetensors ({error}); make the LMDB again") from error
