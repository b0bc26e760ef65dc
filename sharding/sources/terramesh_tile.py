"""One tile of TerraMesh in one modality: the Zarr group in a ZIP that is a member of a tar.

    bands (time=1, band, y, x)   band (names), center_lon, center_lat, crs (EPSG), time (ns), x, y, cloud_mask (S2)

Of these only `bands`, `center_lon` and `center_lat` must be there. Every band is stored at 10 m.
"""

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rasterio.errors import CRSError

from sharding.bands import S1_BANDS, S2_BANDS
from sharding.sources.base import BANDS, METADATA, WRONG_SIZE, PairError
from sharding.sources.raster import Grid, Raster
from sharding.sources.zarr_zip import ZippedGroup

GSD_M: Final = 10.0
MODALITY_BANDS: Final[dict[str, tuple[str, ...]]] = {
    "S1RTC": S1_BANDS,
    "S1GRD": S1_BANDS,
    "S2L1C": S2_BANDS,
    "S2L2A": tuple(band for band in S2_BANDS if band != "B10"),
    "DEM": ("DEM",),
    "NDVI": ("NDVI",),
    "LULC": ("LULC",),
}
"""In the order in which they are stored where a tile does not name them."""
_UNITS_S: Final = {
    "nanoseconds": 1e-9,
    "microseconds": 1e-6,
    "milliseconds": 1e-3,
    "seconds": 1.0,
    "minutes": 60.0,
    "hours": 3600.0,
    "days": 86400.0,
}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST: Final = datetime(2014, 4, 3, tzinfo=UTC)
"""Launch of Sentinel-1A."""
_LAST: Final = datetime(2100, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Tile:
    """What is in one member."""

    path: str
    rasters: dict[str, Raster]
    """By band."""
    cloud_mask: Raster | None
    lon: float
    lat: float
    date: str
    """Of the acquisition, ISO 8601 UTC; empty when the tile has none."""


def decode_tile(content: bytes, path: str, modality: str) -> Tile:
    """The tile in `content`, exactly as stored; PairError when it is not what `modality` should be."""
    group = ZippedGroup(content, path)
    data = group.array("bands")
    bands = _bands(group, modality)
    if data.ndim != 4 or data.shape[:2] != (1, len(bands)):
        raise PairError(
            WRONG_SIZE, path, f"its bands have the shape {data.shape}, (1, {len(bands)}, height, width) was expected"
        )
    lon, lat = _place(group)
    height, width = data.shape[2:]
    grid = _grid(group, lon, lat, height, width)
    native = data.astype(data.dtype.newbyteorder("="), copy=False)
    return Tile(
        path=path,
        rasters={band: Raster(path=path, data=native[:, i], grid=grid) for i, band in enumerate(bands)},
        cloud_mask=_cloud_mask(group, grid),
        lon=lon,
        lat=lat,
        date=_date(group),
    )


def decode_place(content: bytes, path: str) -> tuple[float, float]:
    """Longitude and latitude of the tile's centre."""
    return _place(ZippedGroup(content, path))


def _bands(group: ZippedGroup, modality: str) -> tuple[str, ...]:
    expected = MODALITY_BANDS[modality]
    if len(expected) == 1 or "band" not in group:
        return expected
    named = tuple(str(name).upper() for name in group.array("band").reshape(-1))
    if set(named) != set(expected) or len(named) != len(expected):
        raise PairError(
            BANDS, group.path, f"it names its bands {', '.join(named)} where {', '.join(expected)} are {modality}"
        )
    return named


def _place(group: ZippedGroup) -> tuple[float, float]:
    lon, lat = (float(group.value(name)) for name in ("center_lon", "center_lat"))
    if not (abs(lon) <= 180 and abs(lat) <= 90):
        raise PairError(METADATA, group.path, f"its centre is {lon} E, {lat} N, which is nowhere; fetch it again")
    return lon, lat


def _cloud_mask(group: ZippedGroup, grid: Grid) -> Raster | None:
    if "cloud_mask" not in group:
        return None
    mask = group.array("cloud_mask")
    if mask.shape[-2:] != (grid.height, grid.width) or mask.size != grid.height * grid.width:
        raise PairError(
            WRONG_SIZE,
            group.path,
            f"its cloud mask has the shape {mask.shape}, its bands are {grid.height}x{grid.width}",
        )
    return Raster(path=group.path, data=mask.reshape(1, grid.height, grid.width), grid=grid)


def _grid(group: ZippedGroup, lon: float, lat: float, height: int, width: int) -> Grid:
    """By the coordinates of the pixels where the tile has them, else around its centre; nowhere without a CRS."""
    crs = _crs(group)
    if not crs:
        return Grid(crs="", transform=None, height=height, width=width)
    if "x" in group and "y" in group:
        (left, step_x), (top, step_y) = _axis(group, "x", width), _axis(group, "y", height)
        return Grid(crs=crs, transform=(step_x, 0.0, left, 0.0, step_y, top), height=height, width=width)
    x, y = _projected(crs, lon, lat, group.path)
    # To a millimetre, so that every machine and every modality gets the same.
    left, top = round(x - GSD_M * width / 2, 3), round(y + GSD_M * height / 2, 3)
    return Grid(crs=crs, transform=(GSD_M, 0.0, left, 0.0, -GSD_M, top), height=height, width=width)


def _crs(group: ZippedGroup) -> str:
    if "crs" not in group:
        return ""
    value = group.value("crs")
    try:
        code = int(str(value).upper().removeprefix("EPSG:"))
    except ValueError as error:
        raise PairError(METADATA, group.path, f"its crs is '{value}', an EPSG code was expected") from error
    return f"EPSG:{code}" if code > 0 else ""


def _axis(group: ZippedGroup, name: str, length: int) -> tuple[float, float]:
    """Where the first pixel begins, and the step, of coordinates that are those of the pixels' centres."""
    values: npt.NDArray[Any] = group.array(name).reshape(-1).astype(np.float64)
    if len(values) != length or length < 2:
        raise PairError(WRONG_SIZE, group.path, f"it has {len(values)} coordinates {name} for {length} pixels")
    step = float(values[-1] - values[0]) / (length - 1)
    if not math.isfinite(step) or not np.allclose(np.diff(values), step, rtol=0, atol=0.01 * abs(step)):
        raise PairError(METADATA, group.path, f"its coordinates {name} are not evenly spaced; fetch it again")
    return float(values[0]) - step / 2, step


def _projected(crs: str, lon: float, lat: float, path: str) -> tuple[float, float]:
    from rasterio._err import CPLE_BaseError  # what PROJ says reaches us in no public class
    from rasterio.warp import transform

    try:
        (x,), (y,) = transform("EPSG:4326", crs, [lon], [lat])
    except (CRSError, CPLE_BaseError) as error:
        raise PairError(METADATA, path, f"its centre {lon} E, {lat} N is not in {crs} ({error})") from error
    if not (math.isfinite(x) and math.isfinite(y)):
        raise PairError(METADATA, path, f"its centre {lon} E, {lat} N is not in {crs}")
    return float(x), float(y)


def _date(group: ZippedGroup) -> str:
    """Nanoseconds since 1970 unless the tile says otherwise; 0 means that there is no date."""
    if "time" not in group:
        return ""
    array = group.array("time").reshape(-1)
    if array.dtype.kind == "M":
        array = array.astype("datetime64[ns]").astype(np.int64)
    if array.size != 1 or array.dtype.kind not in "iuf":
        raise PairError(METADATA, group.path, f"it has {array.size} times of the type {array.dtype}, one was expected")
    units = str(group.attributes("time").get("units", "nanoseconds since 1970-01-01"))
    unit, _, since = units.partition(" since ")
    try:
        start = datetime.fromisoformat(since.strip())
        start = start.replace(tzinfo=UTC) if start.tzinfo is None else start
        seconds = float(array[0]) * _UNITS_S[unit.strip()]
        moment = start + timedelta(seconds=round(seconds))
    except (KeyError, ValueError, OverflowError) as error:
        raise PairError(METADATA, group.path, f"its time is {array[0]} {units}, which is no date") from error
    if moment == _EPOCH:
        return ""
    if not _FIRST <= moment < _LAST:
        raise PairError(METADATA, group.path, f"its time is {moment.isoformat()}, before Sentinel-1 or far ahead")
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat()
