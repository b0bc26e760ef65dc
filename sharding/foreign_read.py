"""Payloads of data sets that were indexed as they lie: one read, checked and decoded, for `inspect` and `verify`."""

import dataclasses
import zlib
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from sharding.errors import DataError
from sharding.existing import metadata_of
from sharding.foreign_codec import FOREIGN_CODECS, decode_foreign
from sharding.manifest import ArraySpec, Manifest, ShardSpec
from sharding.store import Store


def read_payload(
    store: Store, shard: ShardSpec, payload: np.void, spec: ArraySpec, checksum: str
) -> tuple[npt.NDArray[Any], int]:
    """The pixels of an array of a sample, all bands of `spec`, and how many bytes are stored; `store` has the parts.

    DataError when they are not what the index says.
    """
    parts = shard.data_files
    if payload["file"] >= len(parts) or payload["codec"] not in FOREIGN_CODECS:
        raise DataError(
            f"{spec.name} is in file {int(payload['file'])} of {len(parts)}, codec {int(payload['codec'])}: the index "
            "is not what this program writes; run python -m sharding.index again"
        )
    part, start = parts[payload["file"]], int(payload["offset"])
    if start + int(payload["length"]) > part.num_bytes:
        raise DataError(f"{spec.name} ends behind the end of {part.path}; run python -m sharding.index again")
    stored = store.read_range(part.path, start, start + int(payload["length"]))
    if not is_intact(stored, int(payload["crc32c"]), checksum):
        told = {"crc32c": "CRC-32C", "crc32": "CRC-32"}[checksum]
        raise DataError(f"the {told} of {spec.name} does not match in {part.path}; fetch that file again")
    data = np.empty((len(spec.bands), spec.height, spec.width), spec.dtype)
    try:
        decode_foreign(stored, data, int(payload["codec"]), int(payload["skip"]))
    except DataError as error:
        raise DataError(f"{spec.name} cannot be decoded ({error}) in {part.path}; fetch that file again") from error
    return data, len(stored)


def is_intact(stored: bytes, expected: int, checksum: str) -> bool:
    """Whether the bytes have their checksum; always where none is known."""
    if checksum == "none":
        return True
    found: int = google_crc32c.value(stored) if checksum == "crc32c" else zlib.crc32(stored)
    return found == expected


def describe(
    store: Store, manifest: Manifest, shard: ShardSpec, number: int, offsets: dict[str, float]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What is known of the sample at place `number` of a shard, and of its arrays, given their radiometric offsets."""
    ((_, lines),) = metadata_of(store, dataclasses.replace(manifest, shards=(shard,)))
    arrays = {
        spec.name: {
            "bands": list(spec.bands),
            "units": spec.units,
            "scale": spec.scale,
            "offset": offsets[spec.name],
            "nodata": spec.nodata,
            "gsd_m": spec.gsd_m,
        }
        for spec in manifest.arrays
        if spec.name in offsets
    }
    return lines[number], arrays
