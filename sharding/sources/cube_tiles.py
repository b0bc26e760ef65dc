"""Cutting a cube into patches: squares of the ground that all of its grids can cut out along their pixels."""

import math
from dataclasses import dataclass
from typing import Final

from sharding.errors import ConfigError
from sharding.sources.cube_axes import CubeGrid
from sharding.sources.raster import Grid

_TOLERANCE: Final = 0.01
"""Of a pixel, as for GeoTIFFs."""
_BASE_M: Final = 10


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Patches in rows from the north and columns from the west; coordinates in the units of the CRS."""

    crs: str
    left: float
    top: float
    side: float
    rows: int
    columns: int
    num_dropped: int
    """Patches along the borders that are not whole."""
    pixels_10m: tuple[float, float]
    """Height and width of what all grids cover, in pixels of 10 m."""

    def centre(self, row: int, column: int) -> tuple[float, float]:
        """The middle of a patch."""
        return self.left + (column + 0.5) * self.side, self.top - (row + 0.5) * self.side

    def part(self, grid: CubeGrid, row: int, column: int) -> tuple[slice, slice]:
        """Rows and columns of `grid` that are the patch."""
        height, width = round(self.side / grid.step_y), round(self.side / grid.step_x)
        first_row = round((grid.top - self.top) / grid.step_y) + row * height
        first_column = round((self.left - grid.left) / grid.step_x) + column * width
        return slice(first_row, first_row + height), slice(first_column, first_column + width)

    def whole(self, grid: CubeGrid) -> tuple[slice, slice]:
        """Rows and columns of `grid` that all patches together are."""
        rows, columns = self.part(grid, 0, 0)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        return (
            slice(rows.start, rows.start + height * self.rows),
            slice(columns.start, columns.start + width * self.columns),
        )

    def grid(self, grid: CubeGrid, row: int, column: int) -> Grid:
        """Where the patch lies in `grid`."""
        rows, columns = self.part(grid, row, column)
        return grid.part(rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)


def tiles_of(grids: dict[str, CubeGrid], patch_pixels: int, *, finest_gsd_m: int) -> Tiles:
    """The patches of `patch_pixels` at 10 m that all `grids` (by the name of a band) cover.

    `finest_gsd_m` is what a pixel of the finest grid stands for where its CRS is not in metres. ValueError when the
    grids do not fit each other, ConfigError when their pixels do not fit the patch.
    """
    first_name, first = next(iter(grids.items()))
    for name, grid in grids.items():
        if grid.crs != first.crs:
            raise ValueError(
                f"{name} is in {grid.crs or 'no CRS'}, {first_name} in {first.crs or 'no CRS'}; no one place"
            )
    finest = min(grids.values(), key=lambda grid: grid.step_x)
    metres = finest.part(0, 0, 1, 1).gsd_m
    stands_for = max(round(metres / _BASE_M), 1) * _BASE_M if metres else finest_gsd_m
    step_10m = finest.step_x * _BASE_M / stands_for
    left, top = max(grid.left for grid in grids.values()), min(grid.top for grid in grids.values())
    right, bottom = min(grid.right for grid in grids.values()), max(grid.bottom for grid in grids.values())
    side = patch_pixels * step_10m
    for name, grid in grids.items():
        _require_whole_pixels(name, grid, side, step_10m, patch_pixels)
        for from_edge in ((left - grid.left) / grid.step_x, (grid.top - top) / grid.step_y):
            if abs(from_edge - round(from_edge)) > _TOLERANCE:
                raise ValueError(
                    f"the pixels of {name} begin {abs(from_edge) % 1:.2f} pixels beside those of another grid; "
                    "resample the cube so that the edges of the pixels meet"
                )
    across, down = max(right - left, 0.0) / side, max(top - bottom, 0.0) / side
    columns, rows = math.floor(across + _TOLERANCE / patch_pixels), math.floor(down + _TOLERANCE / patch_pixels)
    begun = math.ceil(across - _TOLERANCE / patch_pixels) * math.ceil(down - _TOLERANCE / patch_pixels)
    return Tiles(
        crs=first.crs,
        left=left,
        top=top,
        side=side,
        rows=rows,
        columns=columns,
        num_dropped=begun - rows * columns,
        pixels_10m=(down * patch_pixels, across * patch_pixels),
    )


def _require_whole_pixels(name: str, grid: CubeGrid, side: float, step_10m: float, patch_pixels: int) -> None:
    for step in (grid.step_x, grid.step_y):
        pixels = side / step
        if abs(pixels - round(pixels)) > _TOLERANCE:
            ratio = step / step_10m
            fitting = f"a multiple of {round(ratio)}" if abs(ratio - round(ratio)) < 1e-6 else "another size"
            raise ConfigError(
                f"--patch-pixels {patch_pixels} at 10 m are {pixels:.6g} pixels of {name} ({ratio * _BASE_M:.6g} m); "
                f"give {fitting}"
            )
