"""One rank's part of the work: its shards, behind the agreement on what is missing and before the commit."""

import contextlib
import hashlib
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import google_crc32c
import numpy as np

from pipeline.config import dump_settings
from pipeline.data_settings import DataSettings
from pipeline.distributed import Ranks, join, leave, say_lost_ranks
from pipeline.embed.arrays import ShardEncoder, forms_of
from pipeline.embed.encode import Encoding
from pipeline.embed.rows import Rows, choose_chunk_rows, choose_shard_rows
from pipeline.embed.settings import FORMAT, EmbedSettings, choose_modalities, choose_splits, identity
from pipeline.embed.store import ROOT, EmbeddingStore
from pipeline.errors import DataError
from pipeline.run_folder import describe_program

if TYPE_CHECKING:
    from pipeline.frozen import FrozenModel

_SILENT_S: Final = 6 * 3600.0
"""A rank that has written its shards waits so long for the others."""
_SAY_EVERY_S: Final = 30.0


def embed(
    given: str, data: DataSettings, settings: EmbedSettings, out: str, device: str, ranks: Ranks
) -> dict[str, Any]:
    """Write this rank's share of what is missing; on rank 0 then the commit. Returns what was done.

    Raises ConfigError when the store is of something else, CheckpointError or DataError when model or data are not
    there, RankError when another rank has gone.
    """
    with _one_thread(), say_lost_ranks(ranks.rank):
        from pipeline.frozen import open_frozen

        frozen = open_frozen(given, data, device, ranks.local_rank)
        modalities = choose_modalities(frozen, settings.modalities)
        encoding = Encoding(frozen=frozen, modalities=modalities, pool=settings.pool, dtype=settings.dtype)
        encoding.check()
        rows = Rows(
            splits=choose_splits(frozen, settings.split),
            batch_size=settings.batch_size,
            shard_rows=settings.shard_samples or choose_shard_rows(encoding.row_bytes, settings.batch_size),
        )
        of = identity(frozen, settings, modalities=modalities, shard_rows=rows.shard_rows)
        labels = frozen.manifest.labels
        encoder = ShardEncoder(
            forms_of(encoding.shape, settings.dtype, labels, encoding.tokens),
            labels,
            rows.num_rows,
            rows.shard_rows,
            choose_chunk_rows(encoding.row_bytes, rows.shard_rows),
        )
        store, group = EmbeddingStore(out), None
        if ranks.world_size > 1:
            import torch

            group = join(torch.device("cpu"), _SILENT_S)
        try:
            todo: list[int] = []
            attributes: dict[str, Any] = {}
            if ranks.is_first:
                todo, attributes = _begin(store, encoder, rows, of, given, frozen)
            todo = _told(todo, group)
            mine = rows.share(todo, ranks.rank, ranks.world_size)
            began = time.perf_counter()
            written = _write(store, encoder, encoding, rows, of, mine)
            if group is not None:
                import torch.distributed as dist

                dist.barrier(group=group)
            seconds = time.perf_counter() - began
            if ranks.is_first:
                attributes = _finish(store, encoder, rows, of, attributes)
        finally:
            if group is not None:
                leave()
        samples = sum(last - first for first, last in map(rows.of_shard, todo))
        return {
            "out": store.store.url,
            "samples": rows.num_rows,
            "splits": dict(rows.splits),
            "modalities": "+".join(modalities),
            "shape": [rows.num_rows, *encoding.shape],
            "dtype": settings.dtype,
            "step": frozen.step,
            "without_a_modality": attributes.get("without_a_modality"),
            "shards": rows.num_shards,
            "shards_written": len(todo),
            "shards_written_by_rank": written,
            "samples_written": samples,
            "seconds": seconds,
            "samples_per_s": samples / seconds if samples else None,
            "ranks": ranks.world_size,
        }


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in one thread: how a CPU adds up depends on how many there are; more ranks use more cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _begin(
    store: EmbeddingStore, encoder: ShardEncoder, rows: Rows, of: dict[str, Any], given: str, frozen: "FrozenModel"
) -> tuple[list[int], dict[str, Any]]:
    """The shards that are missing, and the store's attributes; the store is there afterwards, not yet complete."""
    attributes = store.attributes()
    if attributes is None:
        attributes = {
            "format": FORMAT,
            "complete": False,
            "of": of,
            "shards": rows.num_shards,
            "samples": rows.num_rows,
            "fixed": {path: google_crc32c.value(content) for path, content in encoder.fixed().items()},
            "provenance": _provenance(given, frozen),
        }
        # Before all else, so that what lies there is known for a store of embeddings.
        store.store.write(ROOT, encoder.root(attributes, consolidated=False))
    store.check_same(attributes, of)
    finished = store.finished(of)
    todo = [shard for shard in range(rows.num_shards) if shard not in finished]
    if attributes["complete"] and (todo or not all(store.store.exists(path) for path in encoder.fixed())):
        # A damaged file was taken away.
        attributes = {**attributes, "complete": False}
        store.store.write(ROOT, encoder.root(attributes, consolidated=False))
    if not attributes["complete"]:
        store.clear()
        for path, content in encoder.fixed().items():
            store.store.write(path, content)
    return todo, attributes


def _provenance(given: str, frozen: "FrozenModel") -> dict[str, Any]:
    from pipeline.checkpoint.named import named

    config = dump_settings(named(given).settings())
    return {
        "checkpoint": frozen.title,
        "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
        "data_url": frozen.data.url,
        "absent_bands": list(frozen.absent_bands),
        "normalised_over": frozen.normalised_over,
        **describe_program(),
    }


def _told(todo: list[int], group: Any) -> list[int]:
    """Rank 0's list, on every rank: each looking for itself would see what others have written meanwhile."""
    if group is None:
        return todo
    import torch.distributed as dist

    box = [todo]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]


def _write(
    store: EmbeddingStore, encoder: ShardEncoder, encoding: Encoding, rows: Rows, of: dict[str, Any], mine: list[int]
) -> int:
    """Make and write these shards; the last one is written while the next one is made."""
    began = said = time.monotonic()
    with ThreadPoolExecutor(1, thread_name_prefix="embed-write") as executor:
        under_way: Future[None] | None = None
        for done, (shard, columns) in enumerate(encoding.shards(rows, mine), start=1):
            first, last = rows.of_shard(shard)
            about = {"rows": [first, last], "without_a_modality": int(np.count_nonzero(~columns["complete"]))}
            if under_way is not None:
                under_way.result()
            files = encoder.shard(shard, columns)
            under_way = executor.submit(store.write_shard, shard, files, of, about)
            if time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                left = (said - began) / done * (len(mine) - done)
                print(f"{done} of {len(mine)} shards, {left:.0f} s left", file=sys.stderr, flush=True)
        if under_way is not None:
            under_way.result()
    return len(mine)


def _finish(
    store: EmbeddingStore, encoder: ShardEncoder, rows: Rows, of: dict[str, Any], attributes: dict[str, Any]
) -> dict[str, Any]:
    """The commit, when every shard is there."""
    if attributes["complete"]:
        return attributes
    records = store.finished(of)
    if len(records) < rows.num_shards:
        missing = next(shard for shard in range(rows.num_shards) if shard not in records)
        raise DataError(f"{store.store.url} lacks shard {missing} though all ranks are done; give the command again")
    attributes = {
        **attributes,
        "complete": True,
        "without_a_modality": sum(record["without_a_modality"] for record in records.values()),
    }
    store.store.write(ROOT, encoder.root(attributes, consolidated=True))
    return attributes
