"""Where and when the numbers of a cube were measured: coordinates, reference system and dates.

As the CF conventions and the habits of xarray, GDAL and openEO put them down; ValueError says what is missing or wrong.
"""

import datetime
import functools
import re
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.errors import CRSError

from sharding.sources.cube_store import CubeGroup, Variable
from sharding.sources.raster import Grid

_SUFFIX: Final = r"(?:[-_]?(?:\d+m?|s1|s2|sar|optical))?$"
Y_DIM: Final = re.compile(rf"(?:y|lat|latitude|northing){_SUFFIX}", re.IGNORECASE)
X_DIM: Final = re.compile(rf"(?:x|lon|longitude|easting){_SUFFIX}", re.IGNORECASE)
"""Names of axes; a group of several resolutions has one of each, `y` and `y_20m`."""
BAND_DIMS: Final = ("band", "bands", "channel", "channels")
_GRID_VARIABLES: Final = ("spatial_ref", "crs", "transverse_mercator", "latitude_longitude")
_CRS_ATTRIBUTES: Final = ("crs_wkt", "spatial_ref", "proj:wkt2", "proj:code", "proj:epsg", "epsg", "epsg_code", "crs")
_UNITS: Final = {
    "nanosecond": 1e-9, "ns": 1e-9, "microsecond": 1e-6, "us": 1e-6, "millisecond": 1e-3, "ms": 1e-3, "second": 1.0,
    "sec": 1.0, "s": 1.0, "minute": 60.0, "min": 60.0, "hour": 3600.0, "h": 3600.0, "day": 86400.0, "d": 86400.0,
}  # fmt: skip
_CALENDARS: Final = ("standard", "gregorian", "proleptic_gregorian")
_EPSG: Final = re.compile(r"(?:\+init=)?epsg:+(\d{4,6})$", re.IGNORECASE)
_UNEVEN: Final = 0.01
"""Share of a pixel by which a coordinate may stray from an even grid."""


@dataclass(frozen=True, kw_only=True)
class CubeGrid:
    """The pixels of a variable, from north-west; `turned_y` where it stores the south first."""

    crs: str
    left: float
    top: float
    step_x: float
    step_y: float
    width: int
    height: int
    turned_x: bool = False
    turned_y: bool = False

    @property
    def right(self) -> float:
        """Eastern edge."""
        return self.left + self.step_x * self.width

    @property
    def bottom(self) -> float:
        """Southern edge."""
        return self.top - self.step_y * self.height

    def part(self, row: int, column: int, height: int, width: int) -> Grid:
        """A rectangle of it."""
        left, top = self.left + column * self.step_x, self.top - row * self.step_y
        transform = (self.step_x, 0.0, left, 0.0, -self.step_y, top)
        return Grid(crs=self.crs, transform=transform, height=height, width=width)


def grid_of(group: CubeGroup, variable: Variable, y_dim: str, x_dim: str) -> CubeGrid:
    """The grid of a variable by the coordinates of its dimensions."""
    x, y = _centres(group, variable, x_dim), _centres(group, variable, y_dim)
    step_x, step_y = abs(x[-1] - x[0]) / (len(x) - 1), abs(y[-1] - y[0]) / (len(y) - 1)
    return CubeGrid(
        crs=crs_of(group, variable),
        left=float(x.min() - step_x / 2),
        top=float(y.max() + step_y / 2),
        step_x=float(step_x),
        step_y=float(step_y),
        width=len(x),
        height=len(y),
        turned_x=bool(x[0] > x[-1]),
        turned_y=bool(y[0] < y[-1]),
    )


def crs_of(group: CubeGroup, variable: Variable) -> str:
    """`EPSG:…` or WKT; empty when the cube says none."""
    named = variable.attributes.get("grid_mapping") or group.attribute("grid_mapping")
    names = [*([named] if isinstance(named, str) else []), *_GRID_VARIABLES]
    mappings = [mapping for name in names if (mapping := group.find(name))]
    candidates = [mapping.attributes.get(attribute) for mapping in mappings for attribute in _CRS_ATTRIBUTES]
    gdal = variable.attributes.get("_CRS")
    candidates.append(gdal.get("wkt") if isinstance(gdal, dict) else None)
    candidates += [variable.attributes.get(attribute) for attribute in _CRS_ATTRIBUTES]
    candidates += [group.attribute(attribute) for attribute in _CRS_ATTRIBUTES]
    for candidate in candidates:
        parsed = _parse_crs(candidate) if isinstance(candidate, str | int) else ""
        if parsed:
            return parsed
    for mapping in mappings:  # some write the number itself
        if mapping.shape == () and mapping.dtype.kind in "iu":
            return _parse_crs(int(mapping.read()))
    return ""


