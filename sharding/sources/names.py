"""Names of BigEarthNet patches, and what they tell: dates, tile, place.

For example, of one place:

- S2 v1.0: `S2A_MSIL2A_20170613T101031_26_57`
- S2 v2.0: `S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57`
- S1: `S1A_IW_GRDH_1SDV_20170613T165043_33UUP_26_57` (never zero-padded; S2 v2.0 is: `_00_00`)
"""

import datetime
import functools
import math
import re
from dataclasses import dataclass
from typing import Final

PATCH_M: Final = 1200
PATCH_PIXELS: Final = 120
BANDS_12: Final = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")

S1_PATTERN: Final = (
    r"S1[A-D]_IW_GRDH_1SDV_(?P<date>\d{8}T\d{6})_(?P<tile>\d{2}[C-X][A-Z]{2})_(?P<column>\d{1,2})_(?P<row>\d{1,2})"
)
S2_V1_PATTERN: Final = r"S2[A-D]_MSIL2A_(?P<date>\d{8}T\d{5,6})_(?P<column>\d{1,2})_(?P<row>\d{1,2})"
S2_V2_PATTERN: Final = (
    r"S2[A-D]_MSIL2A_(?P<date>\d{8}T\d{6})_N\d{4}_R\d{3}_T(?P<tile>\d{2}[C-X][A-Z]{2})"
    r"_(?P<column>\d{1,2})_(?P<row>\d{1,2})"
)

_LATITUDE_BANDS: Final = "CDEFGHJKLMNPQRSTUVWX"
_ROWS: Final = "ABCDEFGHJKLMNPQRSTUV"
_COLUMNS: Final = ("STUVWXYZ", "ABCDEFGH", "JKLMNPQR")
_SQUARE_M: Final = 100_000
_CYCLE_M: Final = len(_ROWS) * _SQUARE_M


@dataclass(frozen=True, kw_only=True)
class PatchName:
    """A patch's name taken apart; `tile` is empty where the name has none (S2 of v1.0)."""

    date: str
    tile: str
    column: int
    row: int

    @property
    def place(self) -> tuple[str, int, int]:
        """What an S1 and an S2 name of one patch share."""
        return self.tile, self.column, self.row


def parse_s1(name: str) -> PatchName | None:
    """An S1 patch's name; None when it is none."""
    return _parse(S1_PATTERN, name)


def parse_s2_v1(name: str) -> PatchName | None:
    """An S2 patch's name of version 1.0; None when it is none."""
    return _parse(S2_V1_PATTERN, name)


def parse_s2_v2(name: str) -> PatchName | None:
    """An S2 patch's name of version 2.0; None when it is none."""
    return _parse(S2_V2_PATTERN, name)


def _parse(pattern: str, name: str) -> PatchName | None:
    found = re.fullmatch(pattern, name, re.ASCII)
    if found is None or (date := iso_time(found["date"])) is None:
        return None
    tile = found.groupdict().get("tile", "")
    if tile and tile_corner(tile) is None:
        return None
    return PatchName(date=date, tile=tile, column=int(found["column"]), row=int(found["row"]))


def iso_time(text: str) -> str | None:
    """The time in a name (`20170613T101031`) as ISO 8601; None when it is none.

    Names of v1.0 are told apart by seconds that were counted on, without a carry and without the leading zero: what
    version 2.0 calls 094159 is `94160` and `94161` there. The carry is made up for.
    """
    day, _, clock = text.partition("T")
    clock = clock.zfill(6)
    hours, minutes, seconds = int(clock[:2]), int(clock[2:4]), int(clock[4:])
    if hours > 23 or minutes > 59:
        return None
    try:
        midnight = datetime.datetime.strptime(day, "%Y%m%d")
    except ValueError:
        return None
    return (midnight + datetime.timedelta(hours=hours, minutes=minutes, seconds=seconds)).isoformat()


def tile_square(tile: str) -> tuple[str, int, int]:
    """CRS (`EPSG:326xx`) and the south-west corner, in metres, of an MGRS 100 km square such as `33UUP`."""
    zone, band, column, row = int(tile[:2]), tile[2], tile[3], tile[4]
    columns = _COLUMNS[zone % 3]
    if not 1 <= zone <= 60 or band not in _LATITUDE_BANDS or column not in columns or row not in _ROWS:
        raise ValueError(f"'{tile}' is no MGRS square")
    easting = (columns.index(column) + 1) * _SQUARE_M
    # Rows are lettered from the equator with a period of 2,000 km, shifted by five letters in even zones.
    northing = (_ROWS.index(row) - (0 if zone % 2 else 5)) % len(_ROWS) * _SQUARE_M
    south_edge = _northing(-80 + 8 * _LATITUDE_BANDS.index(band))
    northing += math.ceil((south_edge - _SQUARE_M - northing) / _CYCLE_M) * _CYCLE_M
    if band < "N":
        return f"EPSG:{32700 + zone}", easting, northing + 10_000_000
    return f"EPSG:{32600 + zone}", easting, northing


def _northing(latitude: float) -> float:
    """Northing of a parallel on the central meridian, in metres, negative in the south (to 1 km; squares are 100)."""
    phi = math.radians(latitude)
    return 0.9996 * (6_367_449.146 * phi - 16_038.509 * math.sin(2 * phi) + 16.833 * math.sin(4 * phi))


@functools.cache
def tile_corner(tile: str) -> tuple[str, int, int] | None:
    """CRS and upper left corner, in metres, of a Sentinel-2 tile; None when `tile` is no MGRS square.

    It starts at the square's corner, moved outwards to a multiple of 60 m.
    """
    try:
        crs, easting, northing = tile_square(tile)
    except ValueError:
        return None
    return crs, easting // 60 * 60, -(-(northing + _SQUARE_M) // 60) * 60


def patch_corner(name: PatchName) -> tuple[str, int, int]:
    """CRS and upper left corner, in metres, of a patch: patches of 1,200 m are counted from the tile's corner.

    Equal to the corners of the published footprints (tests compare with real GeoTIFFs).
    """
    corner = tile_corner(name.tile)
    assert corner is not None, name.tile
    crs, left, top = corner
    return crs, left + PATCH_M * name.column, top - PATCH_M * name.row
