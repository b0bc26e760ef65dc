"""Where the pixels of a Zarr group of version 2 lie in its ZIP, byte for byte, and whether they can be streamed there.

The ZIP may be a file or a member of a tar. Only its directory and the small arrays are read; of pixels it is told at
which bytes of the file their chunk begins, how it is encoded, and how much of it comes before the sample's own.
"""

import io
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from sharding.foreign_codec import BLOSC, RAW, ZLIB, ZSTD
from sharding.sources.base import CORRUPT, PairError
from sharding.sources.ranged_file import RangedFile
from sharding.sources.zarr_zip import _BROKEN
from sharding.sources.zarr_zip_part import GroupFile

AS_IT_LIES: Final = "not to be streamed as it lies"
"""A reason to refuse a sample: nothing is wrong with it but the way in which it is stored."""
Read = Callable[[int, int], bytes]
"""Bytes of a file: from where, and how many; PairError when the file has no such bytes."""

_CODECS: Final = {"blosc": BLOSC, "zstd": ZSTD, "zlib": ZLIB, "gzip": ZLIB}
_BUFFER: Final = 1 << 14
_LONGEST: Final = (1 << 32) - 1
_ENCRYPTED: Final = 0x1


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """The pixels of some planes of a sample, in a file."""

    offset: int
    """Of the chunk, from the beginning of the file."""
    length: int
    """Stored; 0 when the chunk is left out because all of it is `fill`."""
    codec: int
    """Number in `sharding.foreign_codec`."""
    skip: int
    """Bytes of the decoded chunk before the sample's own."""
    crc32: int | None
    """Of all that is stored, as the ZIP's directory has it; None where nobody knows it."""
    dtype: np.dtype[Any]
    shape: tuple[int, int, int]
    """(planes, height, width) of the sample's own."""
    fill: Any = 0


