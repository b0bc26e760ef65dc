"""Codecs of an array's payload: one chunk of a Zarr v3 array, decoded in C without the GIL.

`lz4` (Blosc lz4 with bit shuffle) is the default, `none` stores the bytes, `zstd` (Blosc zstd with byte shuffle)
is the smallest: 256, 178 and 174 kB a pair for none, lz4 and zstd over 167 real BigEarthNet pairs.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numcodecs import blosc

from sharding.errors import DataError

CODECS: Final = ("none", "lz4", "zstd")
"""A codec's place here is its number in the index."""

_LEVEL: Final = 5
_BLOSC_HEADER: Final = 16
_BLOSC: Final[dict[str, tuple[str, int]]] = {
    "lz4": ("lz4", blosc.BITSHUFFLE),
    "zstd": ("zstd", blosc.SHUFFLE),
}
_SHUFFLE_NAMES: Final = {blosc.BITSHUFFLE: "bitshuffle", blosc.SHUFFLE: "shuffle"}

# Blosc's own thread pool is global state and loses to our reader threads, which decode many payloads at once.
blosc.use_threads = False


def encode(array: npt.NDArray[Any], codec: str) -> bytes:
    """The payload of a C-contiguous little-endian array of any shape."""
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    if codec == "none":
        return array.tobytes()
    cname, shuffle = _BLOSC[codec]
    return bytes(blosc.compress(array, cname.encode(), _LEVEL, shuffle))


def decode_into(payload: bytes | npt.NDArray[np.uint8], out: npt.NDArray[Any], codec: str) -> None:
    """Decode `payload` into the C-contiguous array `out`; DataError when the sizes disagree."""
    if codec == "none":
        if len(payload) != out.nbytes:
            raise DataError(f"payload of {len(payload)} bytes where {out.nbytes} were expected")
        out.reshape(-1).view(np.uint8)[:] = np.frombuffer(payload, np.uint8)
        return
    if len(payload) < _BLOSC_HEADER:
        raise DataError(f"payload of {len(payload)} bytes is shorter than a Blosc header")
    num_bytes, num_stored, _ = blosc._cbuffer_sizes(payload)
    if num_stored != len(payload) or num_bytes != out.nbytes:
        # Blosc trusts its header; a payload cut short would be read past its end.
        raise DataError(
            f"payload of {len(payload)} bytes says it is {num_stored} bytes of {num_bytes}, {out.nbytes} were expected"
        )
    try:
        blosc.decompress(payload, out)
    except RuntimeError as error:
        raise DataError(f"payload cannot be decoded with {codec}: {error}") from error


def zarr_codecs(codec: str, dtype: np.dtype[Any]) -> list[dict[str, Any]]:
    """The `codecs` entry of a Zarr v3 `zarr.json` that describes payloads of `encode`."""
    codecs: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    if codec != "none":
        cname, shuffle = _BLOSC[codec]
        codecs.append(
            {
                "name": "blosc",
                "configuration": {
                    "typesize": dtype.itemsize,
                    "cname": cname,
                    "clevel": _LEVEL,
                    "shuffle": _SHUFFLE_NAMES[shuffle],
                    "blocksize": 0,
                },
            }
        )
    return codecs
