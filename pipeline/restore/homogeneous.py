"""What a way against speckle does where there is little but speckle: how much it smooths, whether it keeps the level.

Shape legend: B batch, C bands, H W pixels of an image, W numbers of a window.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch import Tensor

SIDE: Final = 16
"""Pixels of a window's side."""
SHARE: Final = 0.1
"""Share of all windows that count as homogeneous: those whose true intensity varies least for its mean."""


class WindowLevels:
    """Mean and variance of the windows of an image, gathered batch by batch for each way.

    The equivalent number of looks of a window is mean^2 / variance of its intensity.
    """

    def __init__(self, ways: Sequence[str]) -> None:
        self._true: list[Any] = []
        self._of: dict[str, list[Any]] = {way: [] for way in ways}

    def add(self, true_BCHW: "Tensor", restored: dict[str, "Tensor"]) -> None:
        """Count the windows of a batch of intensities."""
        self._true.append(_moments(true_BCHW))
        for way, intensity_BCHW in restored.items():
            self._of[way].append(_moments(intensity_BCHW))

    def as_dict(self) -> dict[str, Any]:
        """How many windows are homogeneous, and of each way the medians over these.

        `enl_ratio`: looks over those of what has the speckle still (`noisy`); `level_db`: mean intensity over the true
        one, in dB, 0 for a way that keeps it.
        """
        import torch

        true_2W = torch.cat(self._true, dim=1)
        if not true_2W.shape[1]:
            return {"windows": 0, "ways": {way: {"enl_ratio": None, "level_db": None} for way in self._of}}
        variation_W = true_2W[1] / true_2W[0].square()
        num_windows = max(1, round(SHARE * len(variation_W)))
        chosen = variation_W.argsort(stable=True)[:num_windows]
        moments = {way: torch.cat(found, dim=1)[:, chosen] for way, found in self._of.items()}
        tiny = torch.finfo(torch.float64).tiny

        def looks(mean_variance_2W: "Tensor") -> "Tensor":
            return mean_variance_2W[0].square() / mean_variance_2W[1].clamp(min=tiny)

        ways = {}
        for way, found in moments.items():
            ratio = (looks(found) / looks(moments["noisy"])).median()
            level = (10 * (found[0] / true_2W[0, chosen]).log10()).median()
            ways[way] = {"enl_ratio": float(ratio), "level_db": float(level)}
        return {"windows": num_windows, "ways": ways}


def _moments(intensity_BCHW: "Tensor") -> "Tensor":
    """(2, windows): mean and variance of each whole window of each image and band."""
    import torch

    rows, columns = (side // SIDE for side in intensity_BCHW.shape[-2:])
    if not rows or not columns:
        return torch.zeros((2, 0), dtype=torch.float64, device=intensity_BCHW.device)
    cut = intensity_BCHW.double()[..., : rows * SIDE, : columns * SIDE]
    windows = cut.reshape(-1, rows, SIDE, columns, SIDE).transpose(2, 3).reshape(-1, SIDE * SIDE)
    return torch.stack([windows.mean(1), windows.var(1, correction=0)])
