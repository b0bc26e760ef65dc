"""The same patch in two archives: of one place and one day of Sentinel-2, whatever its key."""

import itertools
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_M_PER_DEGREE: Final = 111_320.0
Degrees = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Places:
    """Patches by place and day."""

    source: npt.NDArray[np.int64]
    lon: Degrees
    lat: Degrees
    day: npt.NDArray[np.int64]
    """Days since 1970; -1 when unknown."""


def days_of(dates: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Days since 1970 of ISO 8601 dates or times; -1 where there is none or it is none."""
    text = pc.utf8_slice_codeunits(dates.cast(pa.string()), 0, 10)
    text = pc.if_else(pc.match_substring_regex(text, r"^\d{4}-\d{2}-\d{2}$"), text, pa.scalar(None, pa.string()))
    moments = pc.strptime(text, format="%Y-%m-%d", unit="s", error_is_null=True).cast(pa.int64())
    days: npt.NDArray[np.int64] = pc.fill_null(pc.divide(moments, 86_400), -1).to_numpy().astype(np.int64)
    return days


def find_duplicates(places: Places, tolerance_m: float) -> npt.NDArray[np.bool_]:
    """Which patches lie within `tolerance_m` of one of the same day from an earlier source."""
    repeated = np.zeros(len(places.lon), np.bool_)
    chosen = _of_shared_days(places)
    if not len(chosen):
        return repeated
    size = 2 * tolerance_m / _M_PER_DEGREE
    # Two points within the tolerance share a cell of twice its size in at least one of four shifted grids.
    for shift_row, shift_column in itertools.product((0.0, 0.5), repeat=2):
        row = np.floor(places.lat[chosen] / size + shift_row).astype(np.int64)
        # One width a row of cells, else neighbours at one longitude would be cut differently.
        width = size / np.maximum(np.cos(np.radians(row * size)), 0.01)
        column = np.floor(places.lon[chosen] / width + shift_column).astype(np.int64)
        order = np.lexsort((chosen, places.source[chosen], column, row, places.day[chosen]))
        cells = np.stack([places.day[chosen], row, column], axis=1)[order]
        starts = np.flatnonzero(np.any(np.diff(cells, axis=0, prepend=cells[:1] - 1) != 0, axis=1))
        for group in np.split(chosen[order], starts[1:]):
            if places.source[group[0]] != places.source[group[-1]]:
                _mark(places, group, tolerance_m, repeated)
    return repeated


def _of_shared_days(places: Places) -> npt.NDArray[np.int64]:
    """The patches with a place and a day that more than one source has."""
    known = np.flatnonzero(np.isfinite(places.lon) & np.isfinite(places.lat) & (places.day >= 0))
    if not len(known):
        return known
    days, group = np.unique(places.day[known], return_inverse=True)
    first = np.full(len(days), np.iinfo(np.int64).max)
    last = np.full(len(days), np.iinfo(np.int64).min)
    np.minimum.at(first, group, places.source[known])
    np.maximum.at(last, group, places.source[known])
    shared: npt.NDArray[np.int64] = known[(first != last)[group]]
    return shared


def _mark(places: Places, group: npt.NDArray[np.int64], tolerance_m: float, repeated: npt.NDArray[np.bool_]) -> None:
    for place in group:
        earlier = group[(places.source[group] < places.source[place]) & ~repeated[group]]
        if len(earlier) and not repeated[place]:
            lon, lat = float(places.lon[place]), float(places.lat[place])
            distance = _distances_m(lon, lat, places.lon[earlier], places.lat[earlier])
            repeated[place] = bool((distance <= tolerance_m).any())


def _distances_m(lon: float, lat: float, other_lon: Degrees, other_lat: Degrees) -> Degrees:
    """Metres from one place to others nearby, on a plane that touches the earth there."""
    north = (other_lat - lat) * _M_PER_DEGREE
    east = ((other_lon - lon + 180) % 360 - 180) * _M_PER_DEGREE * math.cos(math.radians(lat))
    distances: Degrees = np.hypot(north, east)
    return distances
