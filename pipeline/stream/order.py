"""The order of samples as arithmetic: position -> sample, for every epoch, with no state and no file.

Each shard is cut into runs of R consecutive samples (one ranged read each). An epoch permutes the runs with a keyed
Feistel network, cuts the permuted list into C streams of equal length and permutes the samples within windows of
each stream. Position p of an epoch is place p // C of stream p mod C. The endless sequence of samples has the global
position epoch * N + p; the global batch that starts at s holds positions [s, s + G), sorted by (epoch, stream,
place), and a rank takes a contiguous slice of it. So a rank works on few streams, hence on few runs at a time, and
the global batches do not depend on the number of ranks.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from sharding.errors import ConfigError

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

MAX_STREAMS: Final = 512
RUN_BYTES: Final = 10_000_000
"""What one ranged read should fetch: below it an object store's latency counts, above it only memory grows."""
MIN_RUNS_PER_STREAM: Final = 16

_AT_A_TIME: Final = 4096
"""Samples of a rank whose places are computed together: numpy takes a millisecond for 64 and two for these."""
_ROUNDS: Final = 8
_CHUNK: Final = 1 << 14
"""Elements permuted at a time: the temporaries stay in the cache of a core."""
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)
_ONE: Final = np.uint64(1)
_HIGH: Final = np.uint64(32)
_ROUND_OFFSETS: Final = np.arange(1, _ROUNDS + 1, dtype=np.uint64) * _GOLDEN


def derive_key(*parts: str | int) -> int:
    """A 64-bit key from anything that distinguishes one use from another."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _mix(x: UInt64s) -> UInt64s:
    """SplitMix64's finaliser (Steele et al. 2014): every bit of the input changes half of the output's."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    mixed: UInt64s = x ^ (x >> np.uint64(31))
    return mixed


