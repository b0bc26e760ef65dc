"""Curves of several things, or of several runs, in panels over one axis."""

from collections.abc import Mapping, Sequence
from typing import Final

from pipeline.report.figures.canvas import COLOURS, SERIES, drawing
from pipeline.report.figures.lines import Label, Numbers, label_ends, running_mean

Curve = tuple[Numbers, Numbers]
"""Where on the axis, and the values there."""
_PANEL_IN: Final = 2.3
_MOST_NAMED: Final = 6
"""Curves of a panel that are named at their ends; more names would stand higher than the panel."""
_LONGEST_NAME: Final = 22


def panels_figure(name: str, panels: Mapping[str, Mapping[str, Curve]], along: str, names: Sequence[str]) -> str:
    """Panels below each other, each with its curves by name.

    `along` names the axis they share; a curve's colour is that of its place in `names`. The page must have a legend
    where there may be many.
    """
    with drawing(name, 0.4 + _PANEL_IN * len(panels)) as (figure, drawn):
        rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (title, curves) in zip(rows, panels.items(), strict=True):
            labels: list[Label] = []
            for of, (places, values) in curves.items():
                number = names.index(of)
                colour = COLOURS[SERIES[number % len(SERIES)]]
                style = ("-", "--", ":")[number // len(SERIES) % 3]
                smooth = running_mean(values)
                if smooth is not values:
                    axes.plot(places, values, color=colour, alpha=0.2, linewidth=0.8)
                marker = "o" if len(values) <= _PANEL_IN * 10 else None
                axes.plot(places, smooth, style, color=colour, marker=marker, markersize=3)
                labels.append((float(smooth[-1]), _shortened(of), colour))
            axes.margins(x=0.01)
            low, high = axes.get_ylim()
            if len(labels) <= _MOST_NAMED:
                label_ends(axes, labels, (high - low) / 9)
            axes.set_ylabel(title)
        rows[-1].set_xlabel(along)
    return drawn[0]


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"