class StoredGroup(GroupFile):
    """The group in the ZIP of `size` bytes at `start` of a file; every failure of its content is a PairError."""

    def __init__(self, read: Read, start: int, size: int, path: str) -> None:
        self.path = path
        self._start = start
        self._file: Any = Span(read, start, size)
        self._metadata = {}
        try:
            self._zip = zipfile.ZipFile(io.BufferedReader(self._file, _BUFFER))
        except _BROKEN as error:
            raise self._broken("it is no whole ZIP", error) from error
        self._names = frozenset(self._zip.namelist())
        if ".zgroup" not in self._names:
            raise PairError(CORRUPT, path, "it holds no Zarr group of version 2; fetch it again")

    def chunks(self, name: str, *place: int) -> tuple[Chunk, ...]:
        """The chunks that hold `array[place]`, whose last two axes are height and width: one, or one each few planes.

        PairError (AS_IT_LIES) when one of them is stored in a way that a reader cannot decode in place.
        """
        metadata = self._described(name)
        try:
            return self._located(name, metadata, place)
        except _BROKEN as error:
            raise self._broken(f"its array '{name}' cannot be found at {list(place)}", error) from error

    def read_bytes(self, offset: int, count: int) -> bytes:
        """What is stored at an offset of the file, inside of the ZIP."""
        content: bytes = self._file.read_at(offset - self._start, count)
        return content

    def remember(self, chunk: Chunk, stored: bytes) -> None:
        """Let the next reads of a chunk that was just read be answered from memory."""
        self._file.remember(chunk.offset - self._start, stored)

    def _located(self, name: str, metadata: dict[str, Any], place: tuple[int, ...]) -> tuple[Chunk, ...]:
        shape, chunks = tuple(metadata["shape"]), tuple(metadata["chunks"])
        fixed = len(place)
        if len(shape) - fixed not in (2, 3) or any(not 0 <= i < n for i, n in zip(place, shape, strict=False)):
            raise ValueError(f"its shape is {shape}")
        if any(step < 1 for step in chunks):
            raise ValueError(f"its chunks are {chunks}")
        dtype = self._streamable(name, metadata)
        planes, height, width = (1, *shape[-2:]) if len(shape) == fixed + 2 else shape[-3:]
        step = 1 if len(shape) == fixed + 2 else chunks[-3]
        inside = [i % size for i, size in zip(place, chunks, strict=False)]
        before = int(np.ravel_multi_index(inside, chunks[:fixed])) if fixed else 0
        size = step * height * width * dtype.itemsize
        total = size * math.prod(chunks[:fixed])
        numbers = [i // n for i, n in zip(place, chunks, strict=False)]
        found = []
        for first in range(0, planes, step):
            rest = (0, 0) if len(shape) == fixed + 2 else (first // step, 0, 0)
            entry = f"{name}/{metadata.get('dimension_separator', '.').join(map(str, (*numbers, *rest)))}"
            some = (min(step, planes - first), height, width)
            found.append(self._chunk(entry, metadata, dtype, some, before * size, total))
        return tuple(found)

    def _streamable(self, name: str, metadata: dict[str, Any]) -> np.dtype[Any]:
        dtype = np.dtype(str(metadata["dtype"]))
        if dtype.kind not in "fiu":
            raise self._unusable(name, f"holds {dtype}, which is no number")
        if dtype.byteorder == ">":
            raise self._unusable(name, f"is big-endian ({metadata['dtype']})")
        if dtype.itemsize > 8:
            raise self._unusable(name, f"has numbers of {8 * dtype.itemsize} bits, which only some machines read")
        if metadata["order"] != "C":
            raise self._unusable(name, "is stored column by column (order F)")
        if metadata.get("filters"):
            used = ", ".join(str(config.get("id")) for config in metadata["filters"])
            raise self._unusable(name, f"is filtered ({used})")
        compressor = metadata.get("compressor")
        if compressor and compressor["id"] not in _CODECS:
            raise self._unusable(name, f"is compressed by {compressor['id']}, not by {', '.join(_CODECS)}")
        shape, chunks = metadata["shape"][-2:], metadata["chunks"][-2:]
        if list(shape) != list(chunks):
            raise self._unusable(name, f"is cut into chunks of {chunks[0]}x{chunks[1]} of its {shape[0]}x{shape[1]}")
        return dtype

    def _chunk(
        self,
        entry: str,
        metadata: dict[str, Any],
        dtype: np.dtype[Any],
        shape: tuple[int, int, int],
        skip: int,
        total: int,
    ) -> Chunk:
        fill = metadata.get("fill_value")
        shared: dict[str, Any] = {"dtype": dtype, "shape": shape, "fill": 0 if fill is None else float(fill)}
        compressor = metadata.get("compressor")
        codec = _CODECS[compressor["id"]] if compressor else RAW
        if entry not in self._names:
            return Chunk(offset=0, length=0, codec=codec, skip=0, crc32=None, **shared)
        info = self._zip.getinfo(entry)
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED:
            how = "encrypted" if info.flag_bits & _ENCRYPTED else "deflated"
            raise self._unusable(entry, f"is {how} by the ZIP itself, which must store it as it is")
        if info.file_size != info.compress_size:
            raise zipfile.BadZipFile(f"'{entry}' has {info.compress_size} bytes for {info.file_size}")
        if info.file_size > _LONGEST:
            raise self._unusable(entry, f"has {info.file_size} bytes, more than 4 GiB")
        begin = self._begin(info)
        if begin + info.file_size > self._file.size:
            raise zipfile.BadZipFile(f"'{entry}' ends behind the ZIP")
        where: dict[str, Any] = {"offset": self._start + begin, "length": info.file_size, "crc32": info.CRC}
        if codec == RAW:
            if info.file_size != total:
                raise ValueError(f"'{entry}' has {info.file_size} bytes where {total} belong")
            own = math.prod(shape) * dtype.itemsize
            if own != total:  # bytes as they are can be taken from the middle
                where = {"offset": where["offset"] + skip, "length": own, "crc32": None}
            skip = 0
        return Chunk(codec=codec, skip=skip, **where, **shared)

    def _unusable(self, name: str, why: str) -> PairError:
        return PairError(
            AS_IT_LIES, self.path, f"'{name}' {why}, so it cannot be streamed as it lies; build it with sharding.build"
        )


class Span(RangedFile):
    """A part of a file as a file of its own; what was `remember`ed is not read again."""

    def __init__(self, read: Read, start: int, size: int) -> None:
        super().__init__(size)
        self._read, self._start = read, start
        self._kept, self._kept_from = b"", 0

    def _range(self, start: int, count: int) -> bytes:
        within = start - self._kept_from
        if 0 <= within and within + count <= len(self._kept):
            return self._kept[within : within + count]
        return self._read(self._start + start, count)

    def remember(self, start: int, content: bytes) -> None:
        """Keep bytes that were just read from `start` on, and forget those before."""
        self._kept_from, self._kept = start, content
