"""The reconstruction loss: mean squared error of masked patches only.

Shape legend: B batch, M masked patches, E = P·P·C numbers of a patch (the band fastest), C bands.
"""

import torch
from torch import Tensor

from fusmae.patch import element_validity


def masked_mse(pred_BME: Tensor, target_BME: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean squared error over the numbers that exist, in float32: a scalar.

    Each sample is the mean of its own valid numbers and the loss is the mean of the samples, so that it does
    not depend on how a global batch is cut into micro-batches and ranks. A sample without any valid number
    adds 0, a batch without any is exactly 0, with gradient 0; whatever stands in the place of an absent
    number, NaN included, has no effect. Nothing waits for the device.

    Args:
        pred_BME: predictions of the masked patches.
        target_BME: what they should be.
        valid: which numbers exist: (B, C) by band, (B, 1 or M, C) by patch and band, or (B, M, E), bool; None: all.
    """
    if pred_BME.shape != target_BME.shape:
        raise ValueError(f"predictions {tuple(pred_BME.shape)} do not fit targets {tuple(target_BME.shape)}")
    dtype = torch.promote_types(pred_BME.dtype, torch.float32)
    difference_BME = pred_BME.to(dtype) - target_BME.to(dtype)
    if valid is None:
        return difference_BME.square().mean()
    num_elements = pred_BME.shape[-1]
    valid_BME = valid.bool() if valid.shape[-1] == num_elements else element_validity(valid, num_elements)
    if valid_BME.shape not in (pred_BME.shape, (pred_BME.shape[0], 1, pred_BME.shape[2])):
        raise ValueError(f"validity {tuple(valid.shape)} does not fit predictions {tuple(pred_BME.shape)}")
    valid_BME = valid_BME.expand_as(difference_BME)
    squares_B = difference_BME.where(valid_BME, 0).square().sum((1, 2))
    return (squares_B / valid_BME.sum((1, 2)).clamp(min=1)).mean()
