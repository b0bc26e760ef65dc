"""Names of BigEarthNet patches a column at a time: what `sharding.sources.names` tells of one, for half a million."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sharding.sources.names import PATCH_M, iso_time, tile_corner
from sharding.sources.raster import to_degrees

Mask = npt.NDArray[np.bool_]
Degrees = npt.NDArray[np.float64]
_INDEX_END = 100
"""Columns and rows have two digits."""


@dataclass(frozen=True, kw_only=True)
class PatchNames:
    """A column of names taken apart; null, or -1, where a name is none."""

    date: pa.Array
    """ISO 8601."""
    tile: pa.Array
    """Null throughout where the names have none (S2 of v1.0)."""
    column: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]

    @property
    def valid(self) -> Mask:
        """Which names are names of patches."""
        return self.column >= 0

    def filter(self, kept: Mask) -> Self:
        """The names of the rows `kept`."""
        chosen = pa.array(kept)
        return type(self)(
            date=self.date.filter(chosen),
            tile=self.tile.filter(chosen),
            column=self.column[kept],
            row=self.row[kept],
        )


def parse_column(names: pa.Array, pattern: str) -> PatchNames:
    """`names` taken apart by one of the patterns of `sharding.sources.names`."""
    found = pc.extract_regex(names, f"^{pattern}$")
    date = map_distinct(pc.struct_field(found, "date"), iso_time)
    valid = date.is_valid()
    if "<tile>" in pattern:
        tile = map_distinct(pc.struct_field(found, "tile"), lambda text: text if tile_corner(text) else None)
        valid = pc.and_(valid, tile.is_valid())
    else:
        tile = pa.nulls(len(names), pa.string())
    column, row = (_numbers(pc.struct_field(found, name), valid) for name in ("column", "row"))
    return PatchNames(date=date, tile=tile, column=column, row=row)


def same_place(a: PatchNames, b: PatchNames) -> Mask:
    """Which rows are valid in both and agree in column and row, and in the tile where both have one."""
    tiles = pc.fill_null(pc.equal(a.tile, b.tile), True).to_numpy(zero_copy_only=False)
    agree: Mask = a.valid & b.valid & (a.column == b.column) & (a.row == b.row) & tiles
    return agree


def centres(names: PatchNames) -> tuple[Degrees, Degrees]:
    """Longitude and latitude of the middle of each patch; every name must be valid and have a tile."""
    tiles = names.tile.dictionary_encode()
    tile = tiles.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    corners = [corner for text in tiles.dictionary.to_pylist() if (corner := tile_corner(text))]
    # A place that was seen on several days is placed once.
    codes = (tile * _INDEX_END + names.column) * _INDEX_END + names.row
    places, rows = np.unique(codes, return_inverse=True)
    tile_of, column, row = (places // _INDEX_END**2, places // _INDEX_END % _INDEX_END, places % _INDEX_END)
    left, top = (np.array([corner[axis] for corner in corners], np.float64) for axis in (1, 2))
    degrees = np.empty((len(places), 2))
    for crs in sorted({corner[0] for corner in corners}):
        of_crs = np.array([corner[0] == crs for corner in corners])[tile_of]
        x = left[tile_of[of_crs]] + PATCH_M * (column[of_crs] + 0.5)
        y = top[tile_of[of_crs]] - PATCH_M * (row[of_crs] + 0.5)
        degrees[of_crs] = to_degrees(crs, list(zip(x.tolist(), y.tolist(), strict=True)))
    return degrees[rows, 0], degrees[rows, 1]


def map_distinct(values: pa.Array, function: Callable[[str], Any]) -> pa.Array:
    """`function` of each string, called once for each that differs; null stays null."""
    encoded = values.dictionary_encode()
    mapped = pa.array([function(value) for value in encoded.dictionary.to_pylist()], pa.string())
    return mapped.take(encoded.indices)


def _numbers(digits: pa.Array, valid: pa.Array) -> npt.NDArray[np.int64]:
    known = pc.if_else(valid, digits, pa.scalar(None, pa.string()))
    numbers: npt.NDArray[np.int64] = pc.fill_null(known.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    return numbers
