"""One sample by its key: its arrays through the index, its attributes from the member itself."""

import io
import json
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

import google_crc32c
import numpy as np
import numpy.typing as npt

from sharding.bands import present_bands
from sharding.codec import CODECS, decode_into
from sharding.errors import DataError
from sharding.foreign_codec import FOREIGN_CODECS
from sharding.foreign_read import describe, read_payload
from sharding.foreign_store import data_store
from sharding.manifest import ArraySpec, Manifest, ShardSpec
from sharding.near_keys import NearKeys
from sharding.shard_index import CHECKSUMS, ShardIndex, parse_index
from sharding.store import Store

READERS: Final = 16


@dataclass(frozen=True, kw_only=True)
class Located:
    """Where a sample lies."""

    shard: ShardSpec
    arrays: tuple[str, ...]
    """Names of the record's arrays, as its index gives them."""
    record: np.void
    number: int
    """Its place in the shard's index and metadata."""
    checksum: str = CHECKSUMS[0]
    """What the payloads' checksums are, as its index says."""

    @property
    def key(self) -> str:
        """The sample's key."""
        return str(self.record["key"].decode())


@dataclass(frozen=True, kw_only=True)
class SampleArray:
    """An array of a sample, as stored."""

    data: npt.NDArray[Any]
    """(bands, height, width)."""
    bands: tuple[str, ...]
    spec: ArraySpec
    codec: str
    num_bytes: int
    """Of the payload."""
    crc32c: int
    radiometric_offset: float

    def values(self, band: str) -> npt.NDArray[np.float64]:
        """A band in its units, (height, width); NaN where nothing was measured."""
        stored = self.data[self.bands.index(band)]
        values: npt.NDArray[np.float64] = (stored.astype(np.float64) + self.radiometric_offset) * self.spec.scale
        if self.spec.nodata is not None:
            values[stored == self.spec.nodata] = np.nan
        return values


def read_indexes(store: Store, shards: Iterable[ShardSpec]) -> Iterator[tuple[ShardSpec, ShardIndex]]:
    """Each shard with its index, in the order given; some are read ahead."""
    todo = list(shards)
    with ThreadPoolExecutor(READERS) as executor:
        for start in range(0, len(todo), 4 * READERS):
            part = todo[start : start + 4 * READERS]
            yield from zip(part, executor.map(lambda shard: _read_index(store, shard), part), strict=True)


def _read_index(store: Store, shard: ShardSpec) -> ShardIndex:
    index = parse_index(store.read(shard.index_path), store.name(shard.index_path))
    if len(index.records) != shard.samples:
        raise DataError(
            f"{store.name(shard.index_path)} has {len(index.records)} samples, the manifest says {shard.samples}; "
            "fetch it again"
        )
    return index


def find_sample(store: Store, manifest: Manifest, key: str) -> Located:
    """Where the sample `key` lies; DataError that names the nearest keys when there is none."""
    near = NearKeys(key)
    for shard, index in read_indexes(store, manifest.shards):
        (found,) = np.nonzero(index.records["key"] == key.encode())
        if len(found):
            number = int(found[0])
            record = index.records[number]
            return Located(shard=shard, arrays=index.arrays, record=record, number=number, checksum=index.checksum)
        near.show(index.keys)
    raise DataError(f"{store.url} has no sample '{key}'; the nearest keys are {near}")


def read_sample(
    store: Store, manifest: Manifest, located: Located, arrays: Iterable[str] | None = None
) -> dict[str, SampleArray]:
    """The arrays of a sample that are asked for and that it has (default: all), in storage order.

    One ranged read. DataError naming shard, key and array when the bytes are not what the index says.
    """
    specs = {spec.name: spec for spec in manifest.arrays}
    wanted = None if arrays is None else set(arrays)
    payloads = {
        name: payload
        for name, payload in zip(located.arrays, located.record["arrays"], strict=True)
        if payload["length"] and (wanted is None or name in wanted)
    }
    if not payloads:
        return {}
    if located.shard.parts:
        return _read_foreign(data_store(store, manifest), located, payloads, specs)
    first = min(int(payload["offset"]) for payload in payloads.values())
    last = max(int(payload["offset"]) + int(payload["length"]) for payload in payloads.values())
    content = memoryview(store.read_range(located.shard.path, first, last))
    found = {}
    for name, payload in payloads.items():
        where = f"{store.name(located.shard.path)}, sample {located.key}: {name}"
        if name not in specs or payload["codec"] >= len(CODECS):
            raise DataError(f"{where} is not what the manifest knows; run python -m sharding.verify on the data set")
        start = int(payload["offset"]) - first
        stored = bytes(content[start : start + int(payload["length"])])
        found[name] = _decoded(stored, payload, specs[name], int(located.record["presence"]), where)
    return found


