"""The loop over a batch's payloads in machine code: read, check, decode, without Python and without its lock.

A reader thread that came back to Python after each system call would queue for the interpreter's lock with the training
loop, up to 5 ms each time; here it does so once for a piece of a batch. Compiled by numba at the first import on a
machine (about a second) and kept in its cache. libc reads, Google's CRC-32C library checks, Blosc (numcodecs') decodes.

Whatever the loop does not like it leaves alone and marks; `pipeline.stream.payload` then says what is wrong.
"""

import importlib.util
from pathlib import Path
from typing import Any, Final

import google_crc32c  # noqa: F401  it loads the library that is linked here
import llvmlite.binding
import numba
import numcodecs.blosc
import numpy as np
import numpy.typing as npt
from numba import types

from sharding import codec as _codec

READ, SHORT, DAMAGED, UNDECODABLE, LEFT_OUT = range(5)
"""What became of a sample: it is in its slot, a file gave too little, a checksum or a codec says no, not for here."""
BYTES, READ_NS, CHECK_NS, DECODE_NS, NUM_COUNTERS = range(5)
"""Places in the counters."""

IN_MEMORY: Final = -1
"""As a descriptor: the payload's place is an address."""
NOWHERE: Final = -2
"""As a descriptor: the payload is not there; no file has this number, so reading it fails."""


def _link() -> None:
    """Make the C functions known to the compiler."""
    llvmlite.binding.load_library_permanently(str(numcodecs.blosc.__file__))
    found = importlib.util.find_spec("google_crc32c")
    assert found is not None and found.origin is not None
    bundled = Path(found.origin).parents[1] / "google_crc32c.libs"
    for library in bundled.glob("libcrc32c*"):
        llvmlite.binding.load_library_permanently(str(library))
    for symbol in ("crc32c_value", "blosc_decompress_ctx"):
        if llvmlite.binding.address_of_symbol(symbol) is None:
            raise ImportError(
                f"no {symbol}: install google-crc32c and numcodecs from their wheels, see requirements.txt"
            )


_link()
_pread: Any = types.ExternalFunction("pread", types.intp(types.int32, types.uintp, types.uintp, types.int64))
_crc32c: Any = types.ExternalFunction("crc32c_value", types.uint32(types.uintp, types.uintp))
_decompress: Any = types.ExternalFunction(
    "blosc_decompress_ctx", types.int32(types.uintp, types.uintp, types.uintp, types.int32)
)
_memset: Any = types.ExternalFunction("memset", types.uintp(types.uintp, types.int32, types.uintp))
_memcpy: Any = types.ExternalFunction("memcpy", types.uintp(types.uintp, types.uintp, types.uintp))
_clock: Any = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.uintp))

_SIGNATURE: Any = types.void(
    types.int32[:, ::1],  # descriptor
    types.int64[:, ::1],  # place
    types.int64[:, ::1],  # length
    types.uint32[:, ::1],  # checksum
    types.uint32[:, ::1],  # codec
    types.uint64[:, ::1],  # target
    types.int64[::1],  # num_bytes
    types.int64[::1],  # item_bytes
    types.boolean,  # verify
    types.uint64,  # scratch
    types.int32[::1],  # status
    types.int64[::1],  # counters
)
_NONE, _LZ4, _ZSTD = (_codec.CODECS.index(name) for name in ("none", "lz4", "zstd"))
_HEADER_BYTES: Final = _codec.HEADER.size
_VERSIONS, _SHUFFLED, _AS_IS, _IN_ONE_PIECE = _codec.VERSIONS, _codec.SHUFFLED, _codec.AS_IS, _codec.IN_ONE_PIECE
_LZ4_FORMAT, _ZSTD_FORMAT, _SPLIT_ITEMS = _codec.FORMATS["lz4"], _codec.FORMATS["zstd"], _codec.SPLIT_ITEMS


