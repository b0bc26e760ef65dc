"""Bandwidths and blame of a probe, from its ranks' figures."""

from dataclasses import replace

import pytest

from pipeline.all_reduce import RankFigures
from pipeline.probe_result import describe, judge

CAME = {rank: f"n{rank // 2 + 1}" for rank in range(4)}
FOUR = [
    RankFigures(
        rank=rank,
        host=CAME[rank],
        device="cuda:0",
        matmul_tflops=600.0,
        all_reduce_s=[0.010 + rank / 1000, 0.020, 0.015],
        is_right=True,
    )
    for rank in range(4)
]


def test_bandwidths_are_those_of_nccl_tests():
    result = judge(FOUR, CAME, 4, 64 * 2**20)
    assert result.is_well and result.backend == "nccl"
    assert result.time_s == 0.015  # of 0.013 (the slowest of the first round), 0.020 and 0.015
    assert result.algbw_gb_s == pytest.approx(64 * 2**20 / 0.015 / 1e9)
    assert result.busbw_gb_s == pytest.approx(result.algbw_gb_s * 1.5)
    assert "64 MiB over 4 ranks in 15.00 ms" in describe(result)


@pytest.mark.parametrize(("tflops", "slow"), [(299.0, [2]), (301.0, [])])
def test_slow_is_below_half_of_the_median(tflops, slow):
    figures = [replace(rank, matmul_tflops=tflops) if rank.rank == 2 else rank for rank in FOUR]
    result = judge(figures, CAME, 4, 4)
    assert result.slow == slow and result.is_well == (not slow)
    assert ("slow: rank 2 (n2)" in describe(result)) == bool(slow)


def test_a_wrong_sum_is_told():
    figures = [replace(rank, is_right=rank.rank != 3) for rank in FOUR]
    result = judge(figures, CAME, 4, 4)
    assert not result.is_well and "wrong sum: rank 3 (n2)" in describe(result)


def test_a_rank_that_could_not_measure_leaves_no_bandwidth():
    figures = [*FOUR[:3], RankFigures(rank=3, host="n2", error="CUDA error: uncorrectable ECC error encountered")]
    result = judge(figures, CAME, 4, 4)
    assert not result.is_well and result.busbw_gb_s is None and result.missing == []
    assert "uncorrectable ECC error" in describe(result)


def test_who_came_and_then_fell_silent_is_missing_with_its_host():
    result = judge(FOUR[:3], CAME, 4, 4)
    assert result.missing == [3] and "missing of 4: rank 3 (n2); these came" in describe(result)


def test_who_did_not_come_is_missing_and_the_others_are_not():
    result = judge([], {0: "n1", 2: "n2"}, 4, 4)
    assert result.missing == [1, 3]
    assert "missing of 4: rank 1, rank 3; these came: rank 0 (n1), rank 2 (n2)" in describe(result)