def _half_bits(n: npt.NDArray[np.integer]) -> UInt64s:
    """Half the width of the smallest even-width domain that holds [0, n); at least 2, which mixes tiny domains."""
    # frexp is exact: for 1 <= x < 2**53 its exponent is the bit length of x.
    bits = np.frexp(np.maximum(np.asarray(n) - 1, 1).astype(np.float64))[1]
    half: UInt64s = np.maximum((bits + 1) // 2, 2).astype(np.uint64)
    return half


def permute(positions: Int64s, sizes: Int64s, keys: UInt64s) -> Int64s:
    """Each position's image under the keyed permutation of [0, size) that belongs to it.

    The three arrays have one shape: every element has its own permutation, so that one call serves a batch that
    touches hundreds of windows. Positions must lie in [0, size), sizes below 2**53.
    """
    images = np.empty(positions.size, np.int64)
    for begin in range(0, positions.size, _CHUNK):
        chunk = slice(begin, begin + _CHUNK)
        images[chunk] = _permute(positions[chunk], sizes[chunk], keys[chunk])
    return images


def _permute(positions: Int64s, sizes: Int64s, keys: UInt64s) -> Int64s:
    half = _half_bits(sizes)
    mask = (_ONE << half) - _ONE
    limit = sizes.astype(np.uint64)
    round_keys = _mix(keys + _ROUND_OFFSETS[:, None])
    x = _network(positions.astype(np.uint64), half, mask, round_keys)
    outside = np.flatnonzero(x >= limit)
    while outside.size:  # cycle walking: outside [0, size) the network is applied again; it always comes back
        walked = _network(x[outside], half[outside], mask[outside], round_keys[:, outside])
        x[outside] = walked
        outside = outside[walked >= limit[outside]]
    return x.astype(np.int64)


def _network(x: UInt64s, half: UInt64s, mask: UInt64s, round_keys: UInt64s) -> UInt64s:
    left, right = x >> half, x & mask
    for round_key in round_keys:
        mixed = (right ^ round_key) * _GOLDEN
        mixed ^= mixed >> _HIGH
        mixed *= _MIX_1
        mixed >>= _HIGH
        mixed &= mask
        mixed ^= left
        left, right = right, mixed
    return (left << half) | right


class FeistelPermutation:
    """A permutation of [0, n) chosen by `key`; any element is computed on its own, nothing is stored."""

    def __init__(self, n: int, key: int) -> None:
        self.n = n
        self.key = key

    def __call__(self, positions: npt.ArrayLike) -> Int64s:
        """The images of `positions`, an array of integers in [0, n) of any shape."""
        flat = np.asarray(positions, np.int64)
        count = flat.size
        images = permute(
            flat.reshape(-1), np.full(count, self.n, np.int64), np.full(count, np.uint64(self.key), np.uint64)
        )
        return images.reshape(flat.shape)


@dataclass(frozen=True, kw_only=True)
class OrderSettings:
    """What the order depends on besides the data set; part of the state, because a change reorders everything."""

    global_batch: int
    """G: samples of one step over all ranks and micro-batches."""
    num_streams: int
    """C: streams an epoch is cut into; divides G; a multiple of the number of nodes lets each run be fetched once."""
    run_samples: int
    """R: consecutive samples of a shard that are fetched together."""
    window: int
    """w: samples of one stream that are shuffled among each other."""
    seed: int = 0
    """Seed of the order."""

    def __post_init__(self) -> None:
        for name in ("global_batch", "num_streams", "run_samples", "window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.global_batch % self.num_streams:
            raise ConfigError(
                f"num_streams {self.num_streams} does not divide the global batch {self.global_batch}; "
                f"take {_streams_for(self.global_batch)}"
            )

    @classmethod
    def choose(
        cls,
        shard_sizes: Sequence[int],
        sample_bytes: float,
        global_batch: int,
        seed: int = 0,
        window_gib: float = 2.0,
    ) -> "OrderSettings":
        """The defaults for a split whose samples take `sample_bytes` in the store.

        C is the largest power of two up to 512 that divides G. R is about 10 MB of samples, less where the split is
        so small that a stream would have fewer than 16 runs, and at most a third of the stream's share of the window
        budget. w is that share less two runs, because a window touches up to two runs that it does not fill: so one
        node that holds all streams needs `window_gib` of memory, n nodes need an n-th each.
        """
        if global_batch < 1:
            raise ConfigError(f"the global batch is {global_batch}; it must be at least 1")
        streams = _streams_for(global_batch)
        share = max(int(window_gib * 2**30 / (streams * max(sample_bytes, 1.0))), 1)
        run = min(
            round(RUN_BYTES / max(sample_bytes, 1.0)),
            int(sum(shard_sizes)) // (MIN_RUNS_PER_STREAM * streams),
            share // 3,
        )
        run = max(run, 1)
        return cls(
            global_batch=global_batch,
            num_streams=streams,
            run_samples=run,
            window=max(share - 2 * run, run),
            seed=seed,
        )


def _streams_for(global_batch: int) -> int:
    return min(global_batch & -global_batch, MAX_STREAMS)


@dataclass(frozen=True)
class Runs:
    """A split's samples cut into runs: ids [start, start + length), never across a shard's end."""

    start: Int64s
    length: Int64s

    @classmethod
    def cut(cls, shard_sizes: Sequence[int], run_samples: int) -> "Runs":
        """The runs of shards with these numbers of samples, in order."""
        sizes = np.asarray(shard_sizes, np.int64)
        counts = -(-sizes // run_samples)
        shard_of_run = np.repeat(np.arange(len(sizes)), counts)
        place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        start = (np.cumsum(sizes) - sizes)[shard_of_run] + place * run_samples
        length = np.minimum(sizes[shard_of_run] - place * run_samples, run_samples)
        return cls(start, length)


class EpochOrder:
    """One epoch's sequence of sample ids; O(number of runs) to set up, O(1) for each position asked."""

    def __init__(self, runs: Runs, settings: OrderSettings, key: int) -> None:
        self.num_samples = int(runs.length.sum())
        self._streams = settings.num_streams
        self._window = settings.window
        self._key = np.uint64(derive_key(key, "window"))
        self._runs = runs
        self._permutation = FeistelPermutation(len(runs.start), derive_key(key, "runs"))
        permuted = self._permutation(np.arange(len(runs.start)))
        self._run_start = runs.start[permuted]
        self._run_end_place = np.cumsum(runs.length[permuted])
        self._run_place = self._run_end_place - runs.length[permuted]
        quotient, remainder = divmod(self.num_samples, self._streams)
        stream = np.arange(self._streams)
        self._stream_length = quotient + (stream < remainder)
        self._stream_start = stream * quotient + np.minimum(stream, remainder)

    def sample_ids(self, positions: Int64s) -> Int64s:
        """The samples at `positions`, each in [0, num_samples)."""
        stream, place = positions % self._streams, positions // self._streams
        # Streams start their first window at different places, so that they do not all need new runs at one time.
        shift = stream * self._window // self._streams
        window = (place + shift) // self._window
        first = np.maximum(window * self._window - shift, 0)
        last = np.minimum((window + 1) * self._window - shift, self._stream_length[stream])
        keys = _mix(_mix(self._key + stream.astype(np.uint64)) + window.astype(np.uint64))
        shuffled = self._stream_start[stream] + first + permute(place - first, last - first, keys)
        run = np.searchsorted(self._run_end_place, shuffled, side="right")
        ids: Int64s = self._run_start[run] + shuffled - self._run_place[run]
        return ids

    @cached_property
    def spans_of_runs(self) -> tuple[Int64s, Int64s]:
        """By run, in the order of the shards: the first position that it can be needed at, and the last one.

        Samples move within the windows of a stream, so a run is used within the windows that it touches.
        """
        number = np.empty(len(self._runs.start), np.int64)
        number[self._permutation(np.arange(len(number)))] = np.arange(len(number))
        begin, end = self._run_place[number], self._run_end_place[number] - 1
        stream = np.searchsorted(self._stream_start, np.stack([begin, end]), side="right") - 1
        depth = np.stack([begin, end]) - self._stream_start[stream]
        first = np.maximum(depth[0] - self._window, 0) * self._streams + stream[0]
        last = (depth.max(axis=0) + self._window) * self._streams + stream[1]
        # Where a cut between two streams falls inside, the run ends one and begins the other, or more.
        is_cut = stream[0] != stream[1]
        first[is_cut] = np.minimum(first[is_cut], stream[0][is_cut] + 1)
        last[is_cut] = np.maximum(last[is_cut], int(self._stream_length.max()) * self._streams)
        return first, last

    def span_of_run(self, first_sample: int) -> tuple[int, int]:
        """The first position at which the run that holds a sample can be needed, and the last one."""
        run = int(np.searchsorted(self._runs.start, first_sample, side="right")) - 1
        first, last = self.spans_of_runs
        return int(first[run]), int(last[run])

    def sorted_positions(self, begin: int, end: int, low: int, high: int) -> Int64s:
        """Places `low` to `high` of the positions [begin, end) sorted by (stream, place); O(C + high - low)."""
        stream = np.arange(self._streams)
        first_place = -((stream - begin) // self._streams)
        counts = -((stream - end) // self._streams) - first_place
        ends = np.cumsum(counts)
        index = np.arange(low, high)
        owner = np.searchsorted(ends, index, side="right")
        positions: Int64s = (first_place[owner] + index - (ends - counts)[owner]) * self._streams + owner
        return positions


@dataclass(frozen=True)
class OrderedSamples:
    """Samples of a batch in the order of its slots."""

    epoch: Int64s
    position: Int64s
    """Position within the epoch, in [0, N)."""
    sample_id: Int64s
    """Number of the sample in the split, in the order of shards and records."""


class Order:
    """The endless sequence of a split's global batches."""

    def __init__(self, shard_sizes: Sequence[int], settings: OrderSettings, fingerprint: str, split: str) -> None:
        self.settings = settings
        self.num_samples = int(sum(shard_sizes))
        if self.num_samples < 1:
            raise ConfigError(f"the split '{split}' has no samples; choose another")
        runs = Runs.cut(shard_sizes, settings.run_samples)

        # A batch spans two epochs at most, unless it is larger than the data set: then epochs are built in turn.
        @lru_cache(maxsize=2)
        def epoch_order(epoch: int) -> EpochOrder:
            return EpochOrder(runs, settings, derive_key(fingerprint, split, settings.seed, epoch))

        self.epoch_order = epoch_order

    def batch(self, number: int) -> OrderedSamples:
        """Global batch `number`: the positions [number * G, (number + 1) * G)."""
        return self.slice_at(number * self.settings.global_batch)

    def rank_slice(self, number: int, rank: int, world_size: int) -> OrderedSamples:
        """The samples of global batch `number` that belong to `rank`; ConfigError unless all ranks get as many."""
        return self.slice_at(number * self.settings.global_batch, rank, world_size)

    def slice_at(self, samples_seen: int, rank: int = 0, world_size: int = 1) -> OrderedSamples:
        """The part of `rank` of the global batch that starts at global position `samples_seen`."""
        return next(self.slices_from(samples_seen, rank, world_size))

    def slices_from(self, samples_seen: int, rank: int = 0, world_size: int = 1) -> Iterator[OrderedSamples]:
        """`slice_at` for this global batch and all that follow; many are computed at a time, the first one alone."""
        check_world_size(self.settings.global_batch, rank, world_size)
        ahead = 1
        most = max(_AT_A_TIME * world_size // self.settings.global_batch, 1)
        while True:
            starts = range(samples_seen, samples_seen + ahead * self.settings.global_batch, self.settings.global_batch)
            yield from self._slices(starts, rank, world_size)
            samples_seen = starts.stop
            ahead = min(2 * ahead, most)

    def next_use(self, first_sample: int, samples_seen: int) -> int:
        """How many samples of all ranks are given before the run that holds a sample may be needed; 0: now."""
        epoch, position = divmod(samples_seen, self.num_samples)
        begin, end = self.epoch_order(epoch).span_of_run(first_sample)
        if position <= end:
            return max(begin - position, 0)
        begin, _ = self.epoch_order(epoch + 1).span_of_run(first_sample)
        return self.num_samples - position + begin

    def _slices(self, starts: range, rank: int, world_size: int) -> list[OrderedSamples]:
        per_rank = self.settings.global_batch // world_size
        parts = [self._positions(start, rank * per_rank, (rank + 1) * per_rank) for start in starts]
        epochs, positions = (np.concatenate([part[i] for part in parts]) for i in range(2))
        ids = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            ids[here] = self.epoch_order(epoch).sample_ids(positions[here])
        cuts = [slice(i, i + per_rank) for i in range(0, len(ids), per_rank)]
        return [OrderedSamples(epochs[cut], positions[cut], ids[cut]) for cut in cuts]

    def _positions(self, samples_seen: int, low: int, high: int) -> tuple[Int64s, Int64s]:
        """Epochs and positions of the slots [low, high) of the global batch that starts at `samples_seen`."""
        epochs, positions = [], []
        offset = 0  # of the current epoch's first sample within the global batch
        while offset < high:
            epoch, begin = divmod(samples_seen + offset, self.num_samples)
            end = min(begin + self.settings.global_batch - offset, self.num_samples)
            if offset + end - begin > low:
                order = self.epoch_order(epoch)
                part = order.sorted_positions(begin, end, max(low - offset, 0), min(high - offset, end - begin))
                epochs.append(np.full(len(part), epoch, np.int64))
                positions.append(part)
            offset += end - begin
        return np.concatenate(epochs), np.concatenate(positions)


def check_world_size(global_batch: int, rank: int, world_size: int) -> None:
    """ConfigError, with the nearest global batches that work, unless `world_size` ranks share it equally."""
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank {rank} is not one of the {world_size} ranks, which count from 0")
    if global_batch % world_size:
        lower = global_batch - global_batch % world_size
        nearest = f"{lower} or {lower + world_size}" if lower else f"{world_size}"
        raise ConfigError(
            f"a global batch of {global_batch} samples cannot be shared equally by {world_size} ranks; take {nearest}"
        )
