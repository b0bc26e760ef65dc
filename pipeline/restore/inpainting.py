"""Filling holes in images without learning anything.

Shape legend: B batch, C bands, H W pixels of an image, N patches, R C rows and columns of them.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def pixels_of(mask_BN: "Tensor", patch_size: int) -> "Tensor":
    """(B, 1, H, W) bool: the pixels of the patches."""
    grid = round(mask_BN.shape[1] ** 0.5)
    mask_B1RC = mask_BN.reshape(-1, 1, grid, grid)
    return mask_B1RC.repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)


def visible_mean(images_BCHW: "Tensor", hidden_B1HW: "Tensor") -> "Tensor":
    """The images with hidden pixels set to the mean of the visible ones of the same image and band."""
    seen = (~hidden_B1HW).to(images_BCHW.dtype)
    mean = (images_BCHW * seen).sum((2, 3), keepdim=True) / seen.sum((2, 3), keepdim=True)
    return images_BCHW.where(~hidden_B1HW, mean)


def interpolate(
    images_BCHW: "Tensor", hidden_B1HW: "Tensor", tolerance: float = 1e-4, max_steps: int = 2000
) -> "Tensor":
    """The images with hidden pixels interpolated as smoothly as can be: the solution of Laplace's equation.

    Each hidden pixel is the mean of its neighbours (those inside the image); visible pixels are the boundary. It is
    what bilinear interpolation is for holes of any shape: in a hole that does not reach the border, planes come back.
    Solved by conjugate gradients, all bands at once, until no residual is above `tolerance` times the deviation of the
    visible pixels. Each image must have a visible pixel; what lies in hidden ones is not looked at.
    """
    start = visible_mean(images_BCHW.double(), hidden_B1HW)
    seen = (~hidden_B1HW).double()
    deviation = ((start - start.mean((2, 3), keepdim=True)).square() * seen).sum((2, 3), keepdim=True)
    limit = tolerance * (deviation / seen.sum((2, 3), keepdim=True)).sqrt()

    def pulled(x: "Tensor") -> "Tensor":
        """Of each hidden pixel, the sum of its differences to its neighbours."""
        down, right = x[:, :, 1:] - x[:, :, :-1], x[..., 1:] - x[..., :-1]
        out = x.new_zeros(x.shape)
        out[:, :, 1:] += down
        out[:, :, :-1] -= down
        out[..., 1:] += right
        out[..., :-1] -= right
        return out.where(hidden_B1HW, 0)

    def dot(a: "Tensor", b: "Tensor") -> "Tensor":
        return (a * b).sum((2, 3), keepdim=True)

    filled = start
    residual = -pulled(filled)
    direction = residual
    norm = dot(residual, residual)
    for _ in range(max_steps):
        if bool((residual.abs().amax((2, 3), keepdim=True) <= limit).all()):
            break
        bent = pulled(direction)
        step = norm / dot(direction, bent).clamp(min=1e-300)
        filled = filled + step * direction
        residual = residual - step * bent
        before, norm = norm, dot(residual, residual)
        direction = residual + norm / before.clamp(min=1e-300) * direction
    return filled.to(images_BCHW.dtype)
