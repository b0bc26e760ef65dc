"""One patch of a cube at two dates: what is read of the store, and the arrays that it becomes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from sharding.bands import ARRAY_BANDS, S1_BANDS, S2_BANDS
from sharding.sources.assemble import arrays_of, rider
from sharding.sources.base import StoredArray
from sharding.sources.cube_clouds import cloud_share
from sharding.sources.cube_layers import Layer
from sharding.sources.cube_radiometry import nodata_of
from sharding.sources.cube_series import Series
from sharding.sources.cube_store import Variable, Window
from sharding.sources.eo_bands import own_gsd_m
from sharding.sources.raster import Raster

_STILL: Final = {"DEM": ("dem", "m"), "LABEL": ("label_map", "class")}
"""Role -> array and units."""


@dataclass(frozen=True, kw_only=True)
class Spot:
    """A patch at two dates."""

    row: int
    column: int
    s1_date: str
    s2_date: str


def reads_of(series: Series, spot: Spot) -> Iterator[tuple[Variable, Window]]:
    """Everything that `sample_of` reads."""
    for layer, date in _layers(series, spot).values():
        yield layer.variable, layer.window(*series.tiles.part(layer.grid, spot.row, spot.column), date)


def arrays_at(series: Series, spot: Spot) -> tuple[dict[str, StoredArray], dict[str, Any]]:
    """The arrays in storage order, and facts about them; PairError when the pixels are not as they should be."""
    rasters = {role: _raster(series, spot, *place) for role, place in _layers(series, spot).items()}
    bands: dict[str, Raster] = {band: rasters[band] for band in (*S1_BANDS, *S2_BANDS) if band in rasters}
    for band in ("VV", "VH"):
        if band in bands:
            bands[band] = replace(bands[band], data=series.coding.kept(bands[band].data))
    arrays = arrays_of(bands, replace(series.radiometry, s2_offset=series.offsets[spot.s2_date]))
    facts: dict[str, Any] = {"row": spot.row, "column": spot.column}
    if series.coding.formula:
        facts["s1_decoded_from"] = series.coding.formula
    coarser = [b for array in arrays.values() for b in array.bands if b in series.s2 and array.gsd_m < own_gsd_m(b)]
    if coarser:
        facts["resampled"] = coarser
    if series.mask is not None:
        mask = rasters[series.mask.role]
        facts["cloud_share"] = cloud_share(series.mask, mask.data[0])
        if series.mask_rides:
            arrays["cloud_mask"] = _rider("cloud_mask", "class", mask, series.mask)
    for role, layer in series.still.items():
        arrays[_STILL[role][0]] = _rider(*_STILL[role], rasters[role], layer)
    return {name: arrays[name] for name in ARRAY_BANDS if name in arrays}, facts


def _layers(series: Series, spot: Spot) -> dict[str, tuple[Layer, str | None]]:
    """What a sample is made of, by role, each with the date of its plane."""
    found: dict[str, tuple[Layer, str | None]] = {}
    found |= {band: (layer, spot.s1_date) for band, layer in series.stack(spot.s1_date).bands.items()}
    found |= {band: (layer, spot.s2_date) for band, layer in series.s2.items()}
    if series.mask is not None:
        found[series.mask.role] = (series.mask, spot.s2_date)
    for role, layer in series.still.items():
        found[role] = (
            layer,
            (spot.s2_date if spot.s2_date in layer.times else layer.times[0]) if layer.times else None,
        )
    return found


def _raster(series: Series, spot: Spot, layer: Layer, date: str | None) -> Raster:
    rows, columns = series.tiles.part(layer.grid, spot.row, spot.column)
    plane = layer.read(rows, columns, date)
    return Raster(
        path=layer.variable.path or ".", data=plane[None], grid=series.tiles.grid(layer.grid, spot.row, spot.column)
    )


def _rider(array: str, units: str, raster: Raster, layer: Layer) -> StoredArray:
    [band] = ARRAY_BANDS[array]
    data = raster.data.astype(np.uint8) if raster.data.dtype.kind == "b" else raster.data
    return rider(array, {band: replace(raster, data=data)}, units=units, nodata=nodata_of(layer))
