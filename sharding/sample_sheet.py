"""One PNG of a sample: colours, radar and what rides along, with key, dates, place and labels."""

import io
import textwrap
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sharding.dataset import open_dataset
from sharding.pictures import Picture, pair_pictures, rider_pictures
from sharding.read_sample import find_sample, read_lines, read_sample
from sharding.sample_facts import dates_text, place_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS: Final = 4
_PANEL_IN: Final = 3.1
_DPI: Final = 120
_WRAP: Final = 34
"""Characters of a text as wide as a panel."""
_INK: Final = "#1c2126"
_MUTED: Final = "#69737d"
_LEGEND: Final = 8


def draw_sample(url: str, key: str) -> bytes:
    """The PNG of the sample `key` of the data set at `url`; DataError that names the nearest keys without one."""
    store, manifest = open_dataset(url)
    located = find_sample(store, manifest, key)
    arrays = read_sample(store, manifest, located)
    line = read_lines(store, manifest, [located])[key]
    return draw_sheet([*pair_pictures(arrays), *rider_pictures(arrays)], line)


def draw_sheet(pictures: list[Picture], line: dict[str, Any]) -> bytes:
    """The pictures of a sample side by side, under what its metadata `line` says; the same input, the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, max(len(pictures), 2))
    rows = -(-len(pictures) // columns)
    legend_in = 0.17 * max(-(-min(len(p.classes), _LEGEND + 1) // 2) for p in pictures)
    heading = _heading(line, columns)
    labels = textwrap.wrap(f"Labels: {'; '.join(line['labels']) or 'none'}", columns * _WRAP)
    text_in = 0.3 + 0.2 * (heading.count("\n") + 1 + len(labels))
    size = (columns * _PANEL_IN, rows * (_PANEL_IN + 0.45) + legend_in + text_in)
    figure = Figure(figsize=size, dpi=_DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    key, _, facts = heading.partition("\n\n")
    figure.suptitle(key, x=0.01, ha="left", fontsize=12, fontweight="bold", color=_INK, linespacing=1.2)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for picture, axes in zip(pictures, panels, strict=False):
        _draw(axes, picture)
    for axes in panels[len(pictures) :]:
        axes.set_axis_off()
    figure.supxlabel("\n".join([facts, *labels]), x=0.01, ha="left", fontsize=9, color=_INK, linespacing=1.45)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _heading(line: dict[str, Any], columns: int) -> str:
    """The key; behind an empty line when and where it was taken, and of what kind it is."""
    key = "\n".join(textwrap.wrap(line["key"], columns * _WRAP * 2 // 3, break_on_hyphens=False))
    country = line["attributes"].get("country")
    where = ", ".join(str(part) for part in (country, place_text(line)) if part)
    facts = [dates_text(line), where, f"split {line['split']}, source {line['source']}, S2 {line['level']}"]
    return f"{key}\n\n" + "\n".join(textwrap.wrap("   |   ".join(fact for fact in facts if fact), columns * _WRAP))


def _draw(axes: "Axes", picture: Picture) -> None:
    axes.imshow(picture.rgb, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(picture.title, loc="left", fontsize=10, color=_INK)
    height, width = picture.rgb.shape[:2]
    kilometres = " x ".join(f"{side * picture.gsd_m / 1000:.3g}" for side in (width, height))
    text = f"{kilometres} km at {picture.gsd_m:g} m"
    if picture.range is not None:
        low, high = (
            np.format_float_positional(value, precision=4, fractional=False, trim="-") for value in picture.range
        )
        text = f"{low} to {high} {picture.units}".rstrip() + f"; {text}"
    axes.set_xlabel(text, fontsize=8, color=_MUTED, loc="left")
    if picture.classes:
        _draw_legend(axes, picture)


def _draw_legend(axes: "Axes", picture: Picture) -> None:
    from matplotlib.patches import Patch

    shown = list(picture.classes.items())[:_LEGEND]
    handles = [
        Patch(facecolor=(colour[0] / 255, colour[1] / 255, colour[2] / 255), label=f"{code}: {100 * share:.1f} %")
        for code, (share, colour) in shown
    ]
    if len(picture.classes) > _LEGEND:
        handles.append(Patch(facecolor="none", label=f"{len(picture.classes) - _LEGEND} more classes"))
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(-0.02, -0.09),
        borderaxespad=0,
        ncols=2,
        fontsize=7.5,
        frameon=False,
        handlelength=1,
        handleheight=1,
        labelcolor=_INK,
    )
