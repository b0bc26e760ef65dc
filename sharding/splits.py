"""Which pair goes into which split: the source's own, by cells of the earth, or by a file.

Pairs that a source with splits leaves out (BigEarthNet's authors do so with snow and clouds), and those of the split
train that touch a cell of val or test, make a split of their own, `unlisted`: they are kept and counted, and not
trained on.
"""

import csv
import hashlib
import io
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sharding.errors import ConfigError, DataError
from sharding.sources.base import Source
from sharding.sources.listing import Listing, Refusal
from sharding.sources.pair_table import normalise_split

SPLITS: Final = ("train", "val", "test")
UNLISTED: Final = "unlisted"
SERIES: Final = (*SPLITS, UNLISTED)
"""Every split that a data set may have, in the order of its shards."""
OFFICIAL: Final = "official"
GEOGRAPHIC: Final = "geographic"
CELL_KM: Final = 25.0
REFUSED: Final = -1
_KM_PER_DEGREE: Final = 111.32
_SHARES: Final = (("train", 0.8), ("val", 0.9), ("test", 1.0))
_TOUCHING: Final = 1.5
"""Squares of one size touch, corner to corner, when their centres are 1.42 sides apart."""
_SHOWN: Final = 5

Codes = npt.NDArray[np.int8]
"""Numbers in `SERIES`, or `REFUSED`."""
Degrees = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Where the pairs go."""

    codes: Codes
    refused: list[Refusal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def official(table: pa.Table, sources: list[Source], listings: list[Listing]) -> Assignment:
    """The split that each row's source says, in the column `split`."""
    codes, notes = _codes(table["split"]), []
    number = table["source"].to_numpy()
    for i, (source, listing) in enumerate(zip(sources, listings, strict=True)):
        own = number == i
        without = own & (codes == REFUSED)
        count = int(without.sum())
        codes[without] = SERIES.index(UNLISTED if listing.has_splits else "train")
        if count and listing.has_splits:
            notes.append(
                f"{count} of {int(own.sum())} pairs of {source.root} are in none of its splits: they are kept in the "
                f"split {UNLISTED}, which is not trained on"
            )
        elif count:
            notes.append(f"{source.root} has no splits, so all of its {count} pairs go to train")
    return Assignment(codes=codes, notes=notes)


def from_file(table: pa.Table, path: str) -> Assignment:
    """The splits of a CSV of `key,split`, which must list every key."""
    keys, splits = _read_table(path)
    rows = pc.index_in(table["key"], value_set=pa.array(keys, pa.string()))
    if rows.null_count:
        unlisted = table["key"].filter(pc.is_null(rows)).slice(0, _SHOWN).to_pylist()
        more = ", …" if rows.null_count > _SHOWN else ""
        raise DataError(f"{path} has no row for {rows.null_count} of {len(rows)} keys ({', '.join(unlisted)}{more})")
    return Assignment(codes=np.array([SERIES.index(s) for s in splits], np.int8)[rows.to_numpy()])


def geographic(lon: Degrees, lat: Degrees, *, cell_km: float, side_m: float) -> Assignment:
    """By cells: 80 % of all cells are train, 10 % val, 10 % test; places that are NaN are refused.

    A pair of train whose patch (of `side_m`, or a neighbour's) reaches into a cell of val or test goes to `unlisted`,
    so that no neighbour of a test patch is trained on.
    """
    known = np.isfinite(lon) & np.isfinite(lat)
    codes = np.full(len(lon), REFUSED, np.int8)
    codes[known] = _codes_of_places(lon[known], lat[known], cell_km)
    train = np.flatnonzero(codes == SERIES.index("train"))
    reach_km = _TOUCHING * side_m / 1000
    touches = np.zeros(len(train), np.bool_)
    for north, east in ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)):
        moved_lat = np.clip(lat[train] + north * reach_km / _KM_PER_DEGREE, -90, 90)
        shrink = np.maximum(np.cos(np.radians(lat[train])), 1e-3)
        moved_lon = lon[train] + east * reach_km / _KM_PER_DEGREE / shrink
        touches |= _codes_of_places(moved_lon, moved_lat, cell_km) != SERIES.index("train")
    codes[train[touches]] = SERIES.index(UNLISTED)
    notes = []
    if touches.any():
        notes.append(
            f"{int(touches.sum())} pairs of train lie within {reach_km:.1f} km of a cell of val or test: they are kept "
            f"in the split {UNLISTED}, which is not trained on"
        )
    return Assignment(codes=codes, notes=notes)


