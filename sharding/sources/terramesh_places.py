"""`train_metadata.parquet` and `val_metadata.parquet` of TerraMesh: where each tile lies, a row a tile.

Columns used: `tar` and `zarr` (names of the tar and of the member), `center_lon`, `center_lat`, `cloud_cover`. The
files were added to the archive after its release, so that an older copy has none.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sharding.errors import DataError
from sharding.sources.tree import Tree

_REQUIRED: Final = {"tar": pa.string(), "zarr": pa.string(), "center_lon": pa.float64(), "center_lat": pa.float64()}
_CLOUDS: Final = {"cloud_cover": pa.float64()}


class Place(NamedTuple):
    """A row of the table."""

    lon: float
    lat: float
    cloud_cover: float | None


class Places:
    """The tables of `splits`, as far as they are there; DataError when one is there and is not as described."""

    def __init__(self, tree: Tree, splits: list[str]) -> None:
        present = tree.files()
        self._tables = {
            split: _Table(tree, name) for split in splits if (name := f"{split}_metadata.parquet") in present
        }

    @property
    def splits(self) -> list[str]:
        """Those that have a table."""
        return sorted(self._tables)

    def of(self, split: str, tar: str) -> dict[str, Place]:
        """The places of the tiles in one tar, by tile; empty where nothing is known."""
        return self._tables[split].of(tar) if split in self._tables else {}


class _Table:
    """Rows found by tar: sorted once, for there are millions of tiles and hundreds of tars."""

    def __init__(self, tree: Tree, path: str) -> None:
        self._table = _read(tree, path)
        encoded = self._table["tar"].combine_chunks().dictionary_encode()
        numbers: npt.NDArray[np.int64] = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        self._order = np.argsort(numbers, kind="stable")
        self._numbers = numbers[self._order]
        self._of_tar = {name: number for number, name in enumerate(encoded.dictionary.to_pylist())}

    def of(self, tar: str) -> dict[str, Place]:
        number = self._of_tar.get(tar)
        if number is None:
            return {}
        first, last = np.searchsorted(self._numbers, (number, number + 1))
        rows = self._table.take(pa.array(self._order[first:last])).to_pylist()
        return {
            str(row["zarr"]).removesuffix(".zarr.zip"): Place(
                row["center_lon"], row["center_lat"], row.get("cloud_cover")
            )
            for row in rows
            if row["center_lon"] is not None and row["center_lat"] is not None
        }


def _read(tree: Tree, path: str) -> pa.Table:
    name = tree.store.name(path)
    local = tree.local(path)
    source: Any = str(local) if local is not None else pa.BufferReader(tree.read(path))
    try:
        with pq.ParquetFile(source) as file:
            missing = [column for column in _REQUIRED if column not in file.schema_arrow.names]
            if missing:
                raise DataError(f"{name} has no column {', '.join(missing)}; fetch it again or take it away")
            types = {c: kind for c, kind in {**_REQUIRED, **_CLOUDS}.items() if c in file.schema_arrow.names}
            return file.read(columns=list(types)).select(list(types)).cast(pa.schema(types))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name} cannot be read as Parquet ({error}); fetch it again or take it away") from error
