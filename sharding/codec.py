"""Codecs of an array's payload: one chunk of a Zarr v3 array, decoded in C without the GIL.

`lz4` is the default, `none` stores the bytes, `zstd` is the smallest; both are Blosc's, behind a byte shuffle. Over 82
real BigEarthNet pairs of 12 bands, S1 as float32, in kB a pair and microseconds to decode its four arrays on one core:
none 275, 25; lz4 197, 106; zstd 185, 220. LZ4 is written by its thorough encoder (LZ4 HC), which every LZ4 decoder
reads: behind a bit shuffle it would be 188 kB and 185 us, for that shuffle takes longer to undo than LZ4.
"""

import struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numcodecs import blosc

from sharding.errors import DataError

CODECS: Final = ("none", "lz4", "zstd")
"""A codec's place here is its number in the index."""

_BLOSC: Final[dict[str, tuple[str, int]]] = {"lz4": ("lz4hc", 2), "zstd": ("zstd", 5)}
"""Name and level of each encoder."""

HEADER: Final = struct.Struct("<IIII")
"""Blosc 1: version, version of the codec's format, flags and item size in one; bytes, bytes a block, bytes stored."""
VERSIONS: Final = 2 | 1 << 8
SHUFFLED, AS_IS, IN_ONE_PIECE = 0x01, 0x02, 0x10
FORMATS: Final = {"lz4": 1 << 5, "zstd": 4 << 5}
SPLIT_ITEMS: Final = 128
"""Blosc compresses the bytes of a block of LZ4 apart, each by its place in the item, when it has so many items."""

# Blosc's own thread pool is global state and loses to our reader threads, which decode many payloads at once.
blosc.use_threads = False


def encode(array: npt.NDArray[Any], codec: str) -> bytes:
    """The payload of a C-contiguous little-endian array of any shape."""
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    if codec == "none":
        return array.tobytes()
    cname, level = _BLOSC[codec]
    payload = bytes(blosc.compress(array, cname.encode(), level, blosc.SHUFFLE))
    if len(payload) >= HEADER.size + array.nbytes and not payload[2] & AS_IS:
        return bytes(blosc.compress(array, cname.encode(), 0, blosc.SHUFFLE))  # as it is, it is no longer
    return payload


def decode_into(payload: bytes | npt.NDArray[np.uint8], out: npt.NDArray[Any], codec: str) -> None:
    """Decode `payload` into the C-contiguous array `out`; DataError when it is no payload of such an array."""
    stored_from = 0
    if codec != "none":
        stored_from = _check_header(payload, out, codec)
        if not stored_from:
            try:
                blosc.decompress(payload, out)
            except RuntimeError as error:
                raise DataError(f"payload cannot be decoded with {codec}: {error}") from error
            return
    if len(payload) - stored_from != out.nbytes:
        raise DataError(f"payload of {len(payload)} bytes where {out.nbytes + stored_from} were expected")
    out.reshape(-1).view(np.uint8)[:] = np.frombuffer(payload, np.uint8, offset=stored_from)


def _check_header(payload: Any, out: npt.NDArray[Any], codec: str) -> int:
    """Where the bytes of the array begin, if they are stored as they are; else 0. DataError at anything unusual.

    Blosc trusts its header, and would read past the end of a payload or leave part of `out` as it was. So every field
    must be what `encode` writes; of a block's length, which Blosc chooses, it is checked that it is a possible one.
    """
    if len(payload) < HEADER.size:
        raise DataError(f"payload of {len(payload)} bytes is shorter than a Blosc header")
    word, num_bytes, block, num_stored = HEADER.unpack_from(payload)
    size, item = out.nbytes, out.itemsize
    if num_stored != len(payload) or num_bytes != size:
        raise DataError(
            f"payload of {len(payload)} bytes says it is {num_stored} bytes of {num_bytes}, {size} were expected"
        )
    is_stored = num_stored == HEADER.size + size
    flags = FORMATS[codec] | SHUFFLED
    if is_stored:
        flags |= AS_IS
    if codec != "lz4" or block < SPLIT_ITEMS * item:
        flags |= IN_ONE_PIECE
    if word != VERSIONS | flags << 16 | item << 24 or not 0 < block <= size or block % item:
        header = bytes(payload[: HEADER.size]).hex()
        raise DataError(f"payload begins with {header}, which is no Blosc header of {codec} for {out.dtype}")
    return HEADER.size if is_stored else 0


def zarr_codecs(codec: str, dtype: np.dtype[Any]) -> list[dict[str, Any]]:
    """The `codecs` entry of a Zarr v3 `zarr.json` that describes payloads of `encode`."""
    codecs: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    if codec != "none":
        cname, level = _BLOSC[codec]
        codecs.append(
            {
                "name": "blosc",
                "configuration": {
                    "typesize": dtype.itemsize,
                    "cname": cname,
                    "clevel": level,
                    "shuffle": "shuffle",
                    "blocksize": 0,
                },
            }
        )
    return codecs
