"""A part of what a Blosc buffer holds, decoded without the rest.

A Blosc buffer (format 2, of c-blosc 1) is a header of 16 bytes, the offset of each block, and the blocks, which were
compressed independently of one another. So the blocks that are needed make a shorter buffer of their own, which
numcodecs decodes; of a chunk of 107 MB that holds 64 patches, 1.7 MB are decoded and, compressed, read.
"""

import struct
from collections.abc import Callable
from typing import Final

import numcodecs.blosc

_HEADER: Final = struct.Struct("<BBBBIII")
_FORMAT: Final = 2
_COPIED: Final = 0x02
"""Flag: the bytes were not compressible and follow the header as they are."""
_FIRST: Final = 4096
"""Bytes read at first: header and offsets of up to a thousand blocks."""


def decode_part(read: Callable[[int, int], bytes], length: int, total: int, start: int, stop: int) -> bytes:
    """Bytes `start` to `stop` of the `total` that are in a buffer of `length` bytes, read by `read(offset, count)`.

    ValueError or RuntimeError when it is no such buffer. Blosc trusts a header, so what it says must fit in.
    """
    head = read(0, min(length, _FIRST))
    if len(head) < _HEADER.size:
        raise ValueError("a Blosc buffer is shorter than its header")
    version, version_lz, flags, type_size, num_bytes, block_size, compressed = _HEADER.unpack_from(head)
    if version != _FORMAT or (compressed, num_bytes) != (length, total) or not 0 < block_size <= total:
        raise ValueError(
            f"a Blosc buffer of {length} bytes for {total} says {compressed} for {num_bytes}, blocks of {block_size}, "
            f"format {version}"
        )
    if type_size < 1:
        raise ValueError("a Blosc buffer of items without a size")
    if flags & _COPIED:
        if length != _HEADER.size + total:
            raise ValueError(f"a Blosc buffer of {length} bytes says that it holds {total} as they are")
        return read(_HEADER.size + start, stop - start)
    count = -(-num_bytes // block_size)
    # A buffer's only block may not be shorter than a block; the last one so needs the one before it.
    first, last = min(start // block_size, max(0, count - 2)), (stop - 1) // block_size
    table_end = _HEADER.size + 4 * count
    if table_end > length:
        raise ValueError(f"a Blosc buffer of {length} bytes says that it has {count} blocks")
    if table_end > len(head):
        head += read(len(head), table_end - len(head))
    offsets = struct.unpack_from(f"<{count}I", head, _HEADER.size)
    ends = dict(zip(sorted(offsets), [*sorted(offsets)[1:], length], strict=True))  # threads wrote them in any order
    if min(offsets) < table_end or max(offsets) >= length or len(ends) != count:
        raise ValueError("the blocks of a Blosc buffer lie outside of it")
    blocks = _read_blocks(read, [(offset, ends[offset]) for offset in offsets[first : last + 1]])
    position, table = _HEADER.size + 4 * len(blocks), []
    for block in blocks:
        table.append(position)
        position += len(block)
    decoded = min(num_bytes, (last + 1) * block_size) - first * block_size
    header = _HEADER.pack(version, version_lz, flags, type_size, decoded, block_size, position)
    content = numcodecs.blosc.decompress(b"".join((header, struct.pack(f"<{len(table)}I", *table), *blocks)))
    return bytes(memoryview(content)[start - first * block_size : stop - first * block_size])


def _read_blocks(read: Callable[[int, int], bytes], spans: list[tuple[int, int]]) -> list[bytes]:
    """The bytes of each span; spans that touch are read at once."""
    found: dict[int, bytes] = {}
    run: list[tuple[int, int]] = []
    for span in [*sorted(spans), None]:
        if run and (span is None or span[0] != run[-1][1]):
            begin, end = run[0][0], run[-1][1]
            content = read(begin, end - begin)
            found |= {start: content[start - begin : stop - begin] for start, stop in run}
            run = []
        if span is not None:
            run.append(span)
    return [found[start] for start, _ in spans]
