"""What a data set that is to be extended or curated holds, from its metadata; no shard is opened."""

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import pyarrow as pa

from sharding.dataset import open_dataset
from sharding.errors import DataError
from sharding.manifest import Manifest, ShardSpec
from sharding.plan import Existing
from sharding.store import Store

_READERS: Final = 16


def read_existing(url: str) -> Existing:
    """Keys, places and dates of every sample of the data set at `url`."""
    store, manifest = open_dataset(url)
    keys: list[str] = []
    dates: list[str | None] = []
    lon: list[float] = []
    lat: list[float] = []
    for _, lines in metadata_of(store, manifest):
        for line in lines:
            keys.append(line["key"])
            dates.append(line["dates"].get("s2"))
            lon.append(math.nan if line["lon"] is None else line["lon"])
            lat.append(math.nan if line["lat"] is None else line["lat"])
    return Existing(
        manifest=manifest,
        keys=pa.array(keys, pa.string()),
        lon=np.array(lon, np.float64),
        lat=np.array(lat, np.float64),
        s2_date=pa.array(dates, pa.string()),
    )


def metadata_of(store: Store, manifest: Manifest) -> Iterator[tuple[ShardSpec, list[dict[str, Any]]]]:
    """Each shard with the metadata of its samples, in the order of its index; some are read ahead."""
    with ThreadPoolExecutor(_READERS) as executor:
        shards = manifest.shards
        for start in range(0, len(shards), 4 * _READERS):
            part = shards[start : start + 4 * _READERS]
            contents = executor.map(lambda shard: store.read(shard.metadata_path), part)
            for shard, content in zip(part, contents, strict=True):
                yield shard, _parse(content, store.name(shard.metadata_path), shard)


def _parse(content: bytes, name: str, shard: ShardSpec) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in content.decode().split("\n") if line]
    except ValueError as error:
        raise DataError(f"{name} is damaged ({error}); run python -m sharding.verify and fetch it again") from error
    if len(lines) != shard.samples:
        raise DataError(f"{name} has {len(lines)} samples, the manifest says {shard.samples}; fetch it again")
    return lines
