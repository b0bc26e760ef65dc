"""Shares of clouds by the mask of a cube: Sen2Cor's classes (SCL), a mask, or s2cloudless's probability (CLP)."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sharding.sources.cube_layers import Layer
from sharding.sources.cube_tiles import Tiles

SCL_HIDDEN: Final = (0, 3, 8, 9, 10)
"""No data, shadow of clouds, clouds of medium and high probability, thin cirrus."""
_CLP_CLOUD: Final = 50
"""Per cent; 255, which means that nothing is known, counts as cloud."""
_MEANINGS: Final = ("cloud", "shadow", "cirrus", "no_data", "nodata", "missing", "fill")
_NOT: Final = ("cloud_free", "cloudfree", "no_cloud", "not_cloud", "clear")
_PLANES: Final = 16
_SHARE_DIGITS: Final = 4


def hidden(layer: Layer, plane: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where the ground is hidden by clouds or their shadow, or nothing was measured."""
    if layer.role == "SCL":
        return np.isin(plane, SCL_HIDDEN)
    if layer.role == "CLP":
        # A fraction where it is floating point; NaN is no number below it.
        limit = _CLP_CLOUD / 100 if plane.dtype.kind == "f" else _CLP_CLOUD
        return np.asarray(~(plane < limit), np.bool_)
    flags = _flags(layer)
    return np.isin(plane, flags) if flags is not None else np.asarray(plane != 0, np.bool_)


def cloud_share(layer: Layer, plane: npt.NDArray[Any]) -> float:
    """Share of hidden pixels."""
    return round(float(hidden(layer, plane).mean()), _SHARE_DIGITS)


def cloud_shares(layer: Layer, tiles: Tiles, dates: tuple[str, ...]) -> dict[str, npt.NDArray[np.float64]]:
    """For each date the share of clouds in each patch, (rows, columns); reads the mask once."""
    rows, columns = tiles.whole(layer.grid)
    part_rows, part_columns = tiles.part(layer.grid, 0, 0)
    height, width = part_rows.stop - part_rows.start, part_columns.stop - part_columns.start
    shares = {}
    for date, plane in _planes(layer, rows, columns, dates):
        blocks = hidden(layer, plane).reshape(tiles.rows, height, tiles.columns, width)
        shares[date] = np.round(blocks.mean(axis=(1, 3)), _SHARE_DIGITS)
    return shares


def _planes(
    layer: Layer, rows: slice, columns: slice, dates: tuple[str, ...]
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """As many planes at once as one piece of the store holds, so that none is read twice."""
    assert layer.time_dim is not None
    axis = layer.variable.dims.index(layer.time_dim)
    step = max(1, min(layer.variable.chunks[axis], _PLANES))
    wanted = set(dates)
    for start in range(0, len(layer.times), step):
        times = layer.times[start : start + step]
        if wanted.isdisjoint(times):
            continue
        window = {**layer.window(rows, columns, times[0]), layer.time_dim: slice(start, start + len(times))}
        block = np.moveaxis(layer.variable.read(window), _axis_left(layer), 0)
        for date, plane in zip(times, block, strict=True):
            if date in wanted:
                wanted.remove(date)
                yield date, layer.upright(plane)


def _axis_left(layer: Layer) -> int:
    """Where the time is among the dimensions that a window of slices leaves."""
    return [dim for dim in layer.variable.dims if dim not in layer.fixed].index(str(layer.time_dim))


def _flags(layer: Layer) -> list[float] | None:
    """The classes of a mask that hide the ground, where it names its classes as the CF conventions do."""
    meanings, values = (layer.variable.attributes.get(name) for name in ("flag_meanings", "flag_values"))
    if isinstance(values, str):
        values = [float(text) for text in values.replace(",", " ").split()]
    if not isinstance(meanings, str) or not isinstance(values, list | tuple):
        return None
    names = meanings.lower().split()
    return [
        value
        for name, value in zip(names, values, strict=False)
        if any(word in name for word in _MEANINGS) and not any(word in name for word in _NOT)
    ]