def dates_of(variable: Variable) -> tuple[str, ...]:
    """The times of a time coordinate in UTC, ISO 8601; dates alone where none has a time of day."""
    values = np.atleast_1d(variable.read())
    if values.dtype.kind == "M":
        moments = [datetime.datetime.fromisoformat(str(value)) for value in values.astype("datetime64[s]")]
    elif values.dtype.kind in "iuf":
        moments = _counted(values, variable)
    else:
        texts = [value.decode() if isinstance(value, bytes) else str(value) for value in values.tolist()]
        moments = [datetime.datetime.fromisoformat(text) for text in texts]
    moments = [m.astimezone(datetime.UTC).replace(tzinfo=None) if m.tzinfo else m for m in moments]
    if all(moment.time() == datetime.time() for moment in moments):
        return tuple(moment.date().isoformat() for moment in moments)
    return tuple(moment.replace(microsecond=0).isoformat() for moment in moments)


def _centres(group: CubeGroup, variable: Variable, dim: str) -> npt.NDArray[np.float64]:
    """The coordinates along a dimension, as stored, which must be evenly spaced."""
    coordinate = group.find(dim)
    if coordinate is None or len(coordinate.shape) != 1 or coordinate.dtype.kind not in "iuf":
        raise ValueError(f"{variable.name} has no coordinates along {dim}; add a variable {dim}, the pixels' centres")
    values = coordinate.read().astype(np.float64)
    length = variable.shape[variable.dims.index(dim)]
    if len(values) != length:
        raise ValueError(f"{dim} has {len(values)} coordinates where {variable.name} has {length} pixels")
    if length < 2:
        raise ValueError(f"{dim} has one coordinate only, which does not tell the size of a pixel")
    step = (values[-1] - values[0]) / (length - 1)
    strayed = np.abs(values - (values[0] + step * np.arange(length))).max()
    if not strayed <= _UNEVEN * abs(step) or step == 0:  # NaN is no coordinate either
        raise ValueError(f"the coordinates along {dim} are not evenly spaced; resample the cube onto a grid")
    return values


def _counted(values: npt.NDArray[Any], variable: Variable) -> list[datetime.datetime]:
    """Times that are counted from a moment, `days since 1990-01-01`."""
    told = str(variable.attributes.get("units") or "")
    calendar = str(variable.attributes.get("calendar") or "standard").lower()
    unit, separator, start = told.partition(" since ")
    unit = unit.strip().lower()
    seconds = _UNITS.get(unit) or _UNITS.get(unit.removesuffix("s"))
    if not separator or seconds is None:
        raise ValueError(f"the units of {variable.name} are '{told}'; they look like 'days since 1990-01-01'")
    if calendar not in _CALENDARS:
        raise ValueError(f"the calendar of {variable.name} is '{calendar}'; dates of satellites are in 'standard'")
    if not np.isfinite(values.astype(np.float64)).all():
        raise ValueError(f"{variable.name} has times that are missing")
    # The conventions let months, days and hours have one digit.
    start = re.sub(r"(?<![\d.])(\d)(?!\d)", r"0\1", start.strip().removesuffix(" UTC"))
    try:
        origin = datetime.datetime.fromisoformat(start)
    except ValueError as error:
        raise ValueError(f"the units of {variable.name} are '{told}', which count from no date") from error
    if origin.tzinfo is not None:
        origin = origin.astimezone(datetime.UTC).replace(tzinfo=None)
    # Whole milliseconds: a float of days is not exact to the microsecond, and 9.999999 s would become 9 s.
    return [origin + datetime.timedelta(milliseconds=round(float(value) * seconds * 1000)) for value in values.tolist()]


@functools.lru_cache(maxsize=256)
def _parse_crs(told: str | int) -> str:
    epsg = _EPSG.match(told.strip()) if isinstance(told, str) else None
    try:
        if epsg:
            parsed = rasterio.crs.CRS.from_epsg(int(epsg[1]))
        elif isinstance(told, int) or told.strip().isdigit():
            parsed = rasterio.crs.CRS.from_epsg(int(told))
        else:
            parsed = rasterio.crs.CRS.from_string(told)
    except CRSError:
        return ""
    code = parsed.to_epsg()
    return f"EPSG:{code}" if code else str(parsed.to_wkt())
