"""The rows of a plan beside the data set while it is built, so that any worker on any node finds those of its shard."""

from typing import Final

import pyarrow as pa

from sharding.plan import Plan, PlannedShard
from sharding.store import Store

BUILD_FOLDER: Final = ".build"
_SHARDS_A_PART: Final = 16


def part_of(number: int, digest: str) -> str:
    """The file that holds the rows of the shard `number` of a plan."""
    return f"{BUILD_FOLDER}/plan-{digest[:16]}/{number // _SHARDS_A_PART:06d}.arrow"


def write_plan(store: Store, plan: Plan) -> None:
    """Write the parts that are not there yet: Arrow files with a record batch a shard."""
    for first in range(0, len(plan.shards), _SHARDS_A_PART):
        path = part_of(first, plan.digest)
        if not store.exists(path):
            store.write(path, _part(plan.table, plan.shards[first : first + _SHARDS_A_PART]))


def read_rows(store: Store, number: int, digest: str) -> pa.Table:
    """The rows of the shard `number`."""
    with pa.ipc.open_file(pa.BufferReader(store.read(part_of(number, digest)))) as part:
        return pa.Table.from_batches([part.get_batch(number % _SHARDS_A_PART)])


def _part(table: pa.Table, shards: tuple[PlannedShard, ...]) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as file:
        for shard in shards:
            rows = table.slice(shard.start, shard.num_pairs).combine_chunks()
            file.write_batch(rows.to_batches(max_chunksize=max(len(rows), 1))[0])
    content: bytes = sink.getvalue().to_pybytes()
    return content
