"""What a probe of all ranks came to: bandwidths, and the ranks that are slow, wrong or missing."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.all_reduce import RankFigures

SLOW_SHARE: Final = 0.5
"""A rank that computes slower than this share of the median is slow."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What all ranks measured, and what is wrong."""

    backend: str
    world_size: int
    num_bytes: int
    """Of the tensor that is reduced, on each rank."""
    time_s: float | None
    """Of an all-reduce: the slowest rank's, of the rounds the median; None where a rank has no figures."""
    algbw_gb_s: float | None
    """num_bytes / time_s, in 10^9 bytes, as nccl-tests define it."""
    busbw_gb_s: float | None
    """algbw * 2 (n-1) / n: what compares with the speed of a link, whatever the number of ranks."""
    came: dict[int, str]
    """By rank the hosts of those that came at all."""
    ranks: list[RankFigures]
    missing: list[int]
    """Ranks that did not come, or came and then fell silent."""
    slow: list[int]
    wrong: list[int]
    """Ranks that were given a wrong sum."""

    @property
    def is_well(self) -> bool:
        """Whether a run may start."""
        return not (self.missing or self.slow or self.wrong or any(rank.error for rank in self.ranks))


def judge(figures: Sequence[RankFigures], came: Mapping[int, str], world_size: int, num_bytes: int) -> Result:
    """The result of the ranks that gave figures, of those that came."""
    whole = [rank for rank in figures if not rank.error]
    time_s = None
    if len(whole) == world_size:
        time_s = statistics.median(max(times) for times in zip(*(rank.all_reduce_s for rank in whole), strict=True))
    algbw = None if time_s is None else num_bytes / time_s / 1e9
    median = statistics.median(rank.matmul_tflops for rank in whole) if whole else 0.0
    present = {rank.rank for rank in figures} if len(came) == world_size else set(came)
    return Result(
        backend="nccl" if any(rank.device.startswith("cuda") for rank in figures) else "gloo",
        world_size=world_size,
        num_bytes=num_bytes,
        time_s=time_s,
        algbw_gb_s=algbw,
        busbw_gb_s=None if algbw is None else algbw * 2 * (world_size - 1) / world_size,
        came=dict(came),
        ranks=list(figures),
        missing=sorted(set(range(world_size)) - present),
        slow=[rank.rank for rank in whole if rank.matmul_tflops < SLOW_SHARE * median],
        wrong=[rank.rank for rank in whole if not rank.is_right],
    )


def describe(result: Result) -> str:
    """The result for a person: a table, the bandwidths, and the names of what is wrong."""
    lines = []
    if result.ranks:
        lines.append(f"{'rank':>4}  {'host':<16}  {'device':<7}  {'matmul TFLOP/s':>14}  {'all-reduce ms':>13}")
    for rank in result.ranks:
        reduced = f"{statistics.median(rank.all_reduce_s) * 1e3:.2f}" if rank.all_reduce_s else "-"
        line = f"{rank.rank:>4}  {rank.host:<16}  {rank.device:<7}  {rank.matmul_tflops:>14.3f}  {reduced:>13}"
        lines.append(f"{line}  {rank.error}".rstrip())
    if result.time_s is not None:
        lines.append(
            f"{result.backend}: {result.num_bytes / 2**20:g} MiB over {result.world_size} ranks in "
            f"{result.time_s * 1e3:.2f} ms, {result.algbw_gb_s:.3f} GB/s algorithm, {result.busbw_gb_s:.3f} GB/s bus"
        )
    if result.missing:
        came = ", ".join(_named(result, sorted(result.came)))
        silent = _named(result, result.missing)
        lines.append(f"missing of {result.world_size}: {', '.join(silent)}; these came: {came}")
    for what, numbers in (("slow", result.slow), ("wrong sum", result.wrong)):
        lines += [f"{what}: {', '.join(_named(result, numbers))}"] if numbers else []
    return "\n".join(lines)


def _named(result: Result, ranks: Sequence[int]) -> list[str]:
    return [f"rank {rank}" + (f" ({result.came[rank]})" if rank in result.came else "") for rank in ranks]
