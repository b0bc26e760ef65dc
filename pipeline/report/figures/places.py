"""The map of a data set."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.report.figures.canvas import COLOURS, SERIES, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def map_figure(
    lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64], split_of: Sequence[str], patch_m: float
) -> str:
    """Where the samples lie: all of them as points, and the densest degree with true footprints."""
    with drawing("map", 3.8) as (figure, drawn):
        overview, zoom = figure.subplots(1, 2, width_ratios=(1.25, 1))
        splits = list(dict.fromkeys(split_of))
        names = np.array(split_of)
        centre = _densest(lon, lat)
        near = (np.abs(lon - centre[0]) < 0.75) & (np.abs(lat - centre[1]) < 0.5)
        for number, split in enumerate(splits):
            colour = COLOURS[SERIES[number % len(SERIES)]]
            chosen = names == split
            overview.scatter(
                lon[chosen],
                lat[chosen],
                s=22,
                color=colour,
                alpha=0.75,
                linewidths=0,
                label=f"{split} ({chosen.sum()})",
            )
            half_lat = patch_m / 111_320 / 2
            for x, y in zip(lon[chosen & near], lat[chosen & near], strict=True):
                half_lon = half_lat / math.cos(math.radians(y))
                zoom.fill(
                    [x - half_lon, x + half_lon, x + half_lon, x - half_lon],
                    [y - half_lat, y - half_lat, y + half_lat, y + half_lat],
                    color=colour,
                    alpha=0.85,
                    linewidth=0,
                )
        _frame(overview, lon, lat, ratio=1.25, least=1.0)
        _frame(zoom, lon[near], lat[near], ratio=1.0, least=0.05)
        overview.set_title("all samples", fontsize=9, loc="left")
        zoom.set_title(f"densest part: {near.sum()} footprints to scale", fontsize=9, loc="left")
        figure.legend(*overview.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return drawn[0]


def _densest(lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64]) -> tuple[float, float]:
    cells, counts = np.unique(np.stack([np.round(lon), np.round(lat)]), axis=1, return_counts=True)
    cell = cells[:, counts.argmax()]
    inside = (np.round(lon) == cell[0]) & (np.round(lat) == cell[1])
    return float(np.median(lon[inside])), float(np.median(lat[inside]))


def _frame(
    axes: "Axes", lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64], ratio: float, least: float
) -> None:
    """Limits around the points, at least `least` degrees of latitude high and `ratio` times as wide on the ground."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    middle_lon, middle_lat = float(lon.min() + lon.max()) / 2, float(lat.min() + lat.max()) / 2
    stretch = 1 / max(0.05, math.cos(math.radians(middle_lat)))
    height = 1.16 * max(float(np.ptp(lat)), float(np.ptp(lon)) / stretch / ratio, least)
    width = height * ratio * stretch
    axes.set_xlim(middle_lon - width / 2, middle_lon + width / 2)
    axes.set_ylim(middle_lat - height / 2, middle_lat + height / 2)
    axes.set_aspect(stretch)
    for axis, positive, negative in ((axes.xaxis, "E", "W"), (axes.yaxis, "N", "S")):
        axis.set_major_locator(MaxNLocator(4))
        axis.set_major_formatter(
            FuncFormatter(lambda v, _, p=positive, n=negative: f"{abs(v):g}° {p if v >= 0 else n}")
        )
