"""Small cubes of S1 and S2 with pixels in plausible ranges, written as Zarr and as netCDF-4 by zarr and h5py alone."""

import datetime
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import rasterio
import zarr

from tests.trees import MEANS, smooth

CRS = "EPSG:32633"
WEST, NORTH = 500_000, 5_000_000
START = datetime.date(2020, 6, 1)
GSD = {"VV": 10, "VH": 10, "B02": 10, "B03": 10, "B04": 10, "B08": 10, "B05": 20, "B11": 20, "B01": 60, "SCL": 20}


@dataclass
class Content:
    """A variable to be: names of its dimensions, numbers, attributes."""

    dims: tuple[str, ...]
    data: np.ndarray
    attributes: dict[str, Any] = field(default_factory=dict)


Cube = dict[str, Content]


def plane(band: str, seed: int, side: int) -> np.ndarray:
    """One band at one date, as the satellite stores it."""
    rng = np.random.default_rng((seed, *band.encode()))
    shape = smooth(rng, side)
    if band in ("VV", "VH"):
        return (MEANS[band] + 4 * shape).astype(np.float32)
    if band == "SCL":
        return np.full((side, side), 4, np.uint8)
    return np.clip(MEANS[band] * (1 + 0.6 * shape), 1, 16_000).astype(np.uint16)


def time_axis(days: list[int], name: str = "time", seconds: int = 0) -> Content:
    """Days since `START`, counted in seconds."""
    return Content(
        (name,),
        np.array([day * 86_400 + seconds for day in days], np.int64),
        {"units": f"seconds since {START} 00:00:00", "calendar": "proleptic_gregorian"},
    )


def axes(side_m: int, gsd: int, suffix: str = "") -> Cube:
    """x and y of a square, the pixels' centres."""
    steps = np.arange(side_m // gsd) * gsd + gsd / 2
    return {f"x{suffix}": Content((f"x{suffix}",), WEST + steps), f"y{suffix}": Content((f"y{suffix}",), NORTH - steps)}


def crs_variable() -> Cube:
    wkt = rasterio.crs.CRS.from_string(CRS).to_wkt()
    return {"spatial_ref": Content((), np.int64(0), {"crs_wkt": wkt})}


def make_cube(
    bands: tuple[str, ...] = ("VV", "VH", "B02", "B08"),
    *,
    side_m: int = 960,
    s1_days: tuple[int, ...] = (0, 6, 12),
    s2_days: tuple[int, ...] = (1, 7, 30),
    gsd: int | None = None,
) -> Cube:
    """One group with both halves, all bands at one resolution, `time` of S2 and `time_s1`."""
    cube = {**axes(side_m, gsd or 10), **crs_variable()}
    cube["time"] = time_axis(list(s2_days), "time", 36_631)
    cube["time_s1"] = time_axis(list(s1_days), "time_s1", 61_243)
    for band in bands:
        days, time = (s1_days, "time_s1") if band in ("VV", "VH") else (s2_days, "time")
        planes = np.stack([plane(band, day, side_m // (gsd or 10)) for day in days])
        cube[band] = Content((time, "y", "x"), planes, {"grid_mapping": "spatial_ref"})
    return cube


def at_gsd(cube: Cube, gsd: int, *bands: str) -> Cube:
    """The same cube with some bands on a coarser grid of their own, `x20` and `y20`."""
    side_m = 10 * len(cube["x"].data)
    coarse = {**cube, **axes(side_m, gsd, str(gsd))}
    for band in bands:
        days = [int(second) // 86_400 for second in cube[cube[band].dims[0]].data]
        data = np.stack([plane(band, day, side_m // gsd) for day in days])
        coarse[band] = Content((cube[band].dims[0], f"y{gsd}", f"x{gsd}"), data, cube[band].attributes)
    return coarse


def write_zarr(
    path: Path, cube: Cube, *, version: int = 3, group: str = "", chunks: int = 32, consolidated: bool = False, **more
) -> None:
    """A store as xarray writes it; `attributes` of the group, `shards` of version 3."""
    attributes, shards = more.pop("attributes", {}), more.pop("shards", None)
    root = zarr.open_group(path, mode="a", zarr_format=version)
    target = root.require_group(group) if group else root
    target.attrs.update(attributes)
    for name, content in cube.items():
        shape = content.data.shape
        pieces = tuple(1 if i < len(shape) - 2 else min(chunks, n) for i, n in enumerate(shape))
        extra: dict[str, Any] = {"dimension_names": content.dims} if version == 3 else {}
        if shards and len(shape) == 3:
            extra["shards"] = (1, *(shards,) * 2)
        array = target.create_array(
            name, shape=shape, dtype=content.data.dtype, chunks=pieces or "auto", fill_value=0, **extra
        )
        if version == 2:
            array.attrs["_ARRAY_DIMENSIONS"] = list(content.dims)
        array.attrs.update(content.attributes)
        array[...] = content.data
    if consolidated:
        zarr.consolidate_metadata(path, zarr_format=version)


def zip_folder(folder: Path, path: Path) -> None:
    """A Zarr store as a ZIP of stored entries."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for entry in sorted(folder.rglob("*")):
            if entry.is_file():
                file.write(entry, str(entry.relative_to(folder)))


def write_netcdf(path: Path, cube: Cube, *, group: str = "", attributes: dict[str, Any] | None = None) -> None:
    """A netCDF-4 file: HDF5 with dimension scales."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "a") as file:
        target = file.require_group(group) if group else file
        target.attrs.update(attributes or {})
        for name, content in cube.items():
            pieces = (1, *(min(32, n) for n in content.data.shape[1:]))
            options = {"chunks": pieces, "compression": "gzip"} if content.data.ndim == 3 else {}
            data = content.data.astype("S") if content.data.dtype.kind == "U" else content.data
            target.create_dataset(name, data=data, **options).attrs.update(content.attributes)
        for name, content in cube.items():
            if content.dims == (name,):
                target[name].make_scale(name)
        for name, content in cube.items():
            for i, dim in enumerate(content.dims):
                if content.dims != (name,):
                    target[name].dims[i].attach_scale(target[dim])
