"""The order of a mixture's samples as arithmetic: every data set in its own exact order, in exact shares.

A global batch is cut into groups of equal size, as many as a job has nodes or about so, and all groups mix alike: of
the first m samples that a group has had, `Shares.divide(m)` says how many are of which data set. A data set's own
endless sequence (`pipeline.stream.order`: epoch * N + position, in which each sample comes once an epoch whatever the
other sets do) is dealt out to the groups in turn: of g groups, group i has the places i, g + i, 2 g + i, ... So nothing
is drawn, and every batch has each set's share of it to a sample or two.

A batch's slots are sorted by (group, set, place), and a rank takes a contiguous slice: the ranks of a node read the
streams of one group, which no other node reads, and the global batches do not depend on the number of ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from pipeline.stream.order import STREAMS_PER_GROUP, Order, OrderedSamples, OrderSettings, check_world_size
from pipeline.stream.permutation import Int64s
from pipeline.stream.shares import Shares
from sharding.errors import ConfigError

_AT_A_TIME: Final = 4096
"""Samples whose places are computed together: numpy takes almost as long for a few."""
_AT_LEAST: Final = 16
"""Samples that a batch counts as, so that of a rare set no thousands of batches are computed at a time."""


class MemberOrder(Order):
    """A split's endless sequence, of which any places can be asked for."""

    def samples_at(self, places: Int64s) -> OrderedSamples:
        """The samples at places of the endless sequence, epoch * N + position."""
        epochs, positions = np.divmod(places, self.num_samples)
        ids = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            ids[here] = self.epoch_order(epoch).sample_ids(positions[here])
        return OrderedSamples(epochs, positions, ids)


@dataclass(frozen=True)
class RankPart:
    """What a rank has of one data set in a batch; often nothing."""

    rows: Int64s
    """The slots of the rank's batch, rising."""
    samples: OrderedSamples


def choose_groups(global_batch: int, num_groups: int) -> int:
    """The number of groups: as given, or by default one for each 512 samples or so; ConfigError unless it divides."""
    if num_groups:
        if global_batch % num_groups:
            raise ConfigError(
                f"a mixture's global batch of {global_batch} samples cannot be cut into {num_groups} equal groups; "
                f"make it a multiple of {num_groups}, or set groups=0 to let them be chosen"
            )
        return num_groups
    chosen = OrderSettings.choose([1], 1.0, global_batch).num_groups
    return max(groups for groups in range(1, chosen + 1) if global_batch % groups == 0)


