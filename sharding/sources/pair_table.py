"""The CSV of the `folder` source: one pair a row. What is wrong with a row is said with its number."""

import csv
import io
import re
from dataclasses import dataclass
from typing import Final

from sharding.bands import S1_BANDS, S2_BANDS
from sharding.errors import DataError
from sharding.sources.band_names import band_name

ALIASES: Final = {"pair_id": "key", "date_s1": "s1_date", "date_s2": "s2_date"}
REQUIRED: Final = ("key", "s1_path", "s2_path", "s1_bands", "s2_bands", "s1_units", "s2_level")
OPTIONAL: Final = ("s2_units", "s2_offset", "s1_date", "s2_date", "split", "labels", "country")
S1_UNITS: Final = {"db": "dB", "linear": "linear"}
S2_LEVELS: Final = ("L1C", "L2A")
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


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One row, read."""

    number: int
    """As an editor counts, the header being row 1."""
    key: str
    s1_path: str
    s2_path: str
    s1_bands: tuple[str, ...]
    s2_bands: tuple[str, ...]
    s1_units: str
    s2_level: str
    s2_offset: float = 0.0
    s1_date: str = ""
    s2_date: str = ""
    split: str | None = None
    labels: tuple[str, ...] = ()
    country: str = ""


def parse_table(content: bytes, name: str) -> tuple[list[TableRow], list[str]]:
    """The rows and the columns that nobody reads; DataError naming the first rows that are wrong."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 text ({error}); save it as a CSV in UTF-8") from error
    reader = csv.DictReader(io.StringIO(text))
    columns = {column: ALIASES.get(column.strip(), column.strip()) for column in reader.fieldnames or []}
    missing = [column for column in REQUIRED if column not in columns.values()]
    if missing:
        raise DataError(
            f"{name}, row 1: the columns {', '.join(missing)} are missing; required are {', '.join(REQUIRED)}"
        )
    rows, wrong = [], []
    first_with: dict[str, int] = {}
    for raw in reader:
        number = reader.line_num
        try:
            row = _row(number, {columns[c]: (value or "").strip() for c, value in raw.items() if c in columns})
            if row.key in first_with:
                raise ValueError(f"the key '{row.key}' is in row {first_with[row.key]} already")
            first_with[row.key] = number
            rows.append(row)
        except ValueError as error:
            wrong.append(f"row {number}: {error}")
    if wrong:
        more = f" (and {len(wrong) - _SHOWN} more rows)" if len(wrong) > _SHOWN else ""
        raise DataError(f"{name}, {'; '.join(wrong[:_SHOWN])}{more}")
    return rows, [column for column, ours in columns.items() if ours not in (*REQUIRED, *OPTIONAL)]


def normalise_split(text: str) -> str | None:
    """Our name of a split, None for an empty one; ValueError for one that is no split's."""
    if not text:
        return None
    if text.lower() not in SPLITS:
        raise ValueError(f"'{text}' is no split; write train, val or test, or nothing")
    return SPLITS[text.lower()]


def _row(number: int, cells: dict[str, str]) -> TableRow:
    empty = [column for column in REQUIRED if not cells.get(column)]
    if empty:
        raise ValueError(f"{', '.join(empty)} is empty")
    key = cells["key"]
    if not KEY_PATTERN.fullmatch(key) or len(key) > MAX_KEY:
        raise ValueError(f"the key '{key}' may have letters, digits, _ - and / only, {MAX_KEY} at most")
    units = cells["s1_units"].lower()
    if units not in S1_UNITS:
        raise ValueError(f"s1_units is '{cells['s1_units']}'; write dB or linear")
    if cells.get("s2_units", "DN") not in ("", "DN"):
        raise ValueError(f"s2_units is '{cells['s2_units']}'; only digital numbers (DN) can be stored")
    if cells["s2_level"].upper() not in S2_LEVELS:
        raise ValueError(f"s2_level is '{cells['s2_level']}'; write L1C or L2A")
    try:
        offset = float(cells.get("s2_offset") or 0)
    except ValueError:
        raise ValueError(f"s2_offset is '{cells['s2_offset']}'; write a number, such as -1000, or nothing") from None
    return TableRow(
        number=number,
        key=key,
        s1_path=cells["s1_path"].rstrip("/"),
        s2_path=cells["s2_path"].rstrip("/"),
        s1_bands=_bands(cells["s1_bands"], S1_BANDS, "s1_bands"),
        s2_bands=_bands(cells["s2_bands"], S2_BANDS, "s2_bands"),
        s1_units=S1_UNITS[units],
        s2_level=cells["s2_level"].upper(),
        s2_offset=offset,
        s1_date=cells.get("s1_date", ""),
        s2_date=cells.get("s2_date", ""),
        split=normalise_split(cells.get("split", "")),
        labels=tuple(label.strip() for label in cells.get("labels", "").split("|") if label.strip()),
        country=cells.get("country", ""),
    )


def _bands(text: str, known: tuple[str, ...], column: str) -> tuple[str, ...]:
    names = [name for name in re.split(r"[,;| ]+", text) if name]
    bands = [band_name(name) for name in names]
    for name, band in zip(names, bands, strict=True):
        if band not in known:
            raise ValueError(f"{column} has '{name}'; known are {', '.join(known)}")
    if len(set(bands)) != len(bands):
        raise ValueError(f"{column} names a band twice: {text}")
    return tuple(band for band in bands if band)
