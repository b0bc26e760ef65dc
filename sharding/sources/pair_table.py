"""The table of the `folder` source: one pair a row. What is wrong with a row is said with its number."""

import datetime
import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from sharding.bands import S1_BANDS, S2_BANDS
from sharding.errors import DataError
from sharding.sources.band_names import band_name
from sharding.sources.table_file import TableFile, cell_text

ALIASES: Final = {"pair_id": "key", "date_s1": "s1_date", "date_s2": "s2_date"}
REQUIRED: Final = ("key", "s1_path", "s2_path", "s1_bands", "s2_bands", "s1_units", "s2_level")
OPTIONAL: Final = (
    "s1_scale", "s1_nodata", "s2_units", "s2_offset", "s2_nodata", "s1_date", "s2_date", "lon", "lat", "split",
    "labels", "label_path", "dem_path", "country",
)  # fmt: skip
_DECLARED: Final = (
    "s1_bands", "s2_bands", "s1_units", "s2_level", "s1_scale", "s1_nodata", "s2_units", "s2_offset", "s2_nodata",
)  # fmt: skip
ATTRIBUTE: Final = "attr_"
"""How the names of columns begin whose cells go into the sample's attributes as they are."""
S1_UNITS: Final = {"db": "dB", "linear": "linear"}
S2_LEVELS: Final = ("L1C", "L2A")
S2_UNITS: Final = {"": "DN", "dn": "DN", "reflectance": "reflectance"}
SPLITS: Final = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Names that splits go by -> ours."""
KEY_PATTERN: Final = re.compile(r"[A-Za-z0-9_-]+(?:/[A-Za-z0-9_-]+)*")
MAX_KEY: Final = 91
"""A tar names a member in 100 bytes, `.zarr.zip` included."""
_SHOWN: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class TableRow:
    """One row, read."""

    number: int
    """Of the row, as `TableFile.rows` counts."""
    key: str
    s1_path: str
    """A file, a folder, or several files with `|` between them."""
    s2_path: str
    s1_bands: str
    """`VV,VH`; with `|` between the files' where there are several."""
    s2_bands: str
    s1_units: str
    s2_level: str
    s1_scale: float = 1.0
    s1_nodata: float | None = None
    s2_units: str = "DN"
    s2_offset: float = 0.0
    s2_nodata: float | None = None
    s1_date: str = ""
    s2_date: str = ""
    lon: float = math.nan
    lat: float = math.nan
    split: str | None = None
    labels: tuple[str, ...] = ()
    label_path: str = ""
    dem_path: str = ""
    country: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    """By the names of their columns, `attr_…`."""


class WrongRows:
    """Collects what is wrong with the rows of a table, to say the first few at once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.first: list[str] = []
        self.count = 0

    def add(self, number: int, message: str) -> None:
        """Row `number` is wrong."""
        self.count += 1
        if len(self.first) < _SHOWN:
            self.first.append(f"row {number}: {message}")

    def raise_if_any(self) -> None:
        """DataError that names the first wrong rows."""
        if self.count:
            more = f" (and {self.count - _SHOWN} more rows)" if self.count > _SHOWN else ""
            raise DataError(f"{self.name}, {'; '.join(self.first)}{more}")


def unread_columns(table: TableFile) -> list[str]:
    """The columns that nothing reads."""
    known = (*REQUIRED, *OPTIONAL)
    return [name for name in table.columns if _ours(name) not in known and not name.startswith(ATTRIBUTE)]


def attribute_types(table: TableFile) -> dict[str, pa.DataType]:
    """The columns that go into the samples' attributes: numbers and truth values as they are, all else as text."""
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    return {
        name: kind if any(is_kind(kind) for is_kind in kinds) else pa.string()
        for name, kind in table.columns.items()
        if name.startswith(ATTRIBUTE)
    }


