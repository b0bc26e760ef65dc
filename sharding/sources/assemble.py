"""Rasters of single bands -> the arrays of a sample, with every check that needs pixels or grids."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sharding.bands import ARRAY_BANDS, ARRAY_GSD_M
from sharding.sources.base import (
    CONSTANT,
    GRIDS,
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


def arrays_of(
    rasters: dict[str, Raster], *, s1_units: str, s2_offset: float = 0.0, pixels_10m: int | None = None
) -> dict[str, StoredArray]:
    """The arrays made of one raster a band, checked; `pixels_10m` is the side that the source promises at 10 m."""
    _same_footprint(rasters)
    arrays: dict[str, StoredArray] = {}
    for name, order in ARRAY_BANDS.items():
        members = [(band, rasters[band]) for band in order if band in rasters]
        if not members:
            continue
        grid = members[0][1].grid
        for band, raster in members:
            if pixels_10m is not None:
                side = pixels_10m * 10 // ARRAY_GSD_M[name]
                if raster.data.shape[1:] != (side, side):
                    raise PairError(WRONG_SIZE, raster.path, f"{_size(raster)} pixels where {side}x{side} belong")
            elif raster.data.shape != members[0][1].data.shape:
                raise PairError(
                    WRONG_SIZE,
                    raster.path,
                    f"{band} has {_size(raster)} pixels, {members[0][0]} of the same resolution has "
                    f"{_size(members[0][1])}",
                )
        planes = [_as_s1(r) if name == "s1" else _as_s2(r) for _, r in members]
        data = np.ascontiguousarray(np.concatenate(planes))
        if name == "s1":
            _check_s1(data, [band for band, _ in members], members[0][1].path, s1_units)
        arrays[name] = StoredArray(
            data=data,
            bands=tuple(band for band, _ in members),
            units=s1_units if name == "s1" else "DN",
            gsd_m=grid.gsd_m or float(ARRAY_GSD_M[name]),
            transform=grid.transform,
            radiometric_offset=0.0 if name == "s1" else s2_offset,
        )
    return arrays


def split_bands(raster: Raster, bands: tuple[str, ...]) -> dict[str, Raster]:
    """The planes of a raster of several bands, each as a raster of its own."""
    return {b: Raster(path=raster.path, data=raster.data[i : i + 1], grid=raster.grid) for i, b in enumerate(bands)}


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


def _as_s1(raster: Raster) -> npt.NDArray[Any]:
    if raster.data.dtype not in (np.float32, np.float64):
        raise PairError(WRONG_TYPE, raster.path, f"S1 is {raster.data.dtype}, float32 was expected")
    return raster.data.astype(np.float32, copy=False)


def _as_s2(raster: Raster) -> npt.NDArray[Any]:
    data = raster.data
    if data.dtype == np.uint16:
        return data
    if data.dtype.kind not in "iu":
        raise PairError(WRONG_TYPE, raster.path, f"S2 is {data.dtype}, uint16 digital numbers were expected")
    low, high = int(data.min()), int(data.max())
    if low < _UINT16[0] or high > _UINT16[1]:
        raise PairError(WRONG_TYPE, raster.path, f"S2 is {data.dtype} from {low} to {high}, which uint16 cannot hold")
    return data.astype(np.uint16)


def _check_s1(data: npt.NDArray[Any], bands: list[str], path: str, units: str) -> None:
    for band, plane in zip(bands, data, strict=True):
        if not np.isfinite(plane).all():
            count = int((~np.isfinite(plane)).sum())
            raise PairError(NOT_FINITE, path, f"{band} has {count} pixels that are NaN or infinite; leave the pair out")
        if plane.min() == plane.max():
            raise PairError(CONSTANT, path, f"{band} is {plane.flat[0]:g} everywhere, so it holds no measurement")
    low, high = float(data.min()), float(data.max())
    if units == "dB":
        if low < DB_RANGE[0] or high > DB_RANGE[1]:
            raise PairError(PHYSICS, path, f"S1 runs from {low:g} to {high:g} dB, backscatter lies in {DB_RANGE}")
        if low >= 0:
            raise PairError(PHYSICS, path, f"S1 is never below {low:g} dB: it looks linear, say so in its units")
    elif low < 0 or high > 10 ** (DB_RANGE[1] / 10):
        raise PairError(PHYSICS, path, f"S1 runs from {low:g} to {high:g}: it is no linear power, is it in dB?")