def _read_foreign(
    store: Store, located: Located, payloads: dict[str, np.void], specs: dict[str, ArraySpec]
) -> dict[str, SampleArray]:
    """The arrays of a sample that was indexed as it lies; `store` has the files."""
    found = {}
    for name, payload in payloads.items():
        where = f"{store.name(located.shard.path)}, sample {located.key}"
        if name not in specs:
            raise DataError(f"{where}: {name} is not what the manifest knows; run python -m sharding.index again")
        try:
            data, num_bytes = read_payload(store, located.shard, payload, specs[name], located.checksum)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        found[name] = SampleArray(
            data=data,
            bands=specs[name].bands,
            spec=specs[name],
            codec=FOREIGN_CODECS[int(payload["codec"])],
            num_bytes=num_bytes,
            crc32c=int(payload["crc32c"]),
            radiometric_offset=float(payload["radiometric_offset"]),
        )
    return found


def _decoded(stored: bytes, payload: np.void, spec: ArraySpec, presence: int, where: str) -> SampleArray:
    if google_crc32c.value(stored) != payload["crc32c"]:
        raise DataError(f"{where} is damaged: its CRC-32C does not match; fetch the shard again")
    bands, codec = present_bands(presence, spec.name), CODECS[payload["codec"]]
    data = np.empty((len(bands), spec.height, spec.width), spec.dtype)
    try:
        decode_into(stored, data, codec)
    except DataError as error:
        raise DataError(f"{where} cannot be decoded: {error}; run python -m sharding.verify on the data set") from error
    return SampleArray(
        data=data,
        bands=bands,
        spec=spec,
        codec=codec,
        num_bytes=len(stored),
        crc32c=int(payload["crc32c"]),
        radiometric_offset=float(payload["radiometric_offset"]),
    )


def read_attributes(
    store: Store, manifest: Manifest, located: Located
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The attributes of the sample's Zarr group, and those of each array; DataError when the member is damaged.

    Of a data set that was indexed as it lies, what its index knows instead.
    """
    if located.shard.parts:
        offsets = {
            name: float(payload["radiometric_offset"])
            for name, payload in zip(located.arrays, located.record["arrays"], strict=True)
            if payload["length"]
        }
        return describe(store, manifest, located.shard, located.number, offsets)
    start = int(located.record["member_offset"])
    content = store.read_range(located.shard.path, start, start + int(located.record["member_length"]))
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            group = json.loads(archive.read("zarr.json"))["attributes"]
            arrays = {
                name: json.loads(archive.read(f"{name}/zarr.json"))["attributes"]
                for name, payload in zip(located.arrays, located.record["arrays"], strict=True)
                if payload["length"]
            }
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{store.name(located.shard.path)}, sample {located.key}: its member is damaged ({error}); "
            "run python -m sharding.verify on the data set"
        ) from error
    return group, arrays


def read_lines(store: Store, manifest: Manifest, samples: Iterable[Located]) -> dict[str, dict[str, Any]]:
    """By key: what is known of these samples. Only the shards with one of them are asked, and no more is kept."""
    from sharding.existing import metadata_of

    wanted: dict[str, list[Located]] = {}
    for sample in samples:
        wanted.setdefault(sample.shard.path, []).append(sample)
    shards = tuple(shard for shard in manifest.shards if shard.path in wanted)
    found = {}
    for shard, lines in metadata_of(store, replace(manifest, shards=shards)):
        for sample in wanted[shard.path]:
            if lines[sample.number]["key"] != sample.key:
                raise DataError(f"{store.name(shard.metadata_path)} and its index list other samples; fetch both again")
            found[sample.key] = lines[sample.number]
    return found