def cells(lon: Degrees, lat: Degrees, cell_km: float = CELL_KM) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Row and column of the cell of about that size that each place lies in; rows of one height, the world over."""
    height = cell_km / _KM_PER_DEGREE
    row = np.floor(lat / height).astype(np.int64)
    circumference_km = 360 * _KM_PER_DEGREE * np.cos(np.radians((row + 0.5) * height))
    columns = np.maximum(1, np.rint(circumference_km / cell_km))
    return row, np.floor((lon + 180) % 360 / 360 * columns).astype(np.int64)


def split_of_cell(row: int, column: int) -> str:
    """80 % of all cells are train, 10 % val, 10 % test; the seed has no say, so a test cell stays one."""
    digest = hashlib.blake2b(f"{row},{column}".encode(), digest_size=8).digest()
    share = int.from_bytes(digest, "little") / 2**64
    return next(split for split, bound in _SHARES if share < bound)


def _codes_of_places(lon: Degrees, lat: Degrees, cell_km: float) -> Codes:
    row, column = cells(lon, lat, cell_km)
    pairs, places = np.unique(np.stack([row, column], axis=1), axis=0, return_inverse=True)
    codes = np.array([SERIES.index(split_of_cell(int(r), int(c))) for r, c in pairs], np.int8)
    spread: Codes = codes[places.reshape(-1)]
    return spread


def _codes(splits: pa.ChunkedArray) -> Codes:
    """The numbers of a column of splits; REFUSED where there is none."""
    encoded = pa.chunked_array(splits.cast(pa.string())).combine_chunks().dictionary_encode()
    names = [normalise_split(name) for name in encoded.dictionary.to_pylist()]
    numbers = np.array([REFUSED if name is None else SERIES.index(name) for name in names] + [REFUSED], np.int8)
    codes: Codes = numbers[encoded.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)]
    return codes


def degrees_of(table: pa.Table, sources: list[Source], refused: list[Refusal], *, required: bool) -> tuple[Any, Any]:
    """Longitude and latitude of each row: the listing's, or the source's own word where the listing has none.

    A pair whose place cannot be read is added to `refused` and stays NaN. `required`: DataError when a source knows
    no place; else such pairs stay NaN.
    """
    from sharding.sources.places import places_of

    lon, lat = (table[name].to_numpy().copy() for name in ("lon", "lat"))
    unknown = np.flatnonzero(~(np.isfinite(lon) & np.isfinite(lat)))
    if len(unknown):
        found = places_of(table.take(unknown), sources, refused, required=required)
        lon[unknown], lat[unknown] = found[:, 0], found[:, 1]
    return lon, lat


def _read_table(path: str) -> tuple[list[str], list[str]]:
    """Keys and splits of a CSV of `key,split`, with or without a header."""
    import fsspec

    try:
        with fsspec.open(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ConfigError(f"there is no {path}; give --splits official, geographic, or a CSV of key,split") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); save it as a CSV in UTF-8") from error
    listed: dict[str, str] = {}
    reader = csv.reader(io.StringIO(text))
    for row in reader:
        cells = [value.strip() for value in row]
        if not any(cells) or (reader.line_num == 1 and cells[:2] == ["key", "split"]):
            continue
        try:
            if len(cells) != 2 or not cells[0]:
                raise ValueError(f"'{','.join(row)}' is not key,split")
            split = normalise_split(cells[1])
            if split is None:
                raise ValueError(f"'{cells[0]}' has no split; write train, val or test")
            if listed.setdefault(cells[0], split) != split:
                raise ValueError(f"'{cells[0]}' is in split {listed[cells[0]]} already")
        except ValueError as error:
            raise DataError(f"{path}, row {reader.line_num}: {error}") from error
    return list(listed), list(listed.values())
