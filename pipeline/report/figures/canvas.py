"""What figures are drawn on.

Figures are drawn with stand-in colours that become CSS variables of the page afterwards, and their text stays text.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS: Final = {
    "ink": "#010203",
    "muted": "#010204",
    "grid": "#010205",
    "surface": "#010206",
    "c1": "#010207",
    "c2": "#010208",
    "c3": "#010209",
    "c4": "#01020a",
    "c5": "#01020b",
    "c6": "#01020c",
    "c7": "#01020d",
    "c8": "#01020e",
    "alarm": "#01020f",
}
"""Colour variables of the template, and what stands for them while matplotlib draws."""
SERIES: Final = ("c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8")
_WIDTH_IN: Final = 8.4
_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "figure.constrained_layout.use": True,
}


@contextmanager
def drawing(name: str, height_in: float) -> Iterator[tuple["Figure", list[str]]]:
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
    for variable, stand_in in COLOURS.items():
        svg = svg.replace(stand_in, f"var(--{variable})")
    return svg
