"""Curves over the optimiser's steps."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from pipeline.report.figures.canvas import COLOURS, SERIES, drawing
from pipeline.report.figures.lines import Label, Numbers, label_ends, running_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_WORDS: Final = 3
"""Interruptions that are named in the loss figure; more of them would hide each other's words."""


def loss_figure(
    steps: Numbers,
    losses: Mapping[str, Numbers],
    baselines: Mapping[str, float],
    interruptions: Sequence[tuple[str, int | None, int]],
) -> str:
    """The loss curves over steps.

    `interruptions` are (how an attempt ended, the last step known of it, the step resumed from); what lies between the
    steps was trained twice. Many of them are lines without words.
    """
    with drawing("loss", 3.9) as (figure, drawn):
        axes = figure.subplots()
        labels: list[Label] = []
        for number, (name, values) in enumerate(losses.items()):
            colour = COLOURS["ink" if number == 0 else SERIES[(number - 1) % len(SERIES)]]
            smooth = running_mean(values)
            if smooth is not values:
                axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(steps, smooth, color=colour)
            labels.append((float(smooth[-1]), name, colour))
        for name, value in baselines.items():
            axes.axhline(value, color=COLOURS["muted"], linestyle=(0, (4, 3)), linewidth=1)
            labels.append((value, name, COLOURS["muted"]))
        top = max([max(values) for values in losses.values()] + list(baselines.values())) * 1.08
        axes.set_ylim(0, top)
        first, last = float(steps[0]), float(steps[-1])
        axes.set_xlim(first, last if last > first else first + 1)
        label_ends(axes, labels, top / 15)
        for number, interruption in enumerate(interruptions):
            _mark_interruption(axes, *interruption, row=number if len(interruptions) <= _MOST_WORDS else None)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("loss on masked patches (normalised units)")
    return drawn[0]


def _mark_interruption(axes: "Axes", how: str, ended: int | None, resumed: int, row: int | None) -> None:
    """Lines where an attempt ended and the next one resumed, and a shade over what was trained twice.

    The words stand in a `row` of their own below the top; None leaves them out.
    """
    for step, words, variable, side in ((resumed, "resumed from", "c3", -1), (ended, how, "alarm", 1)):
        if step is None:
            continue
        axes.axvline(step, color=COLOURS[variable], linewidth=1.2 if row is not None else 0.7)
        if row is not None:
            axes.annotate(
                f"{words} {step}",
                (step, 1),
                xycoords=axes.get_xaxis_transform(),
                xytext=(4 * side, -2 - 11 * row),
                textcoords="offset points",
                ha="right" if side < 0 else "left",
                va="top",
                color=COLOURS[variable],
            )
    if ended is not None:
        axes.axvspan(resumed, ended, color=COLOURS["muted"], alpha=0.15, linewidth=0)


def throughput_figure(steps: Numbers, samples_per_s: Numbers, waiting: Numbers) -> str:
    """Samples a second, and the share of each step spent waiting for data, over steps."""
    with drawing("throughput", 3.4) as (figure, drawn):
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, values, label, colour in (
            (upper, samples_per_s, "samples / s", "c1"),
            (lower, [100 * share for share in waiting], "waiting for data\n(% of step)", "c2"),
        ):
            axes.plot(steps, values, color=COLOURS[colour], linewidth=1.2)
            axes.set_ylabel(label)
            axes.set_ylim(0, max(max(values) * 1.1, 1e-9))
            axes.margins(x=0.01)
        lower.set_ylim(0, max(5.0, *(110 * share for share in waiting)))
        lower.set_xlabel("optimiser step")
    return drawn[0]
