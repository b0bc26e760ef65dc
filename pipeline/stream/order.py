"""The order of samples as arithmetic: position -> sample, for every epoch, with no state and no file.

Each shard is cut into runs of R consecutive samples (one ranged read each). An epoch permutes the runs with a keyed
Feistel network, cuts the permuted list into C streams of equal length and permutes the samples within windows of
each stream. Position p of an epoch is place p // C of stream p mod C. The endless sequence of samples has the global
position epoch * N + p; the global batch that starts at s holds the positions [s, s + G). Streams are in groups, as many
as a job has nodes or about so: a batch's slots are sorted by (epoch, group, position), and a rank takes a contiguous
slice. So the ranks of a node share the runs of one group, a rank's samples come from all of its streams, and the global
batches do not depend on the number of ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from pipeline.stream.permutation import Int64s, derive_key, mix, permute
from pipeline.stream.permuted_runs import PermutedRuns
from sharding.errors import ConfigError

STREAMS_PER_GROUP: Final = 64
"""So many runs at least lie open for a batch; with 64 samples a rank, each sample may come from another one."""
GROUP_SAMPLES: Final = 512
"""Of a global batch; what a node of eight GPUs takes of it, by default."""
RUN_BYTES: Final = 10_000_000
"""What one ranged read should fetch: below it an object store's latency counts, above it only memory grows."""
MIN_RUNS_PER_STREAM: Final = 4

_AT_A_TIME: Final = 4096
"""Samples of a rank whose places are computed together: numpy takes 2 ms for 64 and 5 ms for these."""


@dataclass(frozen=True, kw_only=True)
class OrderSettings:
    """What the order depends on besides the data set; part of the state, because a change reorders everything."""

    global_batch: int
    """G: samples of one step over all ranks and micro-batches."""
    num_streams: int
    """C: streams an epoch is cut into."""
    num_groups: int = 1
    """Of streams; divides C. With a multiple of the number of nodes, each run is fetched by one node."""
    run_samples: int
    """R: consecutive samples of a shard that are fetched together."""
    window: int
    """w: samples of one stream that are shuffled among each other."""
    seed: int = 0
    """Seed of the order."""

    def __post_init__(self) -> None:
        for name in ("global_batch", "num_streams", "num_groups", "run_samples", "window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.num_streams % self.num_groups:
            raise ConfigError(f"num_groups {self.num_groups} does not divide the {self.num_streams} streams")

    @classmethod
    def choose(
        cls,
        shard_sizes: Sequence[int],
        sample_bytes: float,
        global_batch: int,
        seed: int = 0,
        window_gib: float = 2.0,
        num_groups: int = 0,
    ) -> "OrderSettings":
        """The defaults for a split whose samples take `sample_bytes` in the store.

        One group for each 512 samples of the global batch, a power of two, unless `num_groups` says otherwise; 64
        streams in each, fewer where the window budget has no room for three samples of each. R is about 10 MB of
        samples, less where the split is so small that a stream would have fewer than 4 runs, and at most a third of
        the stream's share of the group's window budget. w is that share less two runs, because a window touches up to
        two runs that it does not fill: a group's windows take `window_gib`.
        """
        if global_batch < 1:
            raise ConfigError(f"the global batch is {global_batch}; it must be at least 1")
        groups = num_groups or 1 << (max(global_batch // GROUP_SAMPLES, 1).bit_length() - 1)
        held = max(int(window_gib * 2**30 / max(sample_bytes, 1.0)), 1)
        per_group = min(STREAMS_PER_GROUP, 1 << (max(held // 3, 1).bit_length() - 1))
        streams, share = groups * per_group, held // per_group
        run = min(
            round(RUN_BYTES / max(sample_bytes, 1.0)),
            int(sum(shard_sizes)) // (MIN_RUNS_PER_STREAM * streams),
            share // 3,
        )
        run = max(run, 1)
        return cls(
            global_batch=global_batch,
            num_streams=streams,
            num_groups=groups,
            run_samples=run,
            window=max(share - 2 * run, run),
            seed=seed,
        )

    def streams_of_rank(self, world_size: int) -> int:
        """How many streams a rank's slice of a batch may come from."""
        per_group = self.num_streams // self.num_groups
        is_even = self.num_groups % world_size == 0 or world_size % self.num_groups == 0
        touched = -(-self.num_groups // world_size) + (not is_even or self.global_batch % self.num_streams > 0)
        return min(touched * per_group, self.num_streams)


class EpochOrder:
    """One epoch's sequence of sample ids; O(number of shards) to set up, O(1) for each position asked."""

    def __init__(self, shard_sizes: Int64s, settings: OrderSettings, key: int) -> None:
        self.num_samples = int(shard_sizes.sum())
        self._streams = settings.num_streams
        self._groups = settings.num_groups
        self._window = settings.window
        self._key = np.uint64(derive_key(key, "window"))
        self._runs = PermutedRuns(shard_sizes, settings.run_samples, key)
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
        keys = mix(mix(self._key + stream.astype(np.uint64)) + window.astype(np.uint64))
        return self._runs.sample_ids(self._stream_start[stream] + first + permute(place - first, last - first, keys))

    def span_of_run(self, first_sample: int) -> tuple[int, int]:
        """The first position at which the run that begins with a sample can be needed, and the last one.

        Samples move within the windows of a stream, so a run is used within the windows that it touches.
        """
        begin, length = self._runs.place_of(first_sample)
        streams = [int(np.searchsorted(self._stream_start, p, side="right")) - 1 for p in (begin, begin + length - 1)]
        depths = [p - int(self._stream_start[s]) for p, s in zip((begin, begin + length - 1), streams, strict=True)]
        first = max(depths[0] - self._window, 0) * self._streams + streams[0]
        last = (max(depths) + self._window) * self._streams + streams[1]
        if streams[0] != streams[1]:
            # A cut between two streams falls inside: the run ends one and begins the other, or more.
            first = min(first, streams[0] + 1)
            last = max(last, int(self._stream_length.max()) * self._streams)
        return first, last

    def sorted_positions(self, begin: int, end: int, low: int, high: int) -> Int64s:
        """Places `low` to `high` of the positions [begin, end) sorted by (group, position); O(groups + high - low)."""
        group = np.arange(self._groups)
        size = self._streams // self._groups
        first = self._before(begin, group, size)
        counts = self._before(end, group, size) - first
        ends = np.cumsum(counts)
        index = np.arange(low, high)
        owner = np.searchsorted(ends, index, side="right")
        number = first[owner] + index - (ends - counts)[owner]
        positions: Int64s = number // size * self._streams + owner * size + number % size
        return positions

    def _before(self, position: int, group: Int64s, size: int) -> Int64s:
        """How many positions below `position` belong to each group of `size` streams."""
        rounds, rest = divmod(position, self._streams)
        before: Int64s = rounds * size + np.clip(rest - group * size, 0, size)
        return before


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
        sizes = np.asarray(shard_sizes, np.int64)

        # A batch spans two epochs at most, unless it is larger than the data set: then epochs are built in turn.
        @lru_cache(maxsize=2)
        def epoch_order(epoch: int) -> EpochOrder:
            return EpochOrder(sizes, settings, derive_key(fingerprint, split, settings.seed, epoch))

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
