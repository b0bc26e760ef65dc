"""reBEN as rico-hdl's LMDB: a patch's name -> safetensors of its bands, a name and `_reference_map` -> its map."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sharding.bands import ARRAY_GSD_M, S1_BANDS, array_of
from sharding.errors import ConfigError, DataError
from sharding.sources.base import CORRUPT, MISSING_BAND, MISSING_HALF, WRONG_SIZE, PairError, SourceFile
from sharding.sources.names import PATCH_M, parse_s2_v2, patch_corner
from sharding.sources.raster import Grid, Raster
from sharding.sources.reben_store import PatchStore, whole_groups
from sharding.sources.tree import Tree

DATA: Final = "data.mdb"
_MAP_SUFFIX: Final = "_reference_map"
_MAP_TENSOR: Final = "Data"
_BATCH: Final = 1 << 16


class LmdbStore(PatchStore):
    """Two keys a pair; the grids follow from the patches' names, for the LMDB does not keep them."""

    def __init__(self, tree: Tree, folder: str) -> None:
        self.tree, self.folder = tree, folder
        path = tree.local(folder)
        if path is None:
            raise ConfigError(f"{tree.store.name(folder)} is an LMDB, which is read from a disk only; copy it first")
        self.path = str(path)

    @functools.cached_property
    def has_maps(self) -> bool:
        """They are keys like others."""
        return bool(pc.any(pc.ends_with(self._s2_keys, _MAP_SUFFIX)).as_py())

    def s1_patches(self) -> pa.Array:
        """Keys that begin with S1."""
        return self._keys(b"S1")

    def s2_patches(self) -> pa.Array:
        """Keys that begin with S2, reference maps aside."""
        return self._s2_keys.filter(pc.invert(pc.ends_with(self._s2_keys, _MAP_SUFFIX)))

    @functools.cached_property
    def _s2_keys(self) -> pa.Array:
        return self._keys(b"S2")

    def _keys(self, prefix: bytes) -> pa.Array:
        import lmdb

        def keys(cursor: Any) -> Iterator[str]:
            if cursor.set_range(prefix):
                for key in cursor.iternext(keys=True, values=False):
                    if not key.startswith(prefix):
                        return
                    yield key.decode(errors="replace")

        batches = []
        try:
            with _open_lmdb(self.path).begin() as transaction:
                names = keys(transaction.cursor())
                while batch := list(itertools.islice(names, _BATCH)):
                    batches.append(pa.array(batch, pa.string()))
        except lmdb.Error as error:
            raise DataError(f"{self.path} cannot be read as an LMDB ({error}); fetch it again") from error
        return pa.chunked_array(batches, pa.string()).combine_chunks()

    def s1_path(self, name: str) -> str:
        """A message names the LMDB's folder and the key."""
        return f"{self.folder or '.'}/{name}"

    def s2_path(self, name: str) -> str:
        """A message names the LMDB's folder and the key."""
        return f"{self.folder or '.'}/{name}"

    def files(self, s2: str, s1: str, *, with_map: bool) -> tuple[SourceFile, ...]:
        """The one file that holds all; which bands a patch has, its value says when it is read."""
        path = f"{self.folder}/{DATA}" if self.folder else DATA
        file = self.tree.file(path)
        if file is None:
            raise PairError(MISSING_HALF, path, "the LMDB is missing; fetch it again")
        return (file,)

    def read(self, s2: str, s1: str) -> dict[str, Raster]:
        """One plane a band."""
        s1_planes, s2_planes = self._planes(s1), self._planes(s2)
        for path, planes in ((self.s1_path(s1), s1_planes), (self.s2_path(s2), s2_planes)):
            if planes is None:
                raise PairError(MISSING_HALF, path, "the LMDB has no such key; make it again with rico-hdl")
        assert s1_planes is not None and s2_planes is not None
        missing = [band for band in S1_BANDS if band not in s1_planes]
        if missing:
            message = f"it has no {', '.join(missing)}; make the LMDB again with rico-hdl"
            raise PairError(MISSING_BAND, self.s1_path(s1), message)
        return {
            **{band: self._raster(s1, s2, s1_planes[band], band) for band in S1_BANDS},
            **{band: self._raster(s2, s2, s2_planes[band], band) for band in whole_groups(s2_planes, self.s2_path(s2))},
        }

    def reference_map(self, s2: str) -> Raster | None:
        """The tensor `Data` of the map's own key."""
        key = f"{s2}{_MAP_SUFFIX}"
        planes = self._planes(key)
        if planes is None:
            return None
        if _MAP_TENSOR not in planes:
            message = f"it has no tensor {_MAP_TENSOR}; make the LMDB again with rico-hdl"
            raise PairError(CORRUPT, self.s2_path(key), message)
        return self._raster(key, s2, planes[_MAP_TENSOR], "CLC")

    def _raster(self, key: str, s2: str, data: npt.NDArray[Any], band: str) -> Raster:
        path = self.s2_path(key)
        if data.ndim != 2:
            raise PairError(WRONG_SIZE, path, f"{band} has shape {data.shape}, height and width were expected")
        name = parse_s2_v2(s2)
        assert name is not None, s2
        crs, left, top = patch_corner(name)
        gsd_m = float(ARRAY_GSD_M[array_of(band)])
        side = PATCH_M // int(gsd_m)
        grid = Grid(crs=crs, transform=(gsd_m, 0.0, float(left), 0.0, -gsd_m, float(top)), height=side, width=side)
        return Raster(path=path, data=data[None], grid=grid)

    def _planes(self, key: str) -> dict[str, npt.NDArray[Any]] | None:
        import lmdb
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            with _open_lmdb(self.path).begin() as transaction:
                value = transaction.get(key.encode())
        except lmdb.Error as error:
            message = f"the LMDB cannot be read there ({error}); fetch it again"
            raise PairError(CORRUPT, self.s2_path(key), message) from error
        if value is None:
            return None
        try:
            planes: dict[str, np.ndarray[Any, Any]] = load(value)
        except (SafetensorError, ValueError, KeyError) as error:
            message = f"its value is no safetensors ({error}); make the LMDB again"
            raise PairError(CORRUPT, self.s2_path(key), message) from error
        return planes


@functools.cache
def _open_lmdb(path: str) -> Any:
    # A process may open an environment only once; it stays open until the process ends.
    import lmdb

    try:
        return lmdb.open(path, readonly=True, lock=False, readahead=False, create=False)
    except lmdb.Error as error:
        raise DataError(f"{path} cannot be opened as an LMDB ({error}); fetch it again") from error
