"""The index beside a shard: where each array's payload lies in the tar, so that readers parse no tar, zip or JSON.

Layout of `index/NAME.idx`, all little-endian:

    magic `FUSMAEIX` · u32 version · u32 length of header · header (JSON, padded with spaces) · records · u32 CRC-32C

The header names the arrays, their samples' number and the width of keys; the records are one numpy structured array
(`record_dtype`); the CRC covers everything before it. Version 1 is of shards that `sharding.build` wrote; version 2 of
shards that `sharding.index` has indexed as they lie, and its header says what the payloads' checksums are.
"""

import json
from dataclasses import dataclass
from typing import Any, Final

import google_crc32c
import numpy as np
import numpy.typing as npt

from sharding.errors import DataError

MAGIC: Final = b"FUSMAEIX"
VERSION: Final = 1
FOREIGN_VERSION: Final = 2
"""Of the index of a shard that lies as others wrote it: several files, and chunks that may hold several samples."""
CHECKSUMS: Final = ("crc32c", "crc32", "none")
"""What the field `crc32c` of an index may hold: CRC-32C, zip's CRC-32, or nothing that is known."""
_ALIGNMENT: Final = 64
_CHECKSUM: Final = 4

Records = npt.NDArray[np.void]


def record_dtype(num_arrays: int, key_bytes: int, version: int = VERSION) -> np.dtype[Any]:
    """The structured type of one sample's record.

    `presence` has a bit for each band (`sharding.bands.ALL_BANDS`), `labels` a bit for each word of the manifest's
    vocabulary; `lon`, `lat` are the patch's centre in degrees (NaN when unknown); `member` is the whole
    `KEY.zarr.zip` in the tar. For each array: the payload's offset in the tar, its stored length (0: absent), its
    codec (number in `sharding.codec.CODECS`), its CRC-32C, and `radiometric_offset`, to be added to the stored
    numbers before anything else (Sentinel-2 baseline 04.00: -1000).

    In version 2 a payload also has `file`, the number of its file among the shard's parts, and `skip`, how many bytes
    of the decoded chunk come before the sample's; `codec` is a number of `sharding.foreign_codec`, `crc32c` what the
    header says, over the whole stored chunk; `member_offset` and `member_length` are 0.
    """
    payload = [
        ("offset", "<u8"),
        ("length", "<u4"),
        ("crc32c", "<u4"),
        ("codec", "<u4"),
        ("radiometric_offset", "<f4"),
    ]
    if version == FOREIGN_VERSION:
        payload += [("file", "<u4"), ("skip", "<u8")]
    return np.dtype(
        [
            ("key", f"S{key_bytes}"),
            ("presence", "<u8"),
            ("labels", "<u8"),
            ("lon", "<f8"),
            ("lat", "<f8"),
            ("member_offset", "<u8"),
            ("member_length", "<u8"),
            ("arrays", payload, (num_arrays,)),
        ]
    )


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """The samples of one shard in the order of the tar."""

    arrays: tuple[str, ...]
    """Names of the arrays, in the order of `records["arrays"]`."""
    records: Records
    """`record_dtype` of shape (samples,)."""
    version: int = VERSION
    checksum: str = CHECKSUMS[0]
    """What the payloads' `crc32c` is, in version 2; CRC-32C always in version 1."""

    @property
    def keys(self) -> list[str]:
        """The samples' keys, in order."""
        return [key.decode() for key in self.records["key"].tolist()]


def dump_index(index: ShardIndex) -> bytes:
    """The bytes of an index file."""
    described: dict[str, Any] = {
        "arrays": list(index.arrays),
        "key_bytes": index.records.dtype["key"].itemsize,
        "samples": len(index.records),
    }
    assert index.records.dtype == record_dtype(len(index.arrays), described["key_bytes"], index.version)
    assert index.checksum in CHECKSUMS[: 1 if index.version == VERSION else None]
    if index.version == FOREIGN_VERSION:
        described["checksum"] = index.checksum
    header = json.dumps(described, sort_keys=True).encode()
    prefix = len(MAGIC) + 8
    header += b" " * (-(prefix + len(header)) % _ALIGNMENT)
    body: bytes = (
        MAGIC
        + index.version.to_bytes(4, "little")
        + len(header).to_bytes(4, "little")
        + header
        + np.ascontiguousarray(index.records).tobytes()
    )
    checksum: int = google_crc32c.value(body)
    return body + checksum.to_bytes(4, "little")


def parse_index(content: bytes, name: str) -> ShardIndex:
    """The index in `content`; DataError naming `name` when a byte is not as it was written."""
    repair = "run python -m sharding.verify on the data set and fetch this file again"
    if len(content) < len(MAGIC) + 12 or content[: len(MAGIC)] != MAGIC:
        raise DataError(f"{name} is not a shard index ({len(content)} bytes); {repair}")
    if google_crc32c.value(content[:-4]) != int.from_bytes(content[-4:], "little"):
        raise DataError(f"{name} is damaged: its CRC-32C does not match; {repair}")
    start = len(MAGIC) + 8
    version = int.from_bytes(content[len(MAGIC) : len(MAGIC) + 4], "little")
    if version not in (VERSION, FOREIGN_VERSION):
        raise DataError(
            f"{name} has index version {version}, this program reads {VERSION} and {FOREIGN_VERSION}; "
            "update the program"
        )
    end = start + int.from_bytes(content[len(MAGIC) + 4 : start], "little")
    try:
        header = json.loads(content[start:end])
        names, key_bytes, samples = tuple(header["arrays"]), header["key_bytes"], header["samples"]
        if not isinstance(header["arrays"], list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"arrays are {header['arrays']!r:.40}")
        checksum = header["checksum"] if version == FOREIGN_VERSION else CHECKSUMS[0]
        if checksum not in CHECKSUMS:
            raise ValueError(f"checksum is {checksum!r:.40}")
        dtype = record_dtype(len(names), key_bytes, version)
        if end + samples * dtype.itemsize + _CHECKSUM != len(content):
            raise ValueError(f"{samples} records of {dtype.itemsize} bytes in {len(content) - end}")
        records = np.frombuffer(content, dtype, count=samples, offset=end)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{name} has a header that says something else than the file ({error}); {repair}") from error
    return ShardIndex(arrays=names, records=records, version=version, checksum=checksum)