def choose_settings(
    shard_sizes: Sequence[int],
    sample_bytes: float,
    share: float,
    global_batch: int,
    num_groups: int,
    seed: int,
    window_gib: float,
) -> OrderSettings:
    """The order settings of a data set of which a batch has the given share.

    Its share too of the streams and of the windows that a group has: so runs are as long, and as much memory is
    needed, as for a single data set.
    """
    per_group = max(1, round(STREAMS_PER_GROUP * share))
    # `choose` has 64 streams to a group: it is given as many groups as make up the streams, and a budget for each.
    chosen = OrderSettings.choose(
        shard_sizes,
        sample_bytes,
        global_batch,
        seed,
        window_gib * share * STREAMS_PER_GROUP / per_group,
        -(-num_groups * per_group // STREAMS_PER_GROUP),
    )
    return replace(chosen, num_streams=num_groups * per_group, num_groups=num_groups)


class MixtureOrder:
    """The endless sequence of a mixture's global batches."""

    def __init__(self, orders: Sequence[MemberOrder], shares: Shares, global_batch: int, num_groups: int) -> None:
        assert len(orders) == len(shares.parts) and global_batch % num_groups == 0
        self.orders = tuple(orders)
        self.shares = shares
        self.global_batch = global_batch
        self.num_groups = num_groups
        self._group_batch = global_batch // num_groups

    def rank_part(self, step: int, number: int, rank: int = 0, world_size: int = 1) -> RankPart:
        """What `rank` has of data set `number` in global batch `step`."""
        return next(self.rank_parts(step, number, rank, world_size))

    def rank_parts(self, step: int, number: int, rank: int = 0, world_size: int = 1) -> Iterator[RankPart]:
        """`rank_part` of global batch `step` and of all that follow; many are computed at a time, the first alone."""
        check_world_size(self.global_batch, rank, world_size)
        order, ahead = self.orders[number], 1
        while True:
            parts = [self._places(batch, number, rank, world_size) for batch in range(step, step + ahead)]
            samples = order.samples_at(np.concatenate([places for _, places in parts]))
            end = 0
            for rows, places in parts:
                cut = slice(end, end := end + len(places))
                own = OrderedSamples(samples.epoch[cut], samples.position[cut], samples.sample_id[cut])
                yield RankPart(rows, own)
            step += ahead
            ahead = min(2 * ahead, max(1, _AT_A_TIME // max(self.most(number, rank, world_size), _AT_LEAST)))

    def rank_rows(self, step: int, rank: int = 0, world_size: int = 1) -> list[Int64s]:
        """The slots of `rank` in global batch `step` that each data set has."""
        return [self._places(step, number, rank, world_size)[0] for number in range(len(self.orders))]

    def most(self, number: int, rank: int, world_size: int) -> int:
        """The largest number of samples of data set `number` that `rank` can have in a batch; 0: it never has any."""
        first, last = self.shares.reach(number, self._group_batch)
        return sum(max(min(last, high) - max(first, low), 0) for _, low, high in self._groups(rank, world_size))

    def num_groups_of(self, number: int, rank: int, world_size: int) -> int:
        """Of how many groups `rank` can have samples of data set `number`."""
        first, last = self.shares.reach(number, self._group_batch)
        return sum(min(last, high) > max(first, low) for _, low, high in self._groups(rank, world_size))

    def counts(self, samples_seen: int) -> list[int]:
        """How many samples of each data set are among the first `samples_seen` of the mixture, a multiple of G."""
        return [self.num_groups * count for count in self.shares.divide(samples_seen // self.num_groups)]

    def next_use(self, number: int, first_sample: int, samples_seen: int) -> int:
        """How many samples of the mixture are given before the run of a set's sample may be needed; 0: now."""
        ahead = self.orders[number].next_use(first_sample, self.counts(samples_seen)[number])
        return ahead * self.shares.whole // self.shares.parts[number]

    def epochs(self, samples_seen: int) -> list[float]:
        """How often each data set has been passed after so many samples: 2.5 is two epochs and a half."""
        return [count / order.num_samples for count, order in zip(self.counts(samples_seen), self.orders, strict=True)]

    def _groups(self, rank: int, world_size: int) -> Iterator[tuple[int, int, int]]:
        """The groups of which a rank has slots, and the first and last of these within the group."""
        per_rank = self.global_batch // world_size
        for group in range(rank * per_rank // self._group_batch, -(-(rank + 1) * per_rank // self._group_batch)):
            low, high = (edge * per_rank - group * self._group_batch for edge in (rank, rank + 1))
            yield group, max(low, 0), min(high, self._group_batch)

    def _places(self, step: int, number: int, rank: int, world_size: int) -> tuple[Int64s, Int64s]:
        """Slots of the rank's batch, and the places in the data set's endless sequence that they hold."""
        begins, ends = (self.shares.divide(batch * self._group_batch) for batch in (step, step + 1))
        start = sum(ends[:number]) - sum(begins[:number])
        rows, places = [_NONE], [_NONE]
        row = 0
        for group, low, high in self._groups(rank, world_size):
            first, last = max(low - start, 0), min(high - start, ends[number] - begins[number])
            if first < last:
                index = np.arange(first, last)
                rows.append(row + start + index - low)
                places.append((begins[number] + index) * self.num_groups + group)
            row += high - low
        return np.concatenate(rows), np.concatenate(places)


_NONE: Final = np.empty(0, np.int64)
