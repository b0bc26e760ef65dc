"""Time series of S1 and S2 in Zarr or netCDF, cut into patches; each S2 date with the nearest S1 date is a pair.

A cube is a store or file with variables (time, y, x) named by bands, or several of them, one for each half and
resolution (`sharding.sources.cube_files`). The listing reads coordinates and attributes, and the cloud mask where
clouds are to be left out; a sample reads the pieces of its own patch alone.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa

from sharding.errors import ConfigError
from sharding.sources.base import METADATA, MISSING_HALF, PairError, Sample, Source, SourceFile, SourceOptions
from sharding.sources.cube_clouds import cloud_shares
from sharding.sources.cube_dates import Partners
from sharding.sources.cube_files import CubeFiles, find_cubes
from sharding.sources.cube_sample import Spot, arrays_at, reads_of
from sharding.sources.cube_series import Series, open_series
from sharding.sources.cube_store import cube_files, is_cube_file, is_zarr_folder, stored_files
from sharding.sources.listing import Listing, Pair, Refusal, table_of
from sharding.sources.raster import to_degrees
from sharding.sources.tree import Tree

MAX_DAYS: Final = 3.0
"""Where the user says nothing: dense series have a neighbour within days, and what has none is no pair."""
_COLUMNS: Final = {"files": pa.dictionary(pa.int32(), pa.string()), "row": pa.int32(), "column": pa.int32()}
_BETWEEN: Final = "\n"
"""Parts the names of a cube's files."""
_OPENED: Final = 16
_SHOWN: Final = 3


_Stamp = tuple[SourceFile, ...]


class Cube(Source):
    """Cubes at `root`: a Zarr store, a ZIP of one, a netCDF-4/HDF5 file, or a folder with any number of them."""

    name = "cube"
    version = "1"
    arrays = ("s1", "s2_10m", "s2_20m", "s2_60m", "dem", "cloud_mask", "label_map")

    def __init__(self, root: str, options: SourceOptions | None = None) -> None:
        super().__init__(root, options)
        self._file: str | None = None
        if is_cube_file(root):
            root, _, self._file = root.rpartition("/")
            root = root or ("/" if self.root.startswith("/") else ".")
        self.tree = Tree(root)
        self._opened: OrderedDict[tuple[str, ...], tuple[_Stamp, Series]] = OrderedDict()

    def list(self) -> Listing:
        """Every patch of every cube at every date of S2 that has an S1 near enough, and few enough clouds."""
        where = self._file or ""
        if not self.tree.store.exists(where):
            raise ConfigError(f"there is no {self.tree.store.name(where)}; give --root a cube or a folder of cubes")
        is_cube = self._file is not None or is_zarr_folder(self.tree, "")
        tally = _Tally(options=self.options)
        table = table_of(self._pairs(find_cubes(self.tree, where if is_cube else None), tally), **_COLUMNS)
        if not len(table) and tally.too_small and not tally.refused:
            raise ConfigError(f"no cube holds a whole patch: {tally.too_small[0]}")
        has_splits = len(table) > table["split"].null_count
        return Listing(table=table, refused=tally.refused, notes=tally.all_notes(), has_splits=has_splits)

    def files(self, pair: Pair) -> tuple[SourceFile, ...]:
        """The netCDF files, or the pieces of the Zarr stores, that hold the patch."""
        series = self._series(pair, anew=True)
        reads = list(reads_of(series, _spot(pair)))
        found: list[SourceFile] = []
        for path in series.files:
            inside = [(variable, window) for variable, window in reads if variable.path == path]
            if inside:
                found += stored_files(self.tree, path, inside)
        return tuple(found)

    def read(self, pair: Pair) -> Sample:
        """The patch at its two dates."""
        series = self._series(pair)
        arrays, facts = arrays_at(series, _spot(pair))
        return Sample(
            key=pair.key,
            source=self.name,
            arrays=arrays,
            crs=series.tiles.crs,
            level=series.level,
            dates={"s1": pair.s1_date, "s2": pair.s2_date},
            labels=pair.labels,
            split=pair.split,
            attributes=facts,
        )

    def centre(self, pair: Pair) -> tuple[str, float, float] | None:
        """None: the listing has the place of every cube that says its CRS."""
        return None

    def _series(self, pair: Pair, *, anew: bool = False) -> Series:
        """The cube of a pair, kept open for the next ones; with `anew` it is opened again if its files changed."""
        files = tuple(pair.attributes["files"].split(_BETWEEN))
        if anew or files not in self._opened:
            stamp = tuple(file for path in files for file in cube_files(self.tree, path))
            if files not in self._opened or self._opened[files][0] != stamp:
                self._opened.pop(files, None)  # closes it first: HDF5 gives one file of a name only
                self._opened[files] = stamp, self._open(files)
        self._opened.move_to_end(files)
        while len(self._opened) > _OPENED:
            self._opened.popitem(last=False)
        return self._opened[files][1]

    def _open(self, files: tuple[str, ...]) -> Series:
        series = open_series(self.tree, files, self.options)
        if series is None:
            raise PairError(MISSING_HALF, files[0] or ".", "it holds neither S1 nor S2 any more; fetch it again")
        return series

    def _pairs(self, cubes: Iterable[CubeFiles], tally: "_Tally") -> Iterator[Pair]:
        for cube in cubes:
            try:
                series = open_series(self.tree, cube.files, self.options)
                if series is None:
                    tally.others += cube.files
                    continue
                yield from _pairs_of(cube, series, tally)
            except PairError as error:
                if error.reason == MISSING_HALF and not cube.is_half and self._file is None:
                    tally.others += cube.files  # bands of another satellite are named like those of S2
                    continue
                tally.refused.append(
                    Refusal(
                        key=cube.name,
                        source=self.name,
                        reason=error.reason,
                        file=error.file,
                        message=f"no patch of this cube can be built: {error.message}",
                    )
                )


