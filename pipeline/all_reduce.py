"""What one rank measures of itself and of its connection with the others."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from pipeline.distributed import Ranks, choose_device, leave, say_lost_ranks
from pipeline.errors import ConfigError, RankError

COMPUTING: Final = "computing"
REDUCING: Final = "reducing"
_MATMUL_WIDTH: Final = {"cuda": 8192, "cpu": 512}
_PERIOD: Final = 1021
"""The numbers that are summed repeat after so many, a prime: no two pieces of a ring are the same."""


@dataclass(frozen=True, kw_only=True)
class RankFigures:
    """What one rank measured, or why it could not."""

    rank: int
    host: str
    device: str = "-"
    matmul_tflops: float = 0.0
    """Matrix products, bf16 on CUDA and fp32 on the CPU; of this rank alone, while all do the same."""
    all_reduce_s: list[float] = field(default_factory=list)
    """Time of each round, from a barrier on."""
    is_right: bool = False
    """Whether each sum was right, at every place."""
    error: str = ""
    """Why the rank could not measure."""
    is_victim: bool = False
    """Whether that came of another rank."""


def measure(
    ranks: Ranks,
    host: str,
    device_setting: str,
    store: Any,
    *,
    num_bytes: int,
    rounds: int,
    matmul_s: float,
    limit_s: float,
    begins: Callable[[str], None],
) -> RankFigures:
    """Join the group through `store`, compute, reduce; an error that hardware or network cause is among the figures.

    `begins` is told what comes next: `COMPUTING`, which depends on no other rank, and then `REDUCING`.
    """
    import torch.distributed as dist

    try:
        device = choose_device(device_setting, ranks.local_rank)
        backend = "nccl" if device.type == "cuda" else "gloo"
        with say_lost_ranks(ranks.rank):
            dist.init_process_group(
                backend,
                store=store,
                rank=ranks.rank,
                world_size=ranks.world_size,
                timeout=timedelta(seconds=limit_s),
                device_id=device if device.type == "cuda" else None,
            )
            dist.barrier()
            begins(COMPUTING)
            tflops = matmul_tflops(device, matmul_s)
            begins(REDUCING)
            times, is_right = all_reduce_times(ranks, device, num_bytes, rounds)
        leave()
    except RankError as error:
        return RankFigures(rank=ranks.rank, host=host, error=str(error), is_victim=True)
    except (RuntimeError, ConfigError) as error:
        return RankFigures(rank=ranks.rank, host=host, error=str(error).splitlines()[0])
    return RankFigures(
        rank=ranks.rank,
        host=host,
        device=str(device),
        matmul_tflops=tflops,
        all_reduce_s=times,
        is_right=is_right,
    )


def matmul_tflops(device: Any, lasts_s: float) -> float:
    """Floating-point operations of matrix products a second, in 10^12, measured over `lasts_s`."""
    import torch

    width = _MATMUL_WIDTH[device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left = torch.randn(width, width, device=device, dtype=dtype)
    right = torch.randn(width, width, device=device, dtype=dtype)

    def seconds(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            torch.matmul(left, right)
        _finish(device)
        return time.perf_counter() - began

    seconds(4)
    count, took_s = 0, 0.0
    while took_s < lasts_s:
        count, took_s = count + 4, took_s + seconds(4)
    return count * 2 * width**3 / took_s / 1e12


def all_reduce_times(ranks: Ranks, device: Any, num_bytes: int, rounds: int) -> tuple[list[float], bool]:
    """Seconds of each round of a sum of float32 over all ranks, and whether every sum was right.

    Rank r adds r + 1 times small whole numbers, so that the sum is exact in any order.
    """
    import torch
    import torch.distributed as dist

    pattern = (torch.arange(num_bytes // 4, device=device) % _PERIOD % 16 + 1).float()
    expected = pattern * (ranks.world_size * (ranks.world_size + 1) // 2)
    times, is_right = [], True
    for number in range(rounds + 1):
        tensor = pattern * (ranks.rank + 1)
        dist.barrier()
        _finish(device)
        began = time.perf_counter()
        dist.all_reduce(tensor)
        _finish(device)
        if number:  # the first makes the connections
            times.append(time.perf_counter() - began)
        is_right &= torch.equal(tensor, expected)
    return times, is_right


def _finish(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
