"""Images to patches to tokens, and back.

Shape legend: B batch, C bands, H W pixels of an image, P pixels of a patch side, N patches of an image (row
by row), V visible patches, E = P·P·C numbers of a patch (pixel by pixel, row by row, the band fastest), D
width of a token.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

VARIANCE_EPS = 1e-6
"""Added to a patch's variance before the root is taken, as in MAE."""


def patchify(image_BCHW: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches: (B, N, E), patches row by row, in each pixels row by row, the band fastest."""
    if image_BCHW.ndim != 4:
        raise ValueError(f"images must be (B, C, H, W), not {tuple(image_BCHW.shape)}")
    height, width = image_BCHW.shape[-2:]
    if height % patch_size or width % patch_size:
        raise ValueError(f"{height} x {width} pixels are no whole number of patches of {patch_size} pixels")
    grid = image_BCHW.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))  # B C rows P columns P
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches_BNE: Tensor, patch_size: int, height: int, width: int) -> Tensor:
    """The images that `patchify` cut: (B, C, height, width)."""
    rows, columns = height // patch_size, width // patch_size
    num_patches, num_elements = patches_BNE.shape[-2:]
    if rows * columns != num_patches or num_elements % patch_size**2:
        raise ValueError(
            f"{num_patches} patches of {num_elements} numbers do not make {height} x {width} pixels"
            f" in patches of {patch_size} pixels"
        )
    grid = patches_BNE.unflatten(2, (patch_size, patch_size, -1)).unflatten(1, (rows, columns))
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def gather_patches(x_BNE: Tensor, ids_BV: Tensor) -> Tensor:
    """The patches (or tokens) of each sample at its own indices: (B, V, E)."""
    return x_BNE.gather(1, ids_BV[:, :, None].expand(-1, -1, x_BNE.shape[-1]))


def sincos_positions(rows: int, columns: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Fixed 2-D sin-cos positions (N, D) of a grid, patches row by row.

    The first half of the width tells the row, the second the column; each half is D/4 sines, then D/4
    cosines, of the index times 10000^(-i / (D/4)). Computed in float64 and rounded once.
    """
    if width % 4:
        raise ValueError(f"sin-cos positions need a width that is a multiple of 4, not {width}")
    frequency = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))

    def encode(index: Tensor) -> Tensor:
        angle = index.double()[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    row_RE, column_CE = encode(torch.arange(rows)), encode(torch.arange(columns))
    table = torch.cat([row_RE[:, None].expand(-1, columns, -1), column_CE[None].expand(rows, -1, -1)], dim=2).flatten(
        0, 1
    )
    return table.to(dtype)


class FixedPositions(nn.Module):
    """The sin-cos table of a square grid; not saved, float32 or better whatever the module is cast to."""

    table_ND: Tensor

    def __init__(self, grid: int, width: int) -> None:
        super().__init__()
        self.grid, self.width = grid, width
        self.register_buffer("table_ND", sincos_positions(grid, grid, width), persistent=False)

    def _apply(self, fn, recurse: bool = True) -> Self:  # type: ignore[no-untyped-def]
        # Whatever moves or casts the module ends here. A cast to bfloat16 would round the table to 8 bits,
        # and to_empty() would leave it unset: so it is made anew, where the module went.
        super()._apply(fn, recurse)
        dtype = torch.promote_types(self.table_ND.dtype, torch.float32)
        if self.table_ND.device.type != "meta":
            self.table_ND = sincos_positions(self.grid, self.grid, self.width, dtype).to(self.table_ND.device)
        return self

    def forward(self, ids_BV: Tensor) -> Tensor:
        """Positions (B, V, D), in float32, of the patches `ids_BV`."""
        return self.table_ND[ids_BV]


class LearnedPositions(nn.Module):
    """A learned position for each place of a square grid, in the weights' dtype."""

    def __init__(self, grid: int, width: int) -> None:
        super().__init__()
        self.table_ND = nn.Parameter(torch.empty(grid**2, width))

    def forward(self, ids_BV: Tensor) -> Tensor:
        """Positions (B, V, D) of the patches `ids_BV`."""
        return self.table_ND[ids_BV]


def make_positions(kind: str, grid: int, width: int) -> FixedPositions | LearnedPositions:
    """Positions of a square grid, `sincos` or `learned`."""
    return FixedPositions(grid, width) if kind == "sincos" else LearnedPositions(grid, width)


class PatchProjection(nn.Module):
    """Patches to tokens (Fus-MAE Eq. 1): a linear map of each patch, plus its position.

    The map is the convolution of Eq. 1 with kernel = stride = P, on patches that were gathered before: only
    visible patches cost anything.
    """

    def __init__(self, num_elements: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_elements, width)

    def forward(self, patches_BVE: Tensor, positions_BVD: Tensor) -> Tensor:
        """Tokens (B, V, D) in the weights' dtype; the position is added before rounding."""
        dtype = self.linear.weight.dtype
        tokens: Tensor = self.linear(patches_BVE.to(dtype)) + positions_BVD
        return tokens.to(dtype)


class PatchStatistics(NamedTuple):
    """Mean and deviation of each patch: (B, N, 1), over its pixels and bands, or (B, N, E), by group of bands."""

    mean_BNE: Tensor
    std_BNE: Tensor


def element_validity(valid_BC: Tensor, num_elements: int) -> Tensor:
    """(B, 1 or N, E) bool: which numbers of a patch belong to a valid band, from (B, C) or (B, 1 or N, C)."""
    if valid_BC.ndim not in (2, 3) or num_elements % valid_BC.shape[-1]:
        raise ValueError(f"validity {tuple(valid_BC.shape)} does not fit patches of {num_elements} numbers")
    valid_BNC = valid_BC.bool() if valid_BC.ndim == 3 else valid_BC.bool()[:, None]
    return valid_BNC.repeat(1, 1, num_elements // valid_BC.shape[-1])


def patch_statistics(
    patches_BNE: Tensor, valid_BC: Tensor | None = None, groups: Sequence[Sequence[int]] = ()
) -> PatchStatistics:
    """Statistics of each patch: unbiased variance, plus 1e-6, rooted, as in MAE.

    Of all its bands together, or with `groups` of channels, of each group by itself (MAESTRO). Bands that a sample
    lacks (`valid_BC` false) do not count. A patch without any band has mean 0 and deviation 1e-3.
    """
    if groups:
        num_bands = sum(len(group) for group in groups)
        patches_BNPC = patches_BNE.unflatten(-1, (-1, num_bands))
        by_band: dict[int, PatchStatistics] = {}
        for group in groups:
            # Channel by channel: a list of indices would be copied to the device, and waited for.
            pixels_BNE = torch.stack([patches_BNPC[..., band] for band in group], dim=-1).flatten(-2)
            valid_BG = None if valid_BC is None else torch.stack([valid_BC[:, band] for band in group], dim=1)
            by_band |= dict.fromkeys(group, patch_statistics(pixels_BNE, valid_BG))
        mean_BNC, std_BNC = (
            torch.cat(parts, dim=-1) for parts in zip(*(by_band[band] for band in range(num_bands)), strict=True)
        )
        num_pixels = patches_BNPC.shape[-2]
        return PatchStatistics(mean_BNC.repeat(1, 1, num_pixels), std_BNC.repeat(1, 1, num_pixels))
    if valid_BC is None:
        variance_BN1, mean_BN1 = torch.var_mean(patches_BNE, dim=-1, keepdim=True)
    else:
        valid_B1E = element_validity(valid_BC, patches_BNE.shape[-1])
        count_B11 = valid_B1E.sum(-1, keepdim=True)
        mean_BN1 = patches_BNE.where(valid_B1E, 0).sum(-1, keepdim=True) / count_B11.clamp(min=1)
        squares_BN1 = (patches_BNE - mean_BN1).where(valid_B1E, 0).square().sum(-1, keepdim=True)
        variance_BN1 = squares_BN1 / (count_B11 - 1).clamp(min=1)
    return PatchStatistics(mean_BN1, (variance_BN1 + VARIANCE_EPS).sqrt())


def normalise_patches(patches_BNE: Tensor, statistics: PatchStatistics) -> Tensor:
    """Patches with mean 0 and variance 1 under `statistics`."""
    return (patches_BNE - statistics.mean_BNE) / statistics.std_BNE


def denormalise_patches(patches_BNE: Tensor, statistics: PatchStatistics) -> Tensor:
    """The inverse of `normalise_patches`."""
    return patches_BNE * statistics.std_BNE + statistics.mean_BNE
