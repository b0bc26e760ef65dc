"""Decoding the payloads of data sets that are streamed as others wrote them: a chunk, or the part of it that is wanted.

What a header says is checked before it is believed: Blosc would read and write wherever it points to. Decompression
runs in C without the GIL.
"""

import struct
import zlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numcodecs import blosc, zstd

import sharding.codec  # noqa: F401  it turns off Blosc's own threads
from sharding.errors import DataError
from sharding.sources.blosc_part import decode_part

RAW: Final = 0
BLOSC: Final = 16
ZSTD: Final = 17
ZLIB: Final = 18
FOREIGN_CODECS: Final = {RAW: "none", BLOSC: "blosc", ZSTD: "zstd", ZLIB: "zlib"}
"""Number in an index of version 2 -> name: bytes as they are, any Blosc 1 buffer, a Zstandard frame, zlib or gzip."""

_HEADER: Final = struct.Struct("<BBBBIII")
_FORMAT: Final = 2
"""Of Blosc 1; 5 is Blosc 2."""
_COPIED: Final = 0x02
_ZSTD_MAGIC: Final = 0xFD2FB528
_LARGEST: Final = (1 << 31) - 1
"""Bytes of a chunk, decoded: no Blosc buffer holds more, and a header may say anything."""
_ANY_ZLIB: Final = 32 + zlib.MAX_WBITS
"""zlib or gzip, by the header."""

Stored = bytes | npt.NDArray[np.uint8]


def decode_foreign(stored: Stored, out: npt.NDArray[Any], codec: int, skip: int = 0) -> None:
    """Decode the `out.nbytes` that come behind `skip` bytes of the chunk `stored` into the C-contiguous `out`.

    `codec` is a number of `FOREIGN_CODECS`. DataError when `stored` is no such chunk or ends before.
    """
    source: Any = stored
    view = memoryview(source).cast("B")
    target = out.reshape(-1).view(np.uint8)
    end = skip + target.nbytes
    if not target.nbytes:
        raise DataError("an array without pixels cannot be decoded")
    if codec == RAW:
        _copy(view, target, skip)
    elif codec == BLOSC:
        _decode_blosc(view, target, skip)
    elif codec == ZSTD:
        _decode_zstd(view, target, skip)
    elif codec == ZLIB:
        _copy(memoryview(_inflate(view, end)), target, skip)
    else:
        raise DataError(f"codec {codec} is not one of {', '.join(map(str, FOREIGN_CODECS))}; update the program")


def _copy(content: memoryview, target: npt.NDArray[np.uint8], skip: int) -> None:
    if len(content) < skip + target.nbytes:
        raise DataError(f"a chunk has {len(content)} bytes where {skip + target.nbytes} were expected")
    target[:] = np.frombuffer(content, np.uint8, target.nbytes, skip)


def _decode_blosc(view: memoryview, target: npt.NDArray[np.uint8], skip: int) -> None:
    total = _check_blosc(view, skip + target.nbytes)
    try:
        if total == target.nbytes and not view[2] & _COPIED:
            blosc.decompress(view, target)
            return
        # Only the blocks that are wanted; what was not compressible is only copied.
        part = decode_part(lambda at, n: bytes(view[at : at + n]), len(view), total, skip, skip + target.nbytes)
    except (RuntimeError, ValueError, struct.error) as error:
        raise DataError(f"a Blosc buffer of {len(view)} bytes cannot be decoded: {error}") from error
    _copy(memoryview(part), target, 0)


def _check_blosc(view: memoryview, needed: int) -> int:
    """How many bytes the buffer holds; DataError unless header and blocks lie inside, and `needed` are there."""
    if len(view) < _HEADER.size:
        raise DataError(f"a chunk of {len(view)} bytes is shorter than a Blosc header")
    version, _, flags, type_size, total, block, num_stored = _HEADER.unpack_from(view)
    if (
        version != _FORMAT
        or num_stored != len(view)
        or not needed <= total <= _LARGEST
        or not 0 < block <= total
        or not type_size
    ):
        raise DataError(
            f"a chunk of {len(view)} bytes says that it is {num_stored} bytes of {total} in blocks of {block}, "
            f"Blosc format {version}; {needed} bytes were expected, of format {_FORMAT}"
        )
    if flags & _COPIED:
        if num_stored != _HEADER.size + total:
            raise DataError(f"a Blosc buffer of {num_stored} bytes says that it holds {total} as they are")
        return int(total)
    table_end = _HEADER.size + 4 * -(-total // block)
    if table_end > num_stored:
        raise DataError(f"a Blosc buffer of {num_stored} bytes says that it has blocks of {block} for {total}")
    begins = np.frombuffer(view, "<u4", -(-total // block), _HEADER.size)
    if begins.min() < table_end or begins.max() >= num_stored:
        raise DataError("the blocks of a Blosc buffer lie outside of it")
    return int(total)


def _decode_zstd(view: memoryview, target: npt.NDArray[np.uint8], skip: int) -> None:
    total = _zstd_size(view)
    if not skip + target.nbytes <= total <= _LARGEST:
        raise DataError(f"a Zstandard frame holds {total} bytes, {skip + target.nbytes} were expected")
    whole = target if total == target.nbytes else np.empty(total, np.uint8)
    try:
        zstd.decompress(view, whole)
    except (RuntimeError, ValueError) as error:
        raise DataError(f"a Zstandard frame of {len(view)} bytes cannot be decoded: {error}") from error
    if whole is not target:
        target[:] = whole[skip : skip + target.nbytes]


def _zstd_size(view: memoryview) -> int:
    """Bytes that the frame holds, by its header (RFC 8878, 3.1.1.1); DataError where it does not say."""
    if len(view) < 6 or int.from_bytes(view[:4], "little") != _ZSTD_MAGIC:
        raise DataError(f"a chunk of {len(view)} bytes is no Zstandard frame")
    descriptor = view[4]
    is_single = bool(descriptor & 0x20)
    width = (int(is_single), 2, 4, 8)[descriptor >> 6]
    at = 5 + (not is_single) + (0, 1, 2, 4)[descriptor & 3]
    if not width or len(view) < at + width:
        raise DataError("a Zstandard frame does not say how much it holds")
    size = int.from_bytes(view[at : at + width], "little")
    return size + 256 if width == 2 else size


def _inflate(view: memoryview, needed: int) -> bytes:
    """The first `needed` bytes; DataError when there are fewer, or the stream is broken or cut before its checksum."""
    decoder = zlib.decompressobj(_ANY_ZLIB)
    try:
        content = decoder.decompress(view, needed)
        if len(content) == needed and not decoder.eof:
            # Either a chunk that holds more, or the end, with the checksum, is still to be read.
            if not decoder.decompress(decoder.unconsumed_tail, 1) and not decoder.eof:
                raise DataError(f"a zlib stream of {len(view)} bytes is cut short")
    except zlib.error as error:
        raise DataError(f"a zlib stream of {len(view)} bytes cannot be decoded: {error}") from error
    return content
