"""The variables of a cube by what they show: bands of S1 and S2, a cloud mask, elevation, classes."""

import re
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sharding.sources.cube_axes import BAND_DIMS, X_DIM, Y_DIM, CubeGrid, dates_of, grid_of
from sharding.sources.cube_store import CubeGroup, Variable, Window
from sharding.sources.eo_bands import eo_band

MASKS: Final = {"scl": "SCL", "cloud_mask": "CLOUD", "cloudmask": "CLOUD", "clm": "CLOUD", "clp": "CLP"}
"""Names of cloud masks -> how they are read (`sharding.sources.cube_clouds`)."""
_STILL: Final = {
    "dem": "DEM", "elevation": "DEM", "cop-dem": "DEM", "cop_dem": "DEM",
    "label": "LABEL", "labels": "LABEL", "label_map": "LABEL", "lc": "LABEL",
}  # fmt: skip
_PREFIX: Final = re.compile(
    r"^(?:(?:s1|s2|s2a|s2b|sentinel[-_]?[12]|l1c|l2a|grd|rtc|sigma0|gamma0|sar|optical|band|boa|toa|reflectance|"
    r"backscatter)[-_. ])+",
    re.IGNORECASE,
)
"""What may stand before the name of a band: a mask or an angle of a band is no band."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """One band, mask or map: a plane for each time, or one for all times."""

    role: str
    """A band of S1 or S2; SCL, CLOUD or CLP; DEM or LABEL."""
    group: CubeGroup
    variable: Variable
    grid: CubeGrid
    y_dim: str
    x_dim: str
    time_dim: str | None
    times: tuple[str, ...]
    """ISO 8601; empty where there is one plane for all."""
    fixed: Window
    """Places along other dimensions."""

    def window(self, rows: slice, columns: slice, date: str | None = None) -> Window:
        """What is stored of a rectangle, counted from the north-west, at a date."""
        window: Window = {
            **self.fixed,
            self.y_dim: _turned(rows, self.grid.height) if self.grid.turned_y else rows,
            self.x_dim: _turned(columns, self.grid.width) if self.grid.turned_x else columns,
        }
        if self.time_dim is not None:
            assert date is not None
            window[self.time_dim] = self.times.index(date)
        return window

    def read(self, rows: slice, columns: slice, date: str | None = None) -> npt.NDArray[Any]:
        """The rectangle as an image, (rows, columns), the north above."""
        return self.upright(self.variable.read(self.window(rows, columns, date)))

    def upright(self, plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The last two axes as rows from the north and columns from the west."""
        if self.variable.dims.index(self.x_dim) < self.variable.dims.index(self.y_dim):
            plane = np.swapaxes(plane, -1, -2)
        if self.grid.turned_y:
            plane = plane[..., ::-1, :]
        return plane[..., ::-1] if self.grid.turned_x else plane


def layers_of(groups: list[CubeGroup]) -> list[Layer]:
    """All layers of a cube; ValueError when one of them cannot be understood."""
    layers = []
    for group in groups:
        for variable in group.variables.values():
            band_dim = next((dim for dim in variable.dims if dim.lower() in BAND_DIMS), None)
            if band_dim is not None and len(variable.dims) > 2:
                roles = _named_planes(group, variable, band_dim)
            else:
                roles = [(role_of(variable.name.rpartition("/")[2]), {})]
            layers += [_layer(group, variable, role, fixed) for role, fixed in roles if role and len(variable.dims) > 1]
    return layers


def role_of(name: str) -> str | None:
    """What a variable shows, by its name; None for everything that is not needed."""
    bare = _PREFIX.sub("", name)
    lower = bare.lower()
    if lower in MASKS or lower in _STILL:
        return MASKS.get(lower) or _STILL[lower]
    # What is left must be the name of the band itself, `B02` or `B02_10m`.
    return eo_band(bare) if re.fullmatch(r"[A-Za-z0-9]+(?:[-_](?:10|20|60)m)?", bare) else None


def _named_planes(group: CubeGroup, variable: Variable, band_dim: str) -> list[tuple[str | None, Window]]:
    """Bands that lie along a dimension, by its coordinate."""
    coordinate = group.find(band_dim)
    if coordinate is None:
        raise ValueError(
            f"{variable.name} has the dimension {band_dim} without names; add a variable {band_dim} of text"
        )
    names = [value.decode() if isinstance(value, bytes) else str(value) for value in coordinate.read().ravel().tolist()]
    return [(role_of(name.rstrip("\x00 ")), {band_dim: i}) for i, name in enumerate(names)]


def _layer(group: CubeGroup, variable: Variable, role: str, fixed: Window) -> Layer:
    dims = [dim for dim in variable.dims if dim not in fixed]
    y_dim = next((dim for dim in dims if Y_DIM.match(dim)), None)
    x_dim = next((dim for dim in dims if X_DIM.match(dim)), None)
    others = [dim for dim in dims if dim not in (y_dim, x_dim)]
    if y_dim is None or x_dim is None or len(others) > 1:
        raise ValueError(
            f"{variable.name} has the dimensions {', '.join(variable.dims)}; they are to be time, y and x, by name"
        )
    time_dim = others[0] if others else None
    return Layer(
        role=role,
        group=group,
        variable=variable,
        grid=grid_of(group, variable, y_dim, x_dim),
        y_dim=y_dim,
        x_dim=x_dim,
        time_dim=time_dim,
        times=_times(group, variable, time_dim) if time_dim else (),
        fixed=fixed,
    )


def _times(group: CubeGroup, variable: Variable, time_dim: str) -> tuple[str, ...]:
    coordinate = group.find(time_dim)
    if coordinate is None:
        raise ValueError(f"{variable.name} has the dimension {time_dim} without dates; add a variable {time_dim}")
    times = dates_of(coordinate)
    length = variable.shape[variable.dims.index(time_dim)]
    if len(times) != length:
        raise ValueError(f"{time_dim} has {len(times)} dates where {variable.name} has {length} planes")
    return times


def _turned(part: slice, length: int) -> slice:
    """The same pixels, counted from the other end."""
    start, stop, _ = part.indices(length)
    return slice(length - stop, length - start)
