"""How soon and how fast a store answers: the data set's first shard, or a small file where checkpoints go."""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pipeline.errors import DataError

_RANGE_BYTES: Final = 16_000_000
_SENT_BYTES: Final = 4_000_000


@dataclass(frozen=True, kw_only=True)
class StoreSpeed:
    """What one reader, alone, measured."""

    name: str
    """What was read."""
    first_byte_s: float
    """From the request for one byte to its arrival, over a connection that is open."""
    num_bytes: int
    read_mb_s: float
    """Of one range; in 10^6 bytes, whatever cache it came from."""
    write_mb_s: float | None = None
    """Of one object, with the check that it arrived; None where nothing was written."""


def data_set_speed(url: str, nth: int = 0) -> StoreSpeed:
    """Read from the data set at `url`: its manifest, then a range of its `nth` shard (counted round).

    Raises:
        DataError: there is no data set.
        StorageError: the store fails.
    """
    from sharding.dataset import open_dataset, split_version
    from sharding.foreign_store import data_store
    from sharding.manifest import MANIFEST_NAME
    from sharding.store import Store

    # Asked once first: a store that is away says so at once instead of being asked again for two minutes.
    Store(split_version(url)[0]).size_once(MANIFEST_NAME)
    store, manifest = open_dataset(url)
    if not manifest.shards:
        raise DataError(f"the data set {url} has no shards")
    store = data_store(store, manifest)
    file = manifest.shards[nth % len(manifest.shards)].data_files[0]
    first_byte_s = _seconds(lambda: store.read_range(file.path, 0, 1))
    size = min(_RANGE_BYTES, file.num_bytes)
    return StoreSpeed(
        name=store.name(file.path),
        first_byte_s=first_byte_s,
        num_bytes=size,
        read_mb_s=size / 1e6 / _seconds(lambda: store.read_range(file.path, 0, size)),
    )


def checkpoint_speed(url: str, name: str) -> StoreSpeed:
    """Write an object `.preflight-NAME` below `url`, read it, remove it.

    Raises:
        StorageError: the store fails, refuses it, or does not hold what was sent.
    """
    from sharding.store import Store

    store, path = Store(url), f".preflight-{name}"
    with contextlib.suppress(DataError):
        store.size_once(path)  # as above
    content = os.urandom(_SENT_BYTES)
    write_s = _seconds(lambda: store.write(path, content))
    try:
        first_byte_s = _seconds(lambda: store.read_range(path, 0, 1))
        read_s = _seconds(lambda: store.read_range(path, 0, len(content)))
    finally:
        store.remove(path)
    return StoreSpeed(
        name=store.name(path),
        first_byte_s=first_byte_s,
        num_bytes=len(content),
        read_mb_s=len(content) / 1e6 / read_s,
        write_mb_s=len(content) / 1e6 / write_s,
    )


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return max(time.perf_counter() - began, 1e-9)
