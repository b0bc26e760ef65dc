"""Which sample is which row, and which rows make a shard and a forward pass: arithmetic, the same on every rank."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

SHARD_BYTES: Final = 32 << 20
"""Of embeddings, before compression: one object of a store, and what a kill costs at most."""
SHARD_ROWS: Final = 4096
CHUNK_BYTES: Final = 1 << 20
"""What a reader decodes at a time."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """The samples of one forward pass."""

    split: str
    first: int
    last: int
    """Samples [first, last) of the split."""
    row: int
    """Row of the first."""
    shard: int
    ends_shard: bool
    """Whether the shard is whole behind it."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of a store."""

    splits: Mapping[str, int]
    """Samples of each split, in the order of the rows."""
    batch_size: int
    shard_rows: int
    """Rows of a shard; the last one may have fewer."""

    @property
    def num_rows(self) -> int:
        """Samples of all splits."""
        return sum(self.splits.values())

    @property
    def num_shards(self) -> int:
        """Shards of each array."""
        return -(-self.num_rows // self.shard_rows)

    def of_shard(self, shard: int) -> tuple[int, int]:
        """Its rows [first, last)."""
        return shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.num_rows)

    def passes(self, shards: Iterable[int]) -> Iterator[Pass]:
        """The forward passes that make these shards, in order."""
        for shard in shards:
            first, last = self.of_shard(shard)
            begin = 0
            for split, count in self.splits.items():
                low, high = max(first, begin), min(last, begin + count)
                for row in range(low, high, self.batch_size):
                    end = min(row + self.batch_size, high)
                    yield Pass(
                        split=split,
                        first=row - begin,
                        last=end - begin,
                        row=row,
                        shard=shard,
                        ends_shard=end == last,
                    )
                begin += count

    def share(self, shards: list[int], rank: int, world_size: int) -> list[int]:
        """Those of the shards that a rank writes: neighbours, so that it reads neighbouring samples."""
        return shards[len(shards) * rank // world_size : len(shards) * (rank + 1) // world_size]


def choose_shard_rows(row_bytes: int, batch_size: int) -> int:
    """Rows of a shard: whole batches, in at most SHARD_BYTES and SHARD_ROWS where one batch is not more."""
    wanted = min(SHARD_BYTES // max(row_bytes, 1), SHARD_ROWS)
    return max(wanted // batch_size, 1) * batch_size


def choose_chunk_rows(row_bytes: int, shard_rows: int) -> int:
    """Rows of a chunk: the largest divisor of a shard's rows that takes at most CHUNK_BYTES."""
    most = max(CHUNK_BYTES // max(row_bytes, 1), 1)
    return next(rows for rows in range(min(most, shard_rows), 0, -1) if shard_rows % rows == 0)
