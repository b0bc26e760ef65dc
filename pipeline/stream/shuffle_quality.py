"""How well a stream mixes what lay together in its shards, beside a full permutation and other loaders.

All of it is arithmetic on the numbers of samples; no shard is read. What is counted is the shards from which a rank's
batch comes: where shards were filled as the archive lies, a shard is a place and a season, and a batch of few shards
is a batch of few places.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.stream.order import Order
from pipeline.stream.permutation import FeistelPermutation

Int64s = npt.NDArray[np.int64]

SOME: Final = 64
"""Samples among which shards are counted whatever the batch, so that batches of all sizes compare."""
_WARM_UP: Final = 5
"""Buffers' worth of samples that a loader gives before it is measured: it starts with what came first."""
_SPREAD: Final = 8
"""A loader is asked for so many times the samples that are measured, so that they come from many shards."""


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """How mixed a rank's batches are: means over many of them, and the worst."""

    shards_in_batch: float
    fewest_in_batch: int
    shards_in_64: float
    """Distinct shards among 64 samples: of one batch, or of batches that follow each other where one has less."""
    fewest_in_64: int
    most_in_64: int
    neighbours: float
    """Share of a batch's samples that came with another one of their run: R consecutive samples of a shard."""


class Places:
    """Where samples lie: the shard of each, and its run."""

    def __init__(self, shard_sizes: Sequence[int], run_samples: int) -> None:
        self._ends = np.cumsum(np.asarray(shard_sizes, np.int64))
        self._begins = self._ends - np.asarray(shard_sizes, np.int64)
        self._run_samples = run_samples

    def shards(self, samples: Int64s) -> Int64s:
        """The shards of samples."""
        shards: Int64s = np.searchsorted(self._ends, samples, side="right")
        return shards

    def runs(self, samples: Int64s) -> Int64s:
        """The runs of samples, each named by its first sample."""
        return samples - (samples - self._begins[self.shards(samples)]) % self._run_samples

    def lengths(self, runs: Int64s) -> Int64s:
        """Samples of runs; the last run of a shard may be short."""
        lengths: Int64s = np.minimum(self._ends[self.shards(runs)] - runs, self._run_samples)
        return lengths


def mixing(groups: Iterator[Int64s], places: Places, seed: int = 0) -> Mixing:
    """The mixing of groups of batches, each (batches that follow each other, samples), of at least 64 samples.

    The first batch of a group is measured as the batch, 64 samples drawn from the group as the 64.
    """
    draw = np.random.default_rng(seed)
    in_batch, in_64, neighbours = [], [], []
    for group in groups:
        in_batch.append(len(np.unique(places.shards(group[0]))))
        drawn = draw.permutation(group.reshape(-1))[:SOME]
        in_64.append(len(np.unique(places.shards(drawn))))
        _, of_sample, counts = np.unique(places.runs(group[0]), return_inverse=True, return_counts=True)
        neighbours.append(np.mean(counts[of_sample] > 1))
    return Mixing(
        shards_in_batch=float(np.mean(in_batch)),
        fewest_in_batch=min(in_batch),
        shards_in_64=float(np.mean(in_64)),
        fewest_in_64=min(in_64),
        most_in_64=max(in_64),
        neighbours=float(np.mean(neighbours)),
    )


def batches_in_group(batch_size: int) -> int:
    """Batches of this size that have 64 samples together."""
    return -(-SOME // batch_size)


def groups_of_order(order: Order, ranks: int, num: int, seed: int = 0) -> Iterator[Int64s]:
    """Up to `num` groups of a rank's batches, spread evenly over the first epoch, each of a rank drawn at random."""
    draw = np.random.default_rng(seed)
    steps = batches_in_group(order.settings.global_batch // ranks)
    last = order.num_samples // order.settings.global_batch - steps
    for step in np.unique(np.linspace(0, max(last, 0), num).astype(int)).tolist():
        rank = int(draw.integers(ranks))
        yield np.stack([order.rank_slice(step + more, rank, ranks).sample_id for more in range(steps)])


def groups_of_permutation(num_samples: int, batch_size: int, num: int, seed: int = 0) -> Iterator[Int64s]:
    """`num` groups of batches that follow each other in a full permutation of all samples."""
    permutation = FeistelPermutation(num_samples, seed)
    shape = (batches_in_group(batch_size), batch_size)
    for number in range(num):
        begin = number * shape[0] * shape[1]
        yield permutation((begin + np.arange(shape[0] * shape[1])) % num_samples).reshape(shape)


def groups_of_loader(
    shard_sizes: Sequence[int], buffer: int, batch_size: int, num: int, *, replace: bool, seed: int = 0
) -> Iterator[Int64s]:
    """`num` groups of the batches of one worker that reads whole shards, through a shuffle buffer.

    Shards come in random order, pass after pass, or with `replace` are drawn anew each time (ResampledShards). The
    buffer is full, as it is in the middle of an epoch: a sample drawn from it is replaced by the next one read.
    """
    draw = np.random.default_rng(seed)
    shape = (batches_in_group(batch_size), batch_size)
    length = shape[0] * shape[1]
    warm_up = _WARM_UP * buffer
    read = _read_shards(shard_sizes, warm_up + num * length * _SPREAD + buffer, draw, replace)
    given = buffer_shuffle(read, buffer, draw)[warm_up:]
    for begin in range(0, num * length * _SPREAD, length * _SPREAD):
        yield given[begin : begin + length].reshape(shape)


def buffer_shuffle(samples: Int64s, buffer: int, draw: np.random.Generator) -> Int64s:
    """What a buffer of `buffer` samples gives while it can be refilled: len(samples) - buffer of them."""
    place = draw.integers(buffer, size=len(samples) - buffer)
    # What is drawn from a place is what was put there after the draw before: sample `buffer` further on than that.
    by_place = np.argsort(place, kind="stable")
    source = place.copy()
    again = place[by_place[1:]] == place[by_place[:-1]]
    source[by_place[1:][again]] = by_place[:-1][again] + buffer
    given: Int64s = samples[source]
    return given


def expected_shards(shard_sizes: Sequence[int], draws: int) -> float:
    """Distinct shards among `draws` samples of a full permutation, on average: hypergeometric, exact."""
    total = int(np.sum(shard_sizes))
    draws = min(draws, total)
    sizes, counts = np.unique(np.asarray(shard_sizes, np.int64), return_counts=True)
    left = total - np.arange(draws)
    missed = np.prod(np.maximum(left - sizes[:, None], 0) / left, axis=1)
    return float(np.sum(counts * (1 - missed)))


def _read_shards(shard_sizes: Sequence[int], length: int, draw: np.random.Generator, replace: bool) -> Int64s:
    """The first `length` samples of shards that are read one after the other."""
    sizes = np.asarray(shard_sizes, np.int64)
    begins = np.cumsum(sizes) - sizes
    passes = -(-length // int(sizes.sum()))
    if replace:
        # Draws differ in length; twice the mean number of them is enough, or else the last ones are drawn again.
        enough = 2 * -(-length * len(sizes) // int(sizes.sum())) + len(sizes)
        shards = draw.integers(len(sizes), size=enough)
    else:
        shards = np.concatenate([draw.permutation(len(sizes)) for _ in range(passes)])
    ends = np.cumsum(sizes[shards])
    shards = shards[: int(np.searchsorted(ends, length)) + 1]
    starts = np.cumsum(sizes[shards]) - sizes[shards]
    read: Int64s = np.repeat(begins[shards] - starts, sizes[shards]) + np.arange(int(sizes[shards].sum()))
    return np.resize(read, length)
