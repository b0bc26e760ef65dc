"""GeoTIFFs, read whole, with their grid; every failure names the file."""

import contextlib
import functools
import math
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import rasterio
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile

from sharding.errors import DataError
from sharding.sources.band_names import band_name
from sharding.sources.base import BANDS, CORRUPT, MISSING_BAND, PairError
from sharding.sources.tree import Tree

# Without it GDAL lists each patch's folder in search of side files, once a raster.
_GDAL = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where the pixels of a raster lie; an empty `crs` when it says nothing."""

    crs: str
    transform: tuple[float, ...] | None
    height: int
    width: int

    @property
    def gsd_m(self) -> float | None:
        """Side of a pixel in metres, when the CRS is in metres."""
        if self.transform is None or not _is_metric(self.crs):
            return None
        return abs(self.transform[0])

    @property
    def bounds(self) -> tuple[float, ...] | None:
        """Left, top, right, bottom (of the corners, when rotated)."""
        if self.transform is None:
            return None
        a, b, c, d, e, f = self.transform
        return (c, f, a * self.width + b * self.height + c, d * self.width + e * self.height + f)

    @property
    def centre(self) -> tuple[str, float, float] | None:
        """CRS and the middle in it; None without one."""
        if not self.crs or self.transform is None:
            return None
        a, b, c, d, e, f = self.transform
        row, column = self.height / 2, self.width / 2
        return self.crs, a * column + b * row + c, d * column + e * row + f


@dataclass(frozen=True, kw_only=True)
class Raster:
    """The pixels of a file, (bands, height, width), and where they lie."""

    path: str
    data: npt.NDArray[Any]
    grid: Grid


def read_raster(tree: Tree, path: str, bands: tuple[str, ...]) -> Raster:
    """The GeoTIFF at `path`, which is to hold exactly `bands` in this order; PairError otherwise."""
    with _opened(tree, path) as dataset:
        grid = _grid(dataset, path, bands)
        return Raster(path=path, data=dataset.read(), grid=grid)


def read_grid(tree: Tree, path: str, bands: tuple[str, ...]) -> Grid:
    """The same from the header alone: where the pixels lie, without reading one."""
    with _opened(tree, path) as dataset:
        return _grid(dataset, path, bands)


_thread = threading.local()


def _enter_settings() -> None:
    """GDAL's settings, entered once a thread and never left: each time would cost a tenth of reading a small raster."""
    if not getattr(_thread, "entered", False):
        rasterio.Env(**_GDAL).__enter__()
        _thread.entered = True


@contextlib.contextmanager
def _opened(tree: Tree, path: str) -> Iterator[Any]:
    local = tree.local(path)
    _enter_settings()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # the grids are compared by our own rules
            if local is not None:
                if not local.is_file():
                    raise PairError(MISSING_BAND, path, "the file is missing; fetch it again")
                with rasterio.open(local) as dataset:
                    yield dataset
            else:
                with MemoryFile(tree.read(path)) as memory, memory.open() as dataset:
                    yield dataset
    except RasterioError as error:
        raise PairError(CORRUPT, path, f"it cannot be read as a GeoTIFF ({error}); fetch it again") from error
    except PairError:
        raise
    except DataError as error:
        raise PairError(MISSING_BAND, path, f"{error}; fetch it again") from error


def _grid(dataset: Any, path: str, bands: tuple[str, ...]) -> Grid:
    if dataset.count != len(bands):
        raise PairError(BANDS, path, f"it has {dataset.count} bands where {', '.join(bands)} were declared")
    named = [band_name(text) for text in dataset.descriptions]
    if dataset.count == 1 and named[0] is None:
        named = [band_name(path.rpartition("/")[2].rpartition(".")[0])]
    if any(own is not None and own != declared for own, declared in zip(named, bands, strict=True)):
        found = ", ".join(own or "?" for own in named)
        raise PairError(BANDS, path, f"it names its bands {found} where {', '.join(bands)} were declared")
    crs = _crs_name(dataset.crs.to_wkt()) if dataset.crs else ""
    transform = None if dataset.transform.is_identity else tuple(dataset.transform)[:6]
    return Grid(crs=crs, transform=transform, height=dataset.height, width=dataset.width)


@functools.lru_cache(maxsize=256)
def _crs_name(wkt: str) -> str:
    epsg = rasterio.crs.CRS.from_wkt(wkt).to_epsg()
    return f"EPSG:{epsg}" if epsg else wkt


@functools.lru_cache(maxsize=256)
def _is_metric(crs: str) -> bool:
    parsed = rasterio.crs.CRS.from_user_input(crs) if crs else None
    return bool(parsed and parsed.is_projected and parsed.linear_units_factor[1] == 1.0)


def to_degrees(crs: str, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Longitude and latitude of `points`, rounded to 1e-7 degrees (1 cm) so that every machine gets the same.

    ValueError when the CRS is unknown, or when any point lies outside of it.
    """
    from rasterio._err import CPLE_BaseError  # what PROJ says reaches us in no public class
    from rasterio.warp import transform

    try:
        lons, lats = transform(crs, "EPSG:4326", [x for x, _ in points], [y for _, y in points])
    except (CRSError, CPLE_BaseError) as error:
        raise ValueError(str(error)) from error
    if not all(math.isfinite(value) for value in (*lons, *lats)):
        raise ValueError("coordinates that are not finite")
    return [(round(lon, 7), round(lat, 7)) for lon, lat in zip(lons, lats, strict=True)]