@dataclass(kw_only=True)
class _Tally:
    """What a listing leaves out, to be told in its notes."""

    options: SourceOptions
    refused: list[Refusal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    too_small: list[str] = field(default_factory=list)
    no_mask: list[str] = field(default_factory=list)
    other_level: list[str] = field(default_factory=list)
    cut_off: int = 0
    cloudy: int = 0
    unmatched: int = 0

    @property
    def max_days(self) -> float:
        """How far apart the dates of a pair may be."""
        return MAX_DAYS if self.options.max_days is None else self.options.max_days

    def all_notes(self) -> list[str]:
        """In a sentence each."""
        told = [
            (self.cut_off, "patches along the borders of cubes are not whole and are left out"),
            (
                self.cloudy,
                f"patches at dates of S2 are left out, for clouds hide more than {self.options.max_cloud:g} of them",
            ),
            (
                self.unmatched,
                f"patches at dates of S2 are left out, for no S1 within {self.max_days:g} days is free for them "
                "(--max-days)",
            ),
        ]
        listed = [
            (self.too_small, "cubes are smaller than a patch"),
            (self.no_mask, "cubes have no cloud mask, so none of their patches is left out for clouds"),
            (self.other_level, f"cubes are not of level {self.options.s2_level} and are left out"),
            (self.others, "files hold no S1 and S2 over time and are left out"),
        ]
        return [
            *self.notes,
            *(f"{count} {text}" for count, text in told if count),
            *(f"{len(names)} {text}: {_few(names)}" for names, text in listed if names),
        ]


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _pairs_of(cube: CubeFiles, series: Series, tally: _Tally) -> Iterator[Pair]:
    options, tiles = tally.options, series.tiles
    if options.s2_level and series.level != options.s2_level:
        tally.other_level.append(cube.name)
        return
    tally.notes += series.notes
    tally.cut_off += tiles.num_dropped
    if not tiles.rows or not tiles.columns:
        height, width = tiles.pixels_10m
        tally.too_small.append(
            f"{cube.name} has {height:g}x{width:g} pixels at 10 m where --patch-pixels is {options.patch_pixels}"
        )
        return
    clear = _clear_dates(cube, series, tally)
    partners = Partners(series.s2_dates, series.s1_dates, tally.max_days)
    places = _places(cube, series)
    for row in range(tiles.rows):
        for column in range(tiles.columns):
            dates = clear(row, column)
            pairs = partners.of(dates)
            tally.unmatched += len(dates) - len(pairs)
            lon, lat = places[row * tiles.columns + column]
            for s2_date, s1_date in pairs:
                yield Pair(
                    key=f"{cube.name}/{_compact(s2_date)}/{row}_{column}",
                    s1=next(iter(series.stack(s1_date).bands.values())).variable.path or ".",
                    s2=next(iter(series.s2.values())).variable.path or ".",
                    split=series.split,
                    lon=lon,
                    lat=lat,
                    s1_date=s1_date,
                    s2_date=s2_date,
                    attributes={"files": _BETWEEN.join(cube.files), "row": row, "column": column},
                )


def _clear_dates(cube: CubeFiles, series: Series, tally: _Tally) -> Callable[[int, int], tuple[str, ...]]:
    """The dates at which few enough clouds hide a patch; the mask is read if there is a limit."""
    limit = tally.options.max_cloud
    if limit >= 1.0:
        return lambda row, column: series.s2_dates
    if series.mask is None:
        tally.no_mask.append(cube.name)
        return lambda row, column: series.s2_dates
    shares = cloud_shares(series.mask, series.tiles, series.s2_dates)

    def clear(row: int, column: int) -> tuple[str, ...]:
        dates = tuple(date for date in series.s2_dates if shares[date][row, column] <= limit)
        tally.cloudy += len(series.s2_dates) - len(dates)
        return dates

    return clear


def _places(cube: CubeFiles, series: Series) -> list[tuple[float, float]]:
    """Longitude and latitude of all patches, row by row; NaN without a CRS."""
    tiles = series.tiles
    if not tiles.crs:
        return [(math.nan, math.nan)] * (tiles.rows * tiles.columns)
    points = [tiles.centre(row, column) for row in range(tiles.rows) for column in range(tiles.columns)]
    try:
        return to_degrees(tiles.crs, points)
    except ValueError as error:
        message = f"its coordinates are no place on earth in {tiles.crs[:40]} ({error})"
        raise PairError(METADATA, cube.files[0] or ".", message) from error


def _spot(pair: Pair) -> Spot:
    row, column = pair.attributes["row"], pair.attributes["column"]
    return Spot(row=row, column=column, s1_date=pair.s1_date, s2_date=pair.s2_date)


def _compact(date: str) -> str:
    return date.replace("-", "").replace(":", "")
