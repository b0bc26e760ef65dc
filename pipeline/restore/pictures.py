"""Restored images beside the true ones, as one PNG."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Panel(NamedTuple):
    """One image of a row."""

    title: str
    pixels: Any
    """numpy, 0 to 1: (H, W) or (H, W, 3)."""


class Picture(NamedTuple):
    """A sample's row."""

    key: str
    panels: list[Panel]


def true_colour(bands: tuple[str, ...], reference_CHW: "Tensor") -> Callable[..., Any]:
    """What paints (C, H, W) images in B04, B03, B02 (or the first band) with the reference's 2nd to 98th percentile.

    With a second argument, (H, W) bool, those pixels are white.
    """
    import numpy as np

    rgb = ("B04", "B03", "B02")
    chosen = [bands.index(band) for band in (rgb if set(rgb) <= set(bands) else bands[:1] * 3)]
    reference = reference_CHW[chosen].double().cpu().numpy()
    low, high = np.percentile(reference, [2, 98], axis=(1, 2))

    def paint(image_CHW: "Tensor", white_HW: "Tensor | None" = None) -> Any:
        image = image_CHW[chosen].double().cpu().numpy()
        shown = (image - low[:, None, None]) / np.maximum(high - low, 1e-12)[:, None, None]
        shown = np.clip(shown, 0, 1).transpose(1, 2, 0)
        if white_HW is not None:
            shown[white_HW.cpu().numpy()] = 1.0
        return shown

    return paint


def grey(reference_HW: "Tensor") -> Callable[["Tensor"], Any]:
    """What paints (H, W) images in grey with the reference's 2nd to 98th percentile."""
    import numpy as np

    low, high = np.percentile(reference_HW.double().cpu().numpy(), [2, 98])

    def paint(image_HW: "Tensor") -> Any:
        return np.clip((image_HW.double().cpu().numpy() - low) / max(high - low, 1e-12), 0, 1)

    return paint


def draw(pictures: list[Picture], title: str, path: Path) -> None:
    """Write the rows as a PNG to `path`, whole or not at all."""
    from matplotlib.figure import Figure

    columns = len(pictures[0].panels)
    figure = Figure(figsize=(2.1 * columns, 2.3 * len(pictures) + 0.5), layout="constrained")
    axes = figure.subplots(len(pictures), columns, squeeze=False)
    for row, picture in zip(axes, pictures, strict=True):
        for axis, panel in zip(row, picture.panels, strict=True):
            axis.imshow(panel.pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_title(panel.title, fontsize=8)
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(picture.key if len(picture.key) <= 24 else f"…{picture.key[-23:]}", fontsize=6)
    figure.suptitle(title, fontsize=9)
    partial = path.with_name(f".{path.name}.partial")
    # Without the version of matplotlib in it.
    figure.savefig(partial, format="png", dpi=110, metadata={"Software": None})
    partial.replace(path)
