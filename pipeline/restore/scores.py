"""How near a restored image is to the true one, on the pixels that were restored.

- PSNR: 10 log10(R^2 / MSE) in dB, R the data range, MSE over all counted pixels and bands of all samples.
- SSIM: Wang et al., "Image quality assessment: from error visibility to structural similarity" (IEEE TIP 2004), Eq. 13:
  a Gaussian window of 11 x 11 pixels with a deviation of 1.5, K1 = 0.01, K2 = 0.03; borders are mirrored, as in
  torchmetrics. Each band has a map of its own; the score is the mean of the maps where pixels are counted.
- MAE: the mean absolute difference.

Shape legend: B batch, C bands, H W pixels of an image.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch import Tensor

WINDOW: Final = 11
SIGMA: Final = 1.5
K1: Final = 0.01
K2: Final = 0.03


def psnr_db(mse: float, data_range: float) -> float:
    """In dB; infinite where there is no error."""
    return math.inf if mse == 0 else 10 * math.log10(data_range**2 / mse)


def ssim_map(first_BCHW: "Tensor", second_BCHW: "Tensor", data_range: float) -> "Tensor":
    """(B, C, H, W) float64: the SSIM of the windows around each pixel."""
    import torch
    import torch.nn.functional as F

    distance = torch.arange(WINDOW, dtype=torch.float64, device=first_BCHW.device) - (WINDOW - 1) / 2
    weight = torch.exp(-((distance / SIGMA) ** 2) / 2)
    weight = weight / weight.sum()

    def mean(image_BCHW: "Tensor") -> "Tensor":
        half = WINDOW // 2
        padded = F.pad(image_BCHW.flatten(0, 1)[:, None], (half, half, half, half), mode="reflect")
        rows = F.conv2d(padded, weight[None, None, :, None])
        return F.conv2d(rows, weight[None, None, None, :])[:, 0].reshape(image_BCHW.shape)

    x, y = first_BCHW.double(), second_BCHW.double()
    mean_x, mean_y = mean(x), mean(y)
    variance_x = (mean(x * x) - mean_x**2).clamp(min=0)
    variance_y = (mean(y * y) - mean_y**2).clamp(min=0)
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1) * structure


class ScoreSum:
    """The scores of one way to restore, gathered batch by batch."""

    def __init__(self, bands: Sequence[str], data_range: float) -> None:
        self._bands = tuple(bands)
        self._range = data_range
        self._count: Any = 0
        self._squares: Any = 0.0
        self._absolutes: Any = 0.0
        self._ssim: Any = 0.0
        self.errors: list[float] = []
        """Mean squared error of each sample."""

    def add(self, restored_BCHW: "Tensor", true_BCHW: "Tensor", counted_BCHW: "Tensor") -> None:
        """Count the pixels of a batch that `counted_BCHW` (bool) names; each sample has one."""
        counted = counted_BCHW.double()
        difference = (restored_BCHW.double() - true_BCHW.double()) * counted
        self._count = self._count + counted.sum((0, 2, 3))
        self._squares = self._squares + difference.square().sum((0, 2, 3))
        self._absolutes = self._absolutes + difference.abs().sum((0, 2, 3))
        self._ssim = self._ssim + (ssim_map(restored_BCHW, true_BCHW, self._range) * counted).sum((0, 2, 3))
        self.errors += (difference.square().sum((1, 2, 3)) / counted.sum((1, 2, 3))).tolist()

    def as_dict(self) -> dict[str, Any]:
        """The scores; `psnr_db` is None where there is no error, as JSON has no infinity."""
        count = self._count.clamp(min=1)
        of_band = zip(self._bands, (self._absolutes / count).tolist(), self._count.tolist(), strict=True)
        total = float(self._count.sum())
        psnr = psnr_db(float(self._squares.sum()) / total, self._range)
        return {
            "psnr_db": psnr if math.isfinite(psnr) else None,
            "ssim": float(self._ssim.sum()) / total,
            "mae": float(self._absolutes.sum()) / total,
            "mae_of_band": {band: mae for band, mae, number in of_band if number},
        }


def times_better(name: str, scores: dict[str, ScoreSum]) -> dict[str, int]:
    """In how many samples the way `name` has a smaller error than each other one."""
    ours = scores[name].errors
    return {
        other: sum(mine < theirs for mine, theirs in zip(ours, total.errors, strict=True))
        for other, total in scores.items()
        if other != name
    }
