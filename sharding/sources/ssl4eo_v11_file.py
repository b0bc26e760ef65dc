"""What a file of SSL4EO-S12 v1.1 says of its samples besides their pixels: ids, dates, products, places, clouds."""

import re
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sharding.sources.base import METADATA, PairError
from sharding.sources.nearest import days_apart
from sharding.sources.raster import Grid
from sharding.sources.ssl4eo_v1 import s1_date, s2_date
from sharding.sources.zarr_zip_part import GroupFile

CLOUDS: Final = (3, 4)
"""Thin and thick cloud in the mask of SEnSeI v2; 0 land, 1 water, 2 snow, 5 shadow of a cloud, 6 no data."""

_ID: Final = re.compile(r"[A-Za-z0-9-]{1,40}", re.ASCII)
_UNITS: Final = re.compile(r"([a-z]+) since (\S+(?: \S+)?)", re.ASCII)
_UNIT_NS: Final = {
    "nanoseconds": 1,
    "microseconds": 10**3,
    "milliseconds": 10**6,
    "seconds": 10**9,
    "minutes": 60 * 10**9,
    "hours": 3600 * 10**9,
    "days": 86_400 * 10**9,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """Of each sample of a file and, in it, each of its timestamps."""

    ids: list[str]
    numbers: list[int]
    """Of the timestamps, the same for all samples."""
    dates: list[list[str]]
    """ISO 8601; empty where unknown."""
    lon: list[float]
    lat: list[float]
    misdated: int
    """Samples in which `time_` has other dates than the products of `file_id`."""


def read_contents(group: GroupFile) -> Contents:
    """Ids, dates and places of a file's samples; decodes no pixel.

    The dates are those of the products in `file_id`: S1's `time_` is sorted, but neither its products nor its pixels
    are (issue 4 of the archive's repository). Where a file does not name its products, `time_` counts.
    """
    ids, shape = sample_ids(group), group.shape("bands")
    if len(shape) != 5 or shape[0] != len(ids):
        raise _wrong(group, f"'bands' has the shape {shape} for {len(ids)} samples")
    if strange := [name for name in ids if not _ID.fullmatch(name)]:
        raise _wrong(group, f"a sample's id is '{strange[0]:.40}'")
    if len(set(ids)) < len(ids):
        raise _wrong(group, "a sample's id occurs twice, so the halves cannot be joined by it")
    numbers = [int(number) for number in group.array("time")] if "time" in group else list(range(shape[1]))
    if len(set(numbers)) != shape[1]:
        raise _wrong(group, f"'time' is {numbers} for {shape[1]} timestamps")
    times = _texts(group, "time_", shape[:2])
    products = _texts(group, "file_id", shape[:2])
    named = [[s1_date(name) or s2_date(name) or "" for name in row] for row in products]
    return Contents(
        ids=ids,
        numbers=numbers,
        dates=[[b or a for a, b in zip(*rows, strict=True)] for rows in zip(times, named, strict=True)],
        lon=_degrees(group, "center_lon", len(ids)),
        lat=_degrees(group, "center_lat", len(ids)),
        misdated=sum(
            any(a and b and days_apart(a, b) > 1 for a, b in zip(*rows, strict=True))
            for rows in zip(times, named, strict=True)
        ),
    )


def sample_ids(group: GroupFile) -> list[str]:
    """The ids of a file's samples, in order."""
    return [f"{value:07}" if isinstance(value, int) else str(value) for value in group.array("sample").tolist()]


def cloud_shares(mask: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Share of the pixels, along the last two axes of a mask, that are thin or thick cloud."""
    thin, thick = CLOUDS
    is_cloud = (mask == thin) | (mask == thick)  # np.isin takes ten times as long
    shares: npt.NDArray[np.float64] = np.count_nonzero(is_cloud, axis=(-2, -1)) / (mask.shape[-2] * mask.shape[-1])
    return shares


def grid_of(group: GroupFile, row: int) -> Grid:
    """Where the pixels of a sample lie, as far as the file says it."""
    height, width = group.shape("bands")[-2:]
    epsg = int(group.part("crs", row)) if "crs" in group else 0
    transform = None
    if "x_" in group and "y_" in group:
        (a, c), (e, f) = _axis(group, "x_", row), _axis(group, "y_", row)
        transform = (a, 0.0, c, 0.0, e, f) if np.isfinite((a, c, e, f)).all() else None
    return Grid(crs=f"EPSG:{epsg}" if epsg > 0 else "", transform=transform, height=height, width=width)


def _axis(group: GroupFile, name: str, row: int) -> tuple[float, float]:
    """A pixel's side and where the first one begins; the coordinates are those of the pixels' middles."""
    middles = group.part(name, row).astype(np.float64)
    if middles.ndim != 1 or len(middles) < 2:
        raise _wrong(group, f"'{name}' has the shape {middles.shape} for a sample")
    side = (middles[-1] - middles[0]) / (len(middles) - 1)
    if np.isfinite(middles).all() and (np.abs(np.diff(middles) - side) > 0.01 * abs(side)).any():
        raise _wrong(group, f"'{name}' of sample {row} is not evenly spaced")
    return float(side), float(middles[0] - side / 2)


def _degrees(group: GroupFile, name: str, count: int) -> list[float]:
    if name not in group:
        return [np.nan] * count
    values = group.array(name).astype(np.float64)
    if values.shape != (count,):
        raise _wrong(group, f"'{name}' has the shape {values.shape} for {count} samples")
    return [float(value) for value in values]


def _texts(group: GroupFile, name: str, shape: tuple[int, ...]) -> list[list[str]]:
    """An array of texts, or of times as ISO 8601; empty ones where the file has no such array."""
    if name not in group:
        return [[""] * shape[1]] * shape[0]
    values = group.array(name)
    if values.shape != shape:
        raise _wrong(group, f"'{name}' has the shape {values.shape} for {shape[0]} samples of {shape[1]} timestamps")
    if values.dtype.kind in "iuf":
        values = _moments(group, name, values)
    if values.dtype.kind == "M":
        values = np.datetime_as_string(values, unit="s")
    return [["" if value == "NaT" else str(value) for value in row] for row in values.tolist()]


def _moments(group: GroupFile, name: str, values: npt.NDArray[Any]) -> npt.NDArray[np.datetime64]:
    """Numbers that count from a moment, as the CF conventions have it, as times."""
    units = str(group.attributes(name).get("units", ""))
    found = _UNITS.fullmatch(units)
    if found is None or found[1] not in _UNIT_NS:
        raise _wrong(group, f"'{name}' counts in '{units:.40}', which is no unit of time")
    try:
        since = np.datetime64(found[2].replace(" ", "T"), "ns")
    except ValueError as error:
        raise _wrong(group, f"'{name}' counts from '{found[2]:.40}' ({error})") from error
    known = np.isfinite(values) & (values > np.iinfo(np.int64).min)  # numpy and xarray write "no time" so
    elapsed = np.round(np.where(known, values, 0) * _UNIT_NS[found[1]]).astype(np.int64).astype("timedelta64[ns]")
    return np.where(known, since + elapsed, np.datetime64("NaT", "ns"))


def _wrong(group: GroupFile, what: str) -> PairError:
    return PairError(METADATA, group.path, f"{what}; fetch the file again")
