"""Every check of a shard that was indexed as it lies: its files' sizes, and each payload's checksum and decoding."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sharding.bands import ALL_BANDS
from sharding.errors import FusMAEError
from sharding.foreign_read import read_payload
from sharding.manifest import Manifest, ShardSpec
from sharding.shard_index import ShardIndex
from sharding.store import Store


@dataclass(kw_only=True)
class Counted:
    """What was read."""

    samples: int = 0
    arrays: int = 0


def part_defects(store: Store, shard: ShardSpec) -> Iterator[tuple[str, str]]:
    """Files of a shard that are not there or not as long as they were, and what is wrong; `store` has the files."""
    for part in shard.data_files:
        try:
            size = store.size(part.path)
        except FusMAEError as error:
            yield part.path, f"it cannot be read: {error}"
            continue
        if size != part.num_bytes:
            yield part.path, f"it has {size} bytes, the manifest says {part.num_bytes}"


def payload_defects(
    store: Store, shard: ShardSpec, index: ShardIndex, manifest: Manifest, counted: Counted
) -> Iterator[tuple[str, str]]:
    """Samples by key, and what is wrong with them."""
    specs = {spec.name: spec for spec in manifest.arrays}
    for record in index.records:
        key = record["key"].decode()
        counted.samples += 1
        stored: set[str] = set()
        for name, payload in zip(index.arrays, record["arrays"], strict=True):
            if not payload["length"]:
                continue
            if name not in specs:
                yield key, f"{name} is not in the manifest"
                continue
            stored |= set(specs[name].bands)
            counted.arrays += 1
            try:
                read_payload(store, shard, payload, specs[name], index.checksum)
            except FusMAEError as error:
                yield key, str(error)
        if stored != _present(record):
            yield key, f"its bands are {' '.join(sorted(_present(record)))}, its arrays have {' '.join(sorted(stored))}"


def _present(record: np.void) -> set[str]:
    return {band for bit, band in enumerate(ALL_BANDS) if int(record["presence"]) >> bit & 1}
