"""The figures of a report: inline SVG whose colours follow the page (light or dark), and PNG pictures.

Figures are drawn with stand-in colours that become CSS variables of the page afterwards, and their text stays text.
"""

import base64
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STAND_INS: Final = {
    "ink": "#010203",
    "muted": "#010204",
    "grid": "#010205",
    "surface": "#010206",
    "c1": "#010207",
    "c2": "#010208",
    "c3": "#010209",
    "c4": "#01020a",
    "alarm": "#01020b",
}
"""Colour variables of the template, and what stands for them while matplotlib draws."""
_SERIES: Final = ("c1", "c2", "c3", "c4")
_WIDTH_IN: Final = 8.4
_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.edgecolor": _STAND_INS["muted"],
    "axes.labelcolor": _STAND_INS["ink"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _STAND_INS["grid"],
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "text.color": _STAND_INS["ink"],
    "xtick.color": _STAND_INS["muted"],
    "ytick.color": _STAND_INS["muted"],
    "xtick.labelcolor": _STAND_INS["ink"],
    "ytick.labelcolor": _STAND_INS["ink"],
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "figure.constrained_layout.use": True,
}
Numbers = Sequence[float]


def loss_figure(
    steps: Numbers,
    losses: Mapping[str, Numbers],
    baselines: Mapping[str, float],
    interruptions: Sequence[tuple[int | None, int]],
) -> str:
    """The loss curves over steps.

    `interruptions` are (last step known before a kill, step resumed from); the steps between them were trained twice.
    """
    with _drawing("loss", 3.9) as (figure, drawn):
        axes = figure.subplots()
        labels = []
        for number, (name, values) in enumerate(losses.items()):
            colour = _STAND_INS["ink" if number == 0 else _SERIES[(number - 1) % len(_SERIES)]]
            smooth = _running_mean(values)
            if smooth is not values:
                axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(steps, smooth, color=colour)
            labels.append((float(smooth[-1]), name, colour))
        for name, value in baselines.items():
            axes.axhline(value, color=_STAND_INS["muted"], linestyle=(0, (4, 3)), linewidth=1)
            labels.append((value, name, _STAND_INS["muted"]))
        top = max([max(values) for values in losses.values()] + list(baselines.values())) * 1.08
        axes.set_ylim(0, top)
        first, last = float(steps[0]), float(steps[-1])
        axes.set_xlim(first, last if last > first else first + 1)
        for y, (value, name, colour) in zip(_spread([at for at, *_ in labels], top / 15), labels, strict=True):
            axes.annotate(
                f"{name} {value:.3g}",
                (1, y),
                xycoords=axes.get_yaxis_transform(),
                xytext=(5, 0),
                textcoords="offset points",
                color=colour,
                va="center",
                annotation_clip=False,
            )
        for killed, resumed in interruptions:
            _mark_interruption(axes, killed, resumed)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("loss on masked patches (normalised units)")
    return drawn[0]


def _mark_interruption(axes: "Axes", killed: int | None, resumed: int) -> None:
    """Lines where a run was resumed from and killed, and a shade over what was trained twice."""
    for step, words, variable, side in ((resumed, "resumed from", "c3", -1), (killed, "killed after", "alarm", 1)):
        if step is not None:
            axes.axvline(step, color=_STAND_INS[variable], linewidth=1.2)
            axes.annotate(
                f"{words} {step}",
                (step, 1),
                xycoords=axes.get_xaxis_transform(),
                xytext=(4 * side, -2),
                textcoords="offset points",
                ha="right" if side < 0 else "left",
                va="top",
                color=_STAND_INS[variable],
            )
    if killed is not None:
        axes.axvspan(resumed, killed, color=_STAND_INS["muted"], alpha=0.15, linewidth=0)


def throughput_figure(steps: Numbers, samples_per_s: Numbers, waiting: Numbers) -> str:
    """Samples a second, and the share of each step spent waiting for data, over steps."""
    with _drawing("throughput", 3.4) as (figure, drawn):
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, values, label, colour in (
            (upper, samples_per_s, "samples / s", "c1"),
            (lower, [100 * share for share in waiting], "waiting for data\n(% of step)", "c2"),
        ):
            axes.plot(steps, values, color=_STAND_INS[colour], linewidth=1.2)
            axes.set_ylabel(label)
            axes.set_ylim(0, max(max(values) * 1.1, 1e-9))
            axes.margins(x=0.01)
        lower.set_ylim(0, max(5.0, *(110 * share for share in waiting)))
        lower.set_xlabel("optimiser step")
    return drawn[0]


def map_figure(
    lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64], split_of: Sequence[str], patch_m: float
) -> str:
    """Where the samples lie: all of them as points, and the densest degree with true footprints."""
    with _drawing("map", 3.8) as (figure, drawn):
        overview, zoom = figure.subplots(1, 2, width_ratios=(1.25, 1))
        splits = list(dict.fromkeys(split_of))
        names = np.array(split_of)
        centre = _densest(lon, lat)
        near = (np.abs(lon - centre[0]) < 0.75) & (np.abs(lat - centre[1]) < 0.5)
        for number, split in enumerate(splits):
            colour = _STAND_INS[_SERIES[number % len(_SERIES)]]
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


def picture(image: npt.NDArray[Any], hidden: npt.NDArray[np.bool_] | None, low: float, high: float) -> str:
    """A PNG as a data URL of one or three bands (bands, height, width), `low` black and `high` white.

    Patches that are `hidden` (rows, columns) are transparent.
    """
    from matplotlib.image import imsave

    height, width = image.shape[1:]
    pixels = np.ones((height, width, 4))
    pixels[..., :3] = np.moveaxis(np.clip((image.astype(np.float64) - low) / max(high - low, 1e-12), 0, 1), 0, -1)
    if hidden is not None:
        patch = height // hidden.shape[0], width // hidden.shape[1]
        pixels[..., 3] -= np.kron(hidden, np.ones(patch))
    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@contextmanager
def _drawing(name: str, height_in: float) -> Iterator[tuple["Figure", list[str]]]:
    """Gives an empty figure and a list; after the block the list holds the figure as SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    drawn: list[str] = []
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(_WIDTH_IN, height_in))
        yield figure, drawn
        buffer = io.StringIO()
        figure.savefig(  # tight: the layout reserves no room for titles over axes of fixed aspect
            buffer,
            format="svg",
            transparent=True,
            bbox_inches="tight",
            pad_inches=0.04,
            metadata={"Date": None, "Creator": None},
        )
    drawn.append(_follow_page(buffer.getvalue(), name))


def _follow_page(svg: str, name: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'^<svg [^>]*viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" role="img">', svg, count=1)
    # Several figures share the page: their ids must differ.
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    for variable, stand_in in _STAND_INS.items():
        svg = svg.replace(stand_in, f"var(--{variable})")
    return svg


def _running_mean(values: Numbers) -> Numbers:
    """Centred mean over a fortieth of the curve; short curves stay as they are."""
    window = len(values) // 40
    if window < 2:
        return values
    padded = np.concatenate([[values[0]] * (window // 2), values, [values[-1]] * (window - 1 - window // 2)])
    smooth: list[float] = np.convolve(padded, np.full(window, 1 / window), mode="valid").tolist()
    return smooth


def _spread(values: list[float], gap: float) -> list[float]:
    """The values moved apart, in their order, until neighbours are `gap` from each other."""
    placed = list(values)
    order = sorted(range(len(values)), key=lambda i: values[i])
    for below, above in pairwise(order):
        placed[above] = max(placed[above], placed[below] + gap)
    return placed
