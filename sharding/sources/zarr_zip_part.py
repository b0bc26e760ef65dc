"""A large Zarr group of version 2 in a ZIP, on a disk or in an object store: small arrays whole, pixels in parts.

Nothing is read but the ZIP's directory and what is asked for, by ranges of bytes; no file stays open. Where a chunk
holds more than is needed (SSL4EO-S12 v1.1 may keep 64 patches in one), only the Blosc blocks of the needed part are
read and decoded; the CRC-32 of the ZIP's entry, which is of the whole, is not checked then.
"""

import io
import itertools
import json
import math
import struct
import zipfile
from collections import OrderedDict
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sharding.errors import StorageError
from sharding.sources.base import CORRUPT, MISSING_HALF, PairError, SourceFile
from sharding.sources.blosc_part import decode_part
from sharding.sources.ranged_file import RangedFile
from sharding.sources.tree import Tree
from sharding.sources.zarr_zip import _BROKEN, ZippedGroup, _codec, _fill
from sharding.store import Store

_BUFFER: Final = 1 << 16
_LOCAL_HEADER: Final = struct.Struct("<4s22xHH")
_WORTH: Final = 2
"""How many times the part a chunk must be for the part to be read alone."""


class GroupFile(ZippedGroup):
    """The group in the ZIP `file`; every failure of its content is a PairError (CORRUPT) that names the file."""

    def __init__(self, tree: Tree, file: SourceFile) -> None:
        self.path = file.path
        self._file = _Ranges(tree.store, file)
        self._metadata: dict[str, dict[str, Any]] = {}
        try:
            self._zip = zipfile.ZipFile(io.BufferedReader(self._file, _BUFFER))
        except _BROKEN as error:
            raise self._broken("it is no whole ZIP", error) from error
        self._names = frozenset(self._zip.namelist())
        if ".zgroup" not in self._names:
            raise PairError(CORRUPT, file.path, "it holds no Zarr group of version 2; fetch it again")

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array."""
        return tuple(self._described(name)["shape"])

    def part(self, name: str, *place: int) -> npt.NDArray[Any]:
        """`array[place]` with an index for each of the first axes; decodes the chunks that hold it, or less."""
        metadata = self._described(name)
        try:
            return self._decode_part(name, metadata, place)
        except _BROKEN as error:
            raise self._broken(f"its array '{name}' cannot be decoded at {list(place)}", error) from error

    def _described(self, name: str) -> dict[str, Any]:
        if name not in self:
            raise PairError(CORRUPT, self.path, f"it has no array '{name}'; fetch it again")
        if name not in self._metadata:
            try:
                metadata = json.loads(self._zip.read(f"{name}/.zarray"))
                if metadata["zarr_format"] != 2 or len(metadata["shape"]) != len(metadata["chunks"]):
                    raise ValueError(f"zarr_format {metadata['zarr_format']}, chunks {metadata['chunks']}")
                self._metadata[name] = metadata
            except _BROKEN as error:
                raise self._broken(f"the metadata of '{name}' cannot be read", error) from error
        return self._metadata[name]

    def _decode_part(self, name: str, metadata: dict[str, Any], place: tuple[int, ...]) -> npt.NDArray[Any]:
        shape, chunks = tuple(metadata["shape"]), tuple(metadata["chunks"])
        dtype = np.dtype(str(metadata["dtype"]))
        fixed = len(place)
        if fixed > len(shape) or any(not 0 <= i < length for i, length in zip(place, shape, strict=False)):
            raise ValueError(f"its shape is {shape}")
        separator = metadata.get("dimension_separator", ".")
        chunk_place = [i // step for i, step in zip(place, chunks, strict=False)]
        inside = tuple(i % step for i, step in zip(place, chunks, strict=False))
        part = np.full(shape[fixed:], _fill(metadata.get("fill_value"), dtype), dtype)
        counts = [range(-(-length // step)) for length, step in zip(shape[fixed:], chunks[fixed:], strict=True)]
        for rest in itertools.product(*counts):
            entry = f"{name}/{separator.join(map(str, (*chunk_place, *rest)))}"
            if entry not in self._names:
                continue  # a chunk that is all fill value is not stored
            chunk = self._chunk_part(entry, metadata, dtype, chunks, inside)
            spans = [
                (number * step, min(step, length - number * step))
                for number, step, length in zip(rest, chunks[fixed:], shape[fixed:], strict=True)
            ]
            part[tuple(slice(start, start + size) for start, size in spans)] = chunk[
                tuple(slice(size) for _, size in spans)
            ]
        return part

    def _chunk_part(
        self,
        entry: str,
        metadata: dict[str, Any],
        dtype: np.dtype[Any],
        chunks: tuple[int, ...],
        inside: tuple[int, ...],
    ) -> npt.NDArray[Any]:
        """The chunk at the indices `inside` on its first axes."""
        info, compressor = self._zip.getinfo(entry), metadata.get("compressor")
        rest = chunks[len(inside) :]
        size = math.prod(rest) * dtype.itemsize
        plain = info.compress_type == zipfile.ZIP_STORED and metadata["order"] == "C" and not metadata.get("filters")
        if plain and (compressor or {}).get("id") == "blosc" and math.prod(chunks) * dtype.itemsize >= _WORTH * size:
            start = int(np.ravel_multi_index(inside, chunks[: len(inside)])) * size if inside else 0
            begin = self._begin(info)

            def read(offset: int, count: int) -> bytes:
                if offset + count > info.file_size:
                    raise ValueError("a Blosc buffer is longer than its entry")
                return self._file.read_at(begin + offset, count)

            total = math.prod(chunks) * dtype.itemsize
            return np.frombuffer(decode_part(read, info.file_size, total, start, start + size), dtype).reshape(rest)
        content: Any = self._zip.read(entry)
        for config in reversed([*(metadata.get("filters") or []), *([compressor] if compressor else [])]):
            content = _codec(config).decode(content)
        flat = content if dtype.hasobject else np.frombuffer(content, dtype)
        return np.asarray(flat.reshape(chunks, order=metadata["order"])[inside])

    def _begin(self, info: zipfile.ZipInfo) -> int:
        """Where the bytes of an entry begin: the directory does not say how long its local header is."""
        signature, name, extra = _LOCAL_HEADER.unpack(self._file.read_at(info.header_offset, _LOCAL_HEADER.size))
        if signature != b"PK\x03\x04":
            raise zipfile.BadZipFile(f"no entry where '{info.filename}' should be")
        return info.header_offset + _LOCAL_HEADER.size + int(name) + int(extra)


class GroupFiles:
    """The groups of a tree, the latest used of them kept: directory and metadata, not pixels and no open file."""

    def __init__(self, tree: Tree, kept: int) -> None:
        self._tree, self._kept = tree, kept
        self._groups: OrderedDict[SourceFile, GroupFile] = OrderedDict()

    def open(self, path: str) -> GroupFile:
        """The group at `path`; read anew when the file has changed."""
        file = self._tree.file(path)
        if file is None:
            raise PairError(MISSING_HALF, path, "the file is missing; fetch it again")
        group = self._groups.pop(file, None) or GroupFile(self._tree, file)
        self._groups[file] = group
        while len(self._groups) > self._kept:
            self._groups.popitem(last=False)
        return group


class _Ranges(RangedFile):
    """A file of a store; errors of the store stay errors of the store."""

    def __init__(self, store: Store, file: SourceFile) -> None:
        super().__init__(file.size)
        self._store, self._path = store, file.path

    def _range(self, start: int, count: int) -> bytes:
        try:
            return self._store.read_range(self._path, start, start + count)
        except OSError as error:
            raise StorageError(f"cannot read {self._store.name(self._path)}: {error}") from error
