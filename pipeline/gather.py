"""Rows of all ranks in one tensor, through which gradients find their way back."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_BD: Tensor) -> Tensor:
        rows_BD = rows_BD.contiguous()
        gathered = [torch.empty_like(rows_BD) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows_BD)
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed_BD = gradients[0].contiguous().clone()
        dist.all_reduce(summed_BD)
        return summed_BD.chunk(dist.get_world_size())[dist.get_rank()]


def gather_ranks(rows_BD: Tensor) -> Tensor:
    """(world size x B, D): the rows (B, D) of all ranks, in their order; a collective.

    The gradient of a row is the sum of what all ranks' losses owe it, so that the mean of the ranks' gradients is that
    of the mean of their losses, as if there were one rank.
    """
    gathered: Tensor = _Gather.apply(rows_BD)  # type: ignore[no-untyped-call]
    return gathered