def _read_samples(
    descriptor: Any,
    place: Any,
    length: Any,
    checksum: Any,
    codec: Any,
    target: Any,
    num_bytes: Any,
    item_bytes: Any,
    verify: Any,
    scratch: Any,
    status: Any,
    counters: Any,
) -> None:
    time, header = np.empty(2, np.int64), np.empty(4, np.uint32)
    begun, now, wanted, size = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    for sample in range(len(status)):
        if status[sample] == LEFT_OUT:
            continue
        status[sample] = READ
        for array in range(len(num_bytes)):
            size, wanted = num_bytes[array], length[sample, array]
            out = types.uintp(target[sample, array])
            if wanted == 0:
                _memset(out, np.int32(0), types.uintp(size))
                continue
            kind = codec[sample, array]
            if kind == _NONE and wanted != size:
                status[sample] = UNDECODABLE
                break
            _clock(1, time.ctypes.data)
            begun = time[0] * 1_000_000_000 + time[1]
            if descriptor[sample, array] == IN_MEMORY:
                source = types.uintp(place[sample, array])
            else:
                source = out if kind == _NONE else types.uintp(scratch)
                got = _pread(descriptor[sample, array], source, types.uintp(wanted), place[sample, array])
                if got != wanted:
                    status[sample] = SHORT
                    break
            _clock(1, time.ctypes.data)
            now = time[0] * 1_000_000_000 + time[1]
            counters[READ_NS] += now - begun
            counters[BYTES] += wanted
            begun = now
            if verify:
                if _crc32c(source, types.uintp(wanted)) != checksum[sample, array]:
                    status[sample] = DAMAGED
                    break
                _clock(1, time.ctypes.data)
                now = time[0] * 1_000_000_000 + time[1]
                counters[CHECK_NS] += now - begun
                begun = now
            if kind == _NONE:
                if source != out:
                    _memcpy(out, source, types.uintp(size))
            else:
                # Blosc trusts its header; see sharding.codec, which checks the same for one payload.
                status[sample] = UNDECODABLE
                if wanted < _HEADER_BYTES:
                    break
                _memcpy(types.uintp(header.ctypes.data), source, types.uintp(_HEADER_BYTES))
                block, item = np.int64(header[2]), item_bytes[array]
                flags = (_LZ4_FORMAT if kind == _LZ4 else _ZSTD_FORMAT) | _SHUFFLED
                if np.int64(header[3]) == _HEADER_BYTES + size:
                    flags |= _AS_IS
                if kind != _LZ4 or block < _SPLIT_ITEMS * item:
                    flags |= _IN_ONE_PIECE
                if np.int64(header[0]) != _VERSIONS | flags << 16 | item << 24:
                    break
                if np.int64(header[1]) != size or np.int64(header[3]) != wanted:
                    break
                if block <= 0 or block > size or block % item != 0:
                    break
                if _decompress(source, out, types.uintp(size), 1) != size:
                    break
                status[sample] = READ
            _clock(1, time.ctypes.data)
            now = time[0] * 1_000_000_000 + time[1]
            counters[DECODE_NS] += now - begun


def _compiled() -> Any:
    try:
        return numba.njit(_SIGNATURE, nogil=True, cache=True)(_read_samples)
    except (RuntimeError, OSError):  # neither this folder nor the user's can be written, or it is full
        return numba.njit(_SIGNATURE, nogil=True)(_read_samples)


_loop = _compiled()


def read_samples(
    descriptor: npt.NDArray[np.int32],
    place: npt.NDArray[np.int64],
    length: npt.NDArray[np.int64],
    checksum: npt.NDArray[np.uint32],
    codec: npt.NDArray[np.uint32],
    target: npt.NDArray[np.uint64],
    num_bytes: npt.NDArray[np.int64],
    item_bytes: npt.NDArray[np.int64],
    verify: bool,
    scratch: npt.NDArray[np.uint8],
    status: npt.NDArray[np.int32],
    counters: npt.NDArray[np.int64],
) -> None:
    """Read, check and decode the payloads (samples, arrays) into memory; releases the interpreter's lock.

    `descriptor` and `place`: an open file and the offset there, or IN_MEMORY and an address. `length`, `checksum`
    (CRC-32C), `codec` (number in `sharding.codec.CODECS`) are the index's; a length of 0 sets the target to 0.
    `target`: addresses, each of `num_bytes` of its array. `scratch` takes the longest encoded payload. `status`
    (samples,) tells what became of each; those that hold LEFT_OUT are passed over. `counters` grow.
    """
    _loop(
        descriptor, place, length, checksum, codec, target, num_bytes, item_bytes, verify, scratch.ctypes.data, status,
        counters,
    )  # fmt: skip
