"""Your own GeoTIFFs: a table with one pair a row (`sharding.sources.pair_table`), or a table of STAC items.

A half is a folder with one `<BAND>.tif` or `*_<BAND>.tif` a band, each at its own resolution, or one or more GeoTIFFs
with the bands in the order of the row. Bands are the row's; a file that names others is refused. Paths are relative to
the table, absolute, or URLs.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sharding.bands import ARRAY_BANDS
from sharding.errors import ConfigError, DataError
from sharding.sources.assemble import Radiometry, arrays_of, rider, split_bands
from sharding.sources.band_names import band_name
from sharding.sources.base import (
    BANDS,
    GRIDS,
    MISSING_BAND,
    MISSING_HALF,
    WRONG_TYPE,
    PairError,
    Sample,
    Source,
    SourceFile,
    SourceOptions,
    StoredArray,
)
from sharding.sources.listing import Listing, Pair, Refusal, table_of
from sharding.sources.named_files import NamedFiles
from sharding.sources.pair_table import TableRow, attribute_types, rows_of, unread_columns
from sharding.sources.raster import Grid, Raster, read_grid, read_raster
from sharding.sources.stac_table import StacRows, is_stac
from sharding.sources.table_file import TABLE_SUFFIXES, TableFile, open_table
from sharding.sources.tree import Tree

_TABLES: Final = ("pairs.csv", "pairs.parquet", "pairs.geoparquet", "manifest.csv")
_SUFFIXES: Final = (".tif", ".tiff", ".jp2", ".vrt")
_RIDERS: Final = {"label_path": ("label_map", "LABEL", "class"), "dem_path": ("dem", "DEM", "m")}
"""Column -> array, band and units."""
_FEW: Final = pa.dictionary(pa.int32(), pa.string())
"""The type of columns of which many rows say the same."""
_COLUMNS: Final = {
    "row": pa.int32(),
    **dict.fromkeys(("s1_bands", "s2_bands", "s1_units", "s2_units", "s2_level", "country"), _FEW),
    **dict.fromkeys(("s1_scale", "s1_nodata", "s2_offset", "s2_nodata"), pa.float64()),
    **dict.fromkeys(("label_path", "dem_path"), pa.string()),
}
"""What steers the reading of a row."""
_SHOWN: Final = 3


class Folder(Source):
    """Pairs of a table; `root` is the table, or a folder with pairs.csv or pairs.parquet in it."""

    name = "folder"
    version = "1"
    arrays = ("s1", "s2_10m", "s2_20m", "s2_60m", "dem", "label_map")

    def __init__(self, root: str, options: SourceOptions | None = None) -> None:
        super().__init__(root, options)
        self.table = ""
        if root.lower().endswith(TABLE_SUFFIXES):
            root, _, self.table = root.rpartition("/")
            root = root or ("/" if self.root.startswith("/") else ".")
        self.tree = Tree(root)
        self.named = NamedFiles(self.tree)

    def list(self) -> Listing:
        """The rows of the table; DataError when one is wrong. Whether their files are there, `files` says."""
        self.tree.require()
        table = open_table(self.tree, self.table or self._found_table())
        refused: list[Refusal] = []
        notes: list[str] = []
        if is_stac(table):
            items = StacRows(table=table, source=self.name, refused=refused, notes=notes)
            listed = table_of(map(_pair, items.rows()), **_COLUMNS, **items.attribute_types)
        else:
            listed = table_of(map(_pair, rows_of(table)), **_COLUMNS, **attribute_types(table))
            extra = unread_columns(table)
            if extra:
                notes.append(f"columns of {table.path} that nothing reads: {', '.join(extra)}")
        _refuse_repeated(listed, table)
        has_splits = len(listed) > listed["split"].null_count
        return Listing(table=listed, refused=refused, notes=notes, has_splits=has_splits)

    def files(self, pair: Pair) -> tuple[SourceFile, ...]:
        """The rasters of both halves and what rides along; PairError when one is missing."""
        with _naming_row(pair):
            halves = tuple(
                file
                for half in ("s1", "s2")
                for file in self._half_files(getattr(pair, half), pair.attributes[f"{half}_bands"], half.upper())
            )
            return (*halves, *(self._one_file(path, "raster") for _, path in self._rider_paths(pair)))

    def read(self, pair: Pair) -> Sample:
        """Both halves as the row declares them."""
        with _naming_row(pair):
            return self._read(pair)

    def centre(self, pair: Pair) -> tuple[str, float, float] | None:
        """From the header of the first raster of S1, whose footprint is that of all; no pixel is read."""
        with _naming_row(pair):
            files = self._half_files(pair.s1, pair.attributes["s1_bands"], "S1")
            groups = _groups(pair.s1, pair.attributes["s1_bands"])
            return self._grid(files[0].path, groups[0]).centre

    def _read(self, pair: Pair) -> Sample:
        told = dict(pair.attributes)
        bands = {**self._read_half(pair.s1, told["s1_bands"], "S1"), **self._read_half(pair.s2, told["s2_bands"], "S2")}
        rasters = {band: bands[band] for order in ARRAY_BANDS.values() for band in order if band in bands}
        radiometry = Radiometry(
            s1_units=told["s1_units"],
            s1_scale=told["s1_scale"],
            s1_nodata=told.get("s1_nodata"),
            s2_units=told["s2_units"],
            s2_offset=told["s2_offset"],
            s2_nodata=told.get("s2_nodata"),
        )
        arrays = arrays_of(rasters, radiometry)
        first = next(iter(rasters.values()))
        arrays |= {_RIDERS[column][0]: self._rider(column, path, first) for column, path in self._rider_paths(pair)}
        arrays = {name: arrays[name] for name in ARRAY_BANDS if name in arrays}
        attributes = {name.removeprefix("attr_"): value for name, value in told.items() if name not in _COLUMNS}
        if "country" in told:
            attributes["country"] = told["country"]
        return Sample(
            key=pair.key,
            source=self.name,
            arrays=arrays,
            crs=first.grid.crs,
            level=told["s2_level"],
            dates={half: date for half, date in (("s1", pair.s1_date), ("s2", pair.s2_date)) if date},
            labels=pair.labels,
            split=pair.split,
            attributes=attributes,
            place=(pair.lon, pair.lat) if not first.grid.crs and not math.isnan(pair.lon) else None,
        )

    def _found_table(self) -> str:
        name = next((name for name in _TABLES if self.tree.store.exists(name)), None)
        if name is None:
            raise ConfigError(
                f"there is no {self.tree.store.name(_TABLES[0])} or {_TABLES[1]}; give --root a CSV or Parquet table "
                "of pairs"
            )
        return name

    def _rider_paths(self, pair: Pair) -> Iterator[tuple[str, str]]:
        if self.options.riders:
            yield from ((column, pair.attributes[column]) for column in _RIDERS if column in pair.attributes)

    def _rider(self, column: str, path: str, reference: Raster) -> StoredArray:
        array, band, units = _RIDERS[column]
        raster = self._raster(path, (band,))
        if units == "class" and raster.data.dtype.kind not in "iub":
            raise PairError(WRONG_TYPE, path, f"the classes are {raster.data.dtype}; whole numbers were expected")
        if not _same_footprint(raster.grid, reference.grid):
            raise PairError(
                GRIDS, path, f"it does not cover the place of {reference.path}; resample it onto the same footprint"
            )
        return rider(array, {band: raster}, units=units)

    def _half_files(self, path: str, bands: str, half: str) -> tuple[SourceFile, ...]:
        """The files of a half in the order of its bands."""
        if _is_folder(path):
            return tuple(self._chosen(path, tuple(bands.split(",")), half).values())
        return tuple(self._one_file(part, f"{half} half") for part in path.split("|"))

    def _one_file(self, path: str, what: str) -> SourceFile:
        found = self.named.file(path)
        if found is None:
            raise PairError(MISSING_HALF, path, f"the {what} is missing; put the file there or drop the row")
        return found

    def _chosen(self, path: str, bands: tuple[str, ...], half: str) -> dict[str, SourceFile]:
        """The files of `bands` in the folder `path`, in this order."""
        found = self._by_band(path)
        if not found:
            raise PairError(MISSING_HALF, path, f"the {half} half is missing: no GeoTIFF of a band lies there")
        missing = [band for band in bands if band not in found]
        if missing:
            raise PairError(MISSING_BAND, path, f"it holds no {', '.join(missing)}, which the row declares")
        return {band: found[band] for band in bands}

    def _by_band(self, path: str) -> dict[str, SourceFile]:
        found: dict[str, SourceFile] = {}
        for name, file in self.named.folder(path).items():
            band = band_name(name.rpartition(".")[0]) if name.lower().endswith(_SUFFIXES) else None
            if band is None:
                continue
            if band in found:
                raise PairError(BANDS, path, f"{found[band].path} and {file.path} are both {band}; keep one")
            found[band] = file
        return found

    def _read_half(self, path: str, bands: str, half: str) -> dict[str, Raster]:
        if _is_folder(path):
            chosen = self._chosen(path, tuple(bands.split(",")), half)
            return {band: self._raster(file.path, (band,)) for band, file in chosen.items()}
        planes: dict[str, Raster] = {}
        for part, group in zip(path.split("|"), _groups(path, bands), strict=True):
            planes |= split_bands(self._raster(part, group), group)
        return planes

    def _raster(self, path: str, bands: tuple[str, ...]) -> Raster:
        tree, inside = self.named.place(path)
        with _named(path):
            return replace(read_raster(tree, inside, bands), path=path)

    def _grid(self, path: str, bands: tuple[str, ...]) -> Grid:
        tree, inside = self.named.place(path)
        with _named(path):
            return read_grid(tree, inside, bands)


def _pair(row: TableRow) -> Pair:
    told = {name: getattr(row, name) for name in _COLUMNS if name != "row"}
    return Pair(
        key=row.key,
        s1=row.s1_path,
        s2=row.s2_path,
        split=row.split,
        labels=row.labels,
        lon=row.lon,
        lat=row.lat,
        s1_date=row.s1_date,
        s2_date=row.s2_date,
        attributes={"row": row.number, **{k: v for k, v in told.items() if v not in (None, "")}, **row.attributes},
    )


def _refuse_repeated(listed: pa.Table, table: TableFile) -> None:
    """DataError when a key is there twice; `listed` is sorted by key."""
    keys = listed["key"].combine_chunks()
    again = np.flatnonzero(pc.equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)) + 1
    if not len(again):
        return
    told = []
    for place in again[:_SHOWN].tolist():
        first, second = sorted(listed["row"].slice(place - 1, 2).to_pylist())
        told.append(f"row {second}: the key '{keys[place]}' is in row {first} already")
    more = f" (and {len(again) - _SHOWN} more rows)" if len(again) > _SHOWN else ""
    raise DataError(f"{table.name}, {'; '.join(told)}{more}")


def _is_folder(path: str) -> bool:
    return "|" not in path and not path.partition("?")[0].lower().endswith(_SUFFIXES)


def _groups(path: str, bands: str) -> list[tuple[str, ...]]:
    """The bands of each file; of a folder, of its first file."""
    if _is_folder(path):
        return [(bands.split(",")[0],)]
    return [tuple(group.split(",")) for group in bands.split("|")]


def _same_footprint(grid: Grid, reference: Grid) -> bool:
    """Within 1 % of a pixel; of grids without coordinates, by the ratio of their sides."""
    if grid.bounds is None or reference.bounds is None or grid.transform is None or reference.transform is None:
        unplaced = grid.bounds is None and reference.bounds is None
        return unplaced and grid.height * reference.width == grid.width * reference.height
    tolerance = 0.01 * min(abs(grid.transform[0]), abs(reference.transform[0]))
    near = (abs(a - b) <= tolerance for a, b in zip(grid.bounds, reference.bounds, strict=True))
    return grid.crs == reference.crs and all(near)


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """A PairError calls the file what the table calls it."""
    try:
        yield
    except PairError as error:
        raise PairError(error.reason, path, error.message) from error


@contextlib.contextmanager
def _naming_row(pair: Pair) -> Iterator[None]:
    """A PairError says the row of the table too."""
    try:
        yield
    except PairError as error:
        raise PairError(error.reason, error.file, f"{error.message} (row {pair.attributes['row']})") from error
