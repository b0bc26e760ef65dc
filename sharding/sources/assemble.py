"""Rasters of single bands -> the arrays of a sample, with every check that needs pixels or grids."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sharding.bands import ARRAY_BANDS, ARRAY_GSD_M, RIDERS, S1_BANDS
from sharding.sources.base import (
    CONSTANT,
    GRIDS,
    NO_DATA,
    NOT_FINITE,
    PHYSICS,
    WRONG_SIZE,
    WRONG_TYPE,
    PairError,
    StoredArray,
)
from sharding.sources.raster import Grid, Raster

DB_RANGE: Final = (-100.0, 60.0)
"""What backscatter can be in dB; BigEarthNet spans -53.4 to +23.6, noise removal reaches lower over calm water."""
_UINT16: Final = (0, 65535)


@dataclass(frozen=True, kw_only=True)
class Radiometry:
    """What the numbers of a sample mean."""

    s1_units: str = "dB"
    """`dB` or `linear`."""
    s1_scale: float = 1.0
    s1_nodata: float | None = None
    s2_units: str = "DN"
    """`DN` (stored as uint16) or `reflectance` (float32)."""
    s2_offset: float = 0.0
    """Added to S2's stored numbers: -1000 where processing baseline 04.00 has raised them."""
    s2_nodata: float | None = None


def arrays_of(
    rasters: dict[str, Raster],
    radiometry: Radiometry,
    *,
    pixels_10m: int | None = None,
    same_grid: bool = True,
) -> dict[str, StoredArray]:
    """The arrays made of one raster a band of S1 and S2, checked, in storage order.

    `pixels_10m` is the side that the source promises at 10 m. `same_grid=False` takes the halves as aligned pixel by
    pixel although their coordinates disagree: for archives known to be so.
    """
    if same_grid:
        _same_footprint(rasters)
    arrays: dict[str, StoredArray] = {}
    for name, order in ARRAY_BANDS.items():
        members = [(band, rasters[band]) for band in order if band in rasters]
        if members:
            arrays[name] = _array(name, members, radiometry, pixels_10m)
    return arrays


def rider(name: str, rasters: dict[str, Raster], *, units: str, nodata: float | None = None) -> StoredArray:
    """An array that rides along, in the type in which it came; `name` and bands as in `sharding.bands`."""
    assert name in RIDERS, name
    members = [(band, rasters[band]) for band in ARRAY_BANDS[name] if band in rasters]
    _same_size(members, None, name)
    grid = members[0][1].grid
    return StoredArray(
        data=np.ascontiguousarray(np.concatenate([raster.data for _, raster in members])),
        bands=tuple(band for band, _ in members),
        units=units,
        gsd_m=_rounded_gsd(grid, name),
        transform=grid.transform,
        nodata=nodata,
    )


def split_bands(raster: Raster, bands: tuple[str, ...]) -> dict[str, Raster]:
    """The planes of a raster of several bands, each as a raster of its own."""
    return {b: Raster(path=raster.path, data=raster.data[i : i + 1], grid=raster.grid) for i, b in enumerate(bands)}


def _array(name: str, members: list[tuple[str, Raster]], radiometry: Radiometry, pixels_10m: int | None) -> StoredArray:
    _same_size(members, pixels_10m, name)
    is_s1 = name == "s1"
    nodata = radiometry.s1_nodata if is_s1 else radiometry.s2_nodata
    planes = [_as_s1(r, radiometry) if is_s1 else _as_s2(r, radiometry) for _, r in members]
    data = np.ascontiguousarray(np.concatenate(planes)) if len(planes) > 1 else np.ascontiguousarray(planes[0])
    bands = tuple(band for band, _ in members)
    paths = [raster.path for _, raster in members]
    _refuse_empty(data, bands, paths, nodata)
    if is_s1:
        _check_s1(data, bands, paths, radiometry)
    grid = members[0][1].grid
    return StoredArray(
        data=data,
        bands=bands,
        units=radiometry.s1_units if is_s1 else radiometry.s2_units,
        gsd_m=_rounded_gsd(grid, name),
        transform=grid.transform,
        scale=radiometry.s1_scale if is_s1 else 1.0,
        radiometric_offset=0.0 if is_s1 else radiometry.s2_offset,
        nodata=nodata,
    )


def _rounded_gsd(grid: Grid, name: str) -> float:
    """To a millimetre: what a chain of reprojections makes of 10 m is 9.9999997 in one file and 10 in the next."""
    return round(grid.gsd_m, 3) if grid.gsd_m else float(ARRAY_GSD_M[name])


def _same_size(members: list[tuple[str, Raster]], pixels_10m: int | None, name: str) -> None:
    for band, raster in members:
        if pixels_10m is not None:
            side = pixels_10m * 10 // ARRAY_GSD_M[name]
            if raster.data.shape[1:] != (side, side):
                raise PairError(WRONG_SIZE, raster.path, f"{_size(raster)} pixels where {side}x{side} belong")
        elif raster.data.shape != members[0][1].data.shape:
            raise PairError(
                WRONG_SIZE,
                raster.path,
                f"{band} has {_size(raster)} pixels, {members[0][0]} of the same resolution has {_size(members[0][1])}",
            )


def _size(raster: Raster) -> str:
    return f"{raster.data.shape[1]}x{raster.data.shape[2]}"