def attributes_of(raw: dict[str, Any], types: dict[str, pa.DataType]) -> dict[str, Any]:
    """The attributes among the cells of a row; empty cells are none."""
    texts = {name: cell_text(raw[name]) for name in types}
    return {name: text if types[name] == pa.string() else raw[name] for name, text in texts.items() if text}


def rows_of(table: TableFile) -> Iterator[TableRow]:
    """The rows one after the other; at the end DataError if any was wrong."""
    ours = [_ours(name) for name in table.columns]
    missing = [column for column in REQUIRED if column not in ours]
    if missing:
        raise DataError(
            f"{table.name}, row 1: the columns {', '.join(missing)} are missing; required are {', '.join(REQUIRED)}"
        )
    twice = sorted({name for name in ours if ours.count(name) > 1})
    if twice:
        raise DataError(f"{table.name}, row 1: there are two columns for {', '.join(twice)}; keep one")
    attributes = attribute_types(table)
    read = {name: _ours(name) for name in table.columns if _ours(name) in (*REQUIRED, *OPTIONAL)}
    wrong = WrongRows(table.name)
    for number, raw in table.rows([*read, *attributes]):
        try:
            cells = {column: own_cell(column, raw[name]) for name, column in read.items()}
            row = row_of(number, cells, attributes_of(raw, attributes))
        except ValueError as error:
            wrong.add(number, str(error))
        else:
            yield row
    wrong.raise_if_any()


def row_of(number: int, cells: dict[str, str], attributes: dict[str, Any]) -> TableRow:
    """The row made of its cells as text, by our names of columns; ValueError when one of them is wrong."""
    if not all(map(cells.get, REQUIRED)):
        empty = [column for column in REQUIRED if not cells.get(column)]
        raise ValueError(f"{', '.join(empty)} is empty")
    key = cells["key"]
    if not KEY_PATTERN.fullmatch(key) or len(key) > MAX_KEY:
        raise ValueError(f"the key '{key}' may have letters, digits, _ - and / only, {MAX_KEY} at most")
    lon, lat = _number(cells, "lon", math.nan), _number(cells, "lat", math.nan)
    if math.isnan(lon) != math.isnan(lat) or abs(lon) > 180 or abs(lat) > 90:
        raise ValueError(f"lon and lat are '{cells.get('lon', '')}' and '{cells.get('lat', '')}'; give both in degrees")
    s1_path, s2_path = cells["s1_path"].rstrip("/"), cells["s2_path"].rstrip("/")
    declared = tuple(cells.get(column, "") for column in _DECLARED)
    return TableRow(
        number=number,
        key=key,
        s1_path=s1_path,
        s2_path=s2_path,
        **_declarations(declared, s1_path.count("|") + 1, s2_path.count("|") + 1),
        s1_date=_date(cells, "s1_date"),
        s2_date=_date(cells, "s2_date"),
        lon=lon,
        lat=lat,
        split=normalise_split(cells.get("split", "")),
        labels=_labels(cells.get("labels", "")),
        label_path=cells.get("label_path", ""),
        dem_path=cells.get("dem_path", ""),
        country=cells.get("country", ""),
        attributes=attributes,
    )


def normalise_split(text: str) -> str | None:
    """Our name of a split, None for an empty one; ValueError for one that is no split's."""
    if not text:
        return None
    if text.lower() not in SPLITS:
        raise ValueError(f"'{text}' is no split; write train, val or test, or nothing")
    return SPLITS[text.lower()]


