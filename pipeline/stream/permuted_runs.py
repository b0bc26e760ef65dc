"""The runs of a split in the order of an epoch, without a list of them.

All runs have R samples but the last one of a shard, which has what is left. The full ones are permuted by a Feistel
network; the short ones, at most one a shard, by another, and lie evenly among the full ones. So what is stored is of
the size of the list of shards, and of 100 million samples an epoch is set up in a tenth of a second.
"""

import numpy as np

from pipeline.stream.permutation import FeistelPermutation, Int64s, derive_key


class PermutedRuns:
    """Places in [0, samples) to samples, and back by run."""

    def __init__(self, shard_sizes: Int64s, run_samples: int, key: int) -> None:
        full, rest = np.divmod(shard_sizes, run_samples)
        self._length = run_samples
        self._begin = np.cumsum(shard_sizes) - shard_sizes
        self._full_end = np.cumsum(full)
        self._num_full = int(self._full_end[-1])
        self._full = FeistelPermutation(max(self._num_full, 1), derive_key(key, "runs"))
        with_rest = np.flatnonzero(rest)
        order = FeistelPermutation(max(len(with_rest), 1), derive_key(key, "short runs"))
        self._short_shard = with_rest[order(np.arange(len(with_rest)))]
        short = rest[self._short_shard]
        self._short_length = short
        self._short_start = self._begin[self._short_shard] + full[self._short_shard] * run_samples
        number = np.arange(1, len(short) + 1)
        self._full_before = number * self._num_full // (len(short) + 1)
        """Full runs that come before each short one."""
        self._short_sum = np.concatenate([[0], np.cumsum(short)])
        self._short_place = self._full_before * run_samples + self._short_sum[:-1]

    def sample_ids(self, places: Int64s) -> Int64s:
        """The sample at each place."""
        ids = np.empty_like(places)
        before = np.searchsorted(self._short_place, places, side="right")
        is_short = np.zeros(len(places), np.bool_)
        if len(self._short_place):
            last = np.maximum(before - 1, 0)
            inside = places - self._short_place[last]
            is_short = (before > 0) & (inside < self._short_length[last])
            ids[is_short] = self._short_start[last[is_short]] + inside[is_short]
        full = places[~is_short] - self._short_sum[before[~is_short]]
        run = self._full(full // self._length)
        shard = np.searchsorted(self._full_end, run, side="right")
        first = np.where(shard > 0, self._full_end[shard - 1], 0)
        ids[~is_short] = self._begin[shard] + (run - first) * self._length + full % self._length
        return ids

    def place_of(self, first_sample: int) -> tuple[int, int]:
        """The place of the first sample of a run, and the run's length."""
        shard = int(np.searchsorted(self._begin, first_sample, side="right")) - 1
        first = int(self._full_end[shard - 1]) if shard else 0
        run = first + (first_sample - int(self._begin[shard])) // self._length
        if run < self._full_end[shard]:
            number = self._full.place_of(run)
            before = int(np.searchsorted(self._full_before, number, side="right"))
            return number * self._length + int(self._short_sum[before]), self._length
        short = int(np.flatnonzero(self._short_shard == shard)[0])
        return int(self._short_place[short]), int(self._short_length[short])