def _same_footprint(rasters: dict[str, Raster]) -> None:
    first_band, first = next(iter(rasters.items()))
    for band, raster in rasters.items():
        grid, reference = raster.grid, first.grid
        if grid.crs != reference.crs:
            raise PairError(
                GRIDS, raster.path, f"{band} is in {_crs(grid)}, {first_band} in {_crs(reference)}; no one place"
            )
        if not _same_bounds(grid, reference):
            raise PairError(
                GRIDS,
                raster.path,
                f"{band} covers {_bounds(grid)}, {first_band} ({first.path}) covers {_bounds(reference)}; "
                "resample both onto one grid first",
            )


def _same_bounds(grid: Grid, reference: Grid) -> bool:
    if grid.bounds is None or reference.bounds is None or grid.transform is None or reference.transform is None:
        # Without coordinates the arrays themselves must say it: one footprint, so one ratio on both axes.
        unplaced = grid.bounds is None and reference.bounds is None
        return unplaced and grid.height * reference.width == grid.width * reference.height
    tolerance = 0.01 * min(abs(grid.transform[0]), abs(reference.transform[0]))
    return all(abs(a - b) <= tolerance for a, b in zip(grid.bounds, reference.bounds, strict=True))


def _crs(grid: Grid) -> str:
    return grid.crs if len(grid.crs) < 40 else f"{grid.crs[:40]}…" if grid.crs else "no CRS"


def _bounds(grid: Grid) -> str:
    if grid.bounds is None:
        return f"{grid.height}x{grid.width} pixels without coordinates"
    return " ".join(f"{value:.10g}" for value in grid.bounds)


def _as_s1(raster: Raster, radiometry: Radiometry) -> npt.NDArray[Any]:
    data = raster.data
    if data.dtype in (np.float32, np.float16):
        return data
    if data.dtype == np.float64:
        return data.astype(np.float32)
    if radiometry.s1_scale != 1.0 and data.dtype.kind in "iu":
        return data  # scaled integers stay as they came
    raise PairError(WRONG_TYPE, raster.path, f"S1 is {data.dtype}, float32 was expected")


def _as_s2(raster: Raster, radiometry: Radiometry) -> npt.NDArray[Any]:
    data = raster.data
    if radiometry.s2_units == "reflectance":
        if data.dtype.kind != "f":
            raise PairError(WRONG_TYPE, raster.path, f"S2 is {data.dtype}; reflectance is floating point")
        return data.astype(np.float32, copy=False)
    if data.dtype == np.uint16:
        return data
    if data.dtype.kind not in "iu":
        raise PairError(WRONG_TYPE, raster.path, f"S2 is {data.dtype}, uint16 digital numbers were expected")
    low, high = int(data.min()), int(data.max())
    if low < _UINT16[0] or high > _UINT16[1]:
        raise PairError(WRONG_TYPE, raster.path, f"S2 is {data.dtype} from {low} to {high}, which uint16 cannot hold")
    return data.astype(np.uint16)


def _refuse_empty(data: npt.NDArray[Any], bands: tuple[str, ...], paths: list[str], nodata: float | None) -> None:
    """Nothing was measured where a band is nodata throughout; ESA keeps the digital number 0 for that.

    In S2, NaN and infinity are no data either; in S1 `_check_s1` refuses each of them.
    """
    missing = 0 if nodata is None and data.dtype.kind == "u" else nodata
    for band, path, plane in zip(bands, paths, data, strict=True):
        first = plane.flat[0]
        if missing is not None and first == missing and (plane == missing).all():
            raise PairError(NO_DATA, path, f"{band} is nodata ({missing:g}) everywhere; leave the pair out")
        if data.dtype.kind == "f" and band not in S1_BANDS and (first == missing or not np.isfinite(first)):
            measured = np.isfinite(plane) if missing is None else np.isfinite(plane) & (plane != missing)
            if not measured.any():
                raise PairError(NO_DATA, path, f"{band} has no finite number anywhere; leave the pair out")


def _check_s1(data: npt.NDArray[Any], bands: tuple[str, ...], paths: list[str], radiometry: Radiometry) -> None:
    nodata = radiometry.s1_nodata
    lows, highs = [], []
    for band, path, plane in zip(bands, paths, data, strict=True):
        measured = plane if nodata is None else plane[plane != nodata]
        low, high = float(measured.min()), float(measured.max())  # NaN wins in both
        if not np.isfinite(low) or not np.isfinite(high):
            count = int((~np.isfinite(measured)).sum())
            raise PairError(NOT_FINITE, path, f"{band} has {count} pixels that are NaN or infinite; leave the pair out")
        if low == high:
            raise PairError(CONSTANT, path, f"{band} is {low:g} everywhere, so it holds no measurement")
        lows.append(low * radiometry.s1_scale)
        highs.append(high * radiometry.s1_scale)
    low, high = min(lows), max(highs)
    path = paths[lows.index(low) if low < DB_RANGE[0] else highs.index(high)]
    if radiometry.s1_units == "dB":
        if low < DB_RANGE[0] or high > DB_RANGE[1]:
            raise PairError(PHYSICS, path, f"S1 runs from {low:g} to {high:g} dB, backscatter lies in {DB_RANGE}")
        if low >= 0:
            raise PairError(PHYSICS, path, f"S1 is never below {low:g} dB: it looks linear, say so in its units")
    elif low < 0 or high > 10 ** (DB_RANGE[1] / 10):
        raise PairError(PHYSICS, path, f"S1 runs from {low:g} to {high:g}: it is no linear power, is it in dB?")
