"""What the figures of curves share: names at their ends, and a mean that shows where they go."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Numbers = Sequence[float]
Label = tuple[float, str, str]
"""Last value, name and colour of a curve."""


def label_ends(axes: "Axes", labels: Sequence[Label], gap: float) -> None:
    """Name each curve beside its end, with its last value; names are at least `gap` apart."""
    for y, (value, name, colour) in zip(_spread([at for at, *_ in labels], gap), labels, strict=True):
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


def running_mean(values: Numbers) -> Numbers:
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
