"""Pictures as data URLs."""

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt


def picture(
    image: npt.NDArray[Any], hidden: npt.NDArray[np.bool_] | None, low: float, high: float, most: int = 0
) -> str:
    """A PNG as a data URL of one or three bands (bands, height, width), `low` black and `high` white.

    Patches that are `hidden` (rows, columns) are transparent. A side of more than `most` pixels is shrunk by a whole
    number; 0 leaves it.
    """
    from matplotlib.image import imsave

    height, width = image.shape[1:]
    pixels = np.ones((height, width, 4))
    pixels[..., :3] = np.moveaxis(np.clip((image.astype(np.float64) - low) / max(high - low, 1e-12), 0, 1), 0, -1)
    if hidden is not None:
        patch = height // hidden.shape[0], width // hidden.shape[1]
        pixels[..., 3] -= np.kron(hidden, np.ones(patch))
    factor = -(-max(height, width) // most) if most else 1
    if factor > 1:
        pixels = pixels[: height // factor * factor, : width // factor * factor]
        blocks = pixels.reshape(height // factor, factor, width // factor, factor, 4)
        pixels = np.asarray(blocks.mean(axis=(1, 3)))
    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