@functools.lru_cache(maxsize=4096)
def _declarations(declared: tuple[str, ...], num_s1: int, num_s2: int) -> dict[str, Any]:
    """What the cells of `_DECLARED` say of pixels, the same in most rows; with the numbers of files of both halves."""
    cells = dict(zip(_DECLARED, declared, strict=True))
    return {
        "s1_bands": _bands(cells["s1_bands"], "s1", num_s1),
        "s2_bands": _bands(cells["s2_bands"], "s2", num_s2),
        "s1_units": _one_of(cells, "s1_units", S1_UNITS, "dB or linear"),
        "s2_level": _one_of(cells, "s2_level", {level.lower(): level for level in S2_LEVELS}, "L1C or L2A"),
        "s1_scale": _scale(cells),
        "s1_nodata": _nodata(cells, "s1_nodata"),
        "s2_units": _one_of(cells, "s2_units", S2_UNITS, "DN or reflectance"),
        "s2_offset": _number(cells, "s2_offset", 0.0),
        "s2_nodata": _nodata(cells, "s2_nodata"),
    }


@functools.lru_cache(maxsize=4096)
def _labels(text: str) -> tuple[str, ...]:
    return tuple(label for label in map(str.strip, text.split("|")) if label)


def _ours(column: str) -> str:
    return ALIASES.get(column.strip(), column.strip())


def own_cell(column: str, value: Any) -> str:
    """A cell of one of our columns as text; several labels with `|` between them."""
    if isinstance(value, str):
        return value.strip()
    if column == "labels" and isinstance(value, list):
        return "|".join(map(cell_text, value))
    return cell_text(value)


def _one_of(cells: dict[str, str], column: str, names: dict[str, str], known: str) -> str:
    text = cells.get(column, "")
    if text.lower() not in names:
        raise ValueError(f"{column} is '{text}'; write {known}")
    return names[text.lower()]


def _number(cells: dict[str, str], column: str, default: float) -> float:
    text = cells.get(column, "")
    if not text:
        return default
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{column} is '{text}'; write a number, or nothing")
    return number


def _nodata(cells: dict[str, str], column: str) -> float | None:
    return _number(cells, column, 0.0) if cells.get(column) else None


def _scale(cells: dict[str, str]) -> float:
    scale = _number(cells, "s1_scale", 1.0)
    if scale <= 0:
        raise ValueError(f"s1_scale is '{cells['s1_scale']}'; write by what the stored numbers are multiplied")
    return scale


@functools.lru_cache(maxsize=4096)
def iso_date(text: str) -> str:
    """A date or time as the listing wants it: in UTC, to the second; ValueError when it is none."""
    moment = datetime.datetime.fromisoformat(text)
    if len(text) <= len("2020-01-31"):
        return moment.date().isoformat()
    if moment.tzinfo is not None:
        moment = moment.astimezone(datetime.UTC)
    return moment.replace(tzinfo=None, microsecond=0).isoformat()


def _date(cells: dict[str, str], column: str) -> str:
    text = cells.get(column, "")
    try:
        return iso_date(text) if text else ""
    except ValueError:
        raise ValueError(f"{column} is '{text}'; write 2020-01-31 or 2020-01-31T10:20:30, in UTC, or nothing") from None


def _bands(text: str, half: str, num_files: int) -> str:
    """The bands of a half as ESA writes them; grouped by file where it has several."""
    known = {"s1": S1_BANDS, "s2": S2_BANDS}[half]
    groups = text.split("|") if num_files > 1 and "|" in text else [text]
    names = [[name for name in re.split(r"[,;| ]+", group) if name] for group in groups]
    if num_files > 1 and len(names) == 1 and len(names[0]) == num_files:
        names = [[name] for name in names[0]]
    bands = [[band_name(name) for name in group] for group in names]
    for group, named in zip(names, bands, strict=True):
        for name, band in zip(group, named, strict=True):
            if band not in known:
                raise ValueError(f"{half}_bands has '{name}'; known are {', '.join(known)}")
    if len({band for group in bands for band in group}) != sum(map(len, bands)):
        raise ValueError(f"{half}_bands names a band twice: {text}")
    if num_files > 1 and (len(bands) != num_files or not all(bands)):
        raise ValueError(
            f"{half}_path names {num_files} files and {half}_bands ({text}) the bands of {len(bands)}; "
            "put | between the bands of the files"
        )
    return "|".join(",".join(band for band in group if band) for group in bands)
