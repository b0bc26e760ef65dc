"""What an archive that is indexed as it lies gives: its shards, and of each sample where its arrays are stored."""

import importlib
import os
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import google_crc32c
import numpy as np
import numpy.typing as npt

from sharding.bands import array_of
from sharding.errors import ConfigError, DataError
from sharding.foreign_codec import decode_foreign
from sharding.foreign_zarr import Chunk
from sharding.manifest import ArraySpec
from sharding.sources.base import CORRUPT, MISSING_HALF, PairError, Sample, SourceFile
from sharding.sources.listing import Refusal
from sharding.sources.tree import Tree

ARCHIVES: Final = {
    "terramesh": "sharding.foreign_terramesh:IndexedTerraMesh",
    "ssl4eo-s12-v1.1": "sharding.foreign_ssl4eo:IndexedSSL4EO",
    "webdataset": "sharding.foreign_webdataset:IndexedWebDataset",
}
"""Name of a source -> where its class is."""


@dataclass(frozen=True, kw_only=True)
class NpyArray:
    """What the user says of the members `KEY.NAME.npy` of a plain WebDataset."""

    name: str
    bands: tuple[str, ...]
    units: str
    scale: float = 1.0
    offset: float = 0.0
    """Radiometric: added to the stored numbers before the scale."""
    nodata: float | None = None
    gsd_m: float = 10.0


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """What determines an index besides the archive."""

    level: str = ""
    """`L1C` or `L2A` of S2, where an archive has both or does not say; empty: L2A if there is one."""
    riders: bool = False
    """Whether elevation, masks and the like come along."""
    headers_only: bool = False
    """Whether pixels stay unread but for `statistics_from` samples."""
    statistics_from: int = 0
    unproven_offset: float | None = None
    """What S2 tiles get whose pixels do not prove their radiometric offset; None: they are left out."""
    arrays: tuple[NpyArray, ...] = ()
    split: str = ""
    """Of all tars of a plain WebDataset; empty: the folder says it."""
    prefix_keys: bool = False
    """Whether the keys of a plain WebDataset get the name of their tar in front."""


@dataclass(frozen=True, kw_only=True)
class ArchiveShard:
    """Files that belong together."""

    name: str
    """Of its index; unique in the archive."""
    split: str
    parts: tuple[SourceFile, ...]
    """Files that hold payloads; a payload's `file` is a number in them."""
    others: tuple[SourceFile, ...] = ()
    """Files whose change matters too."""
    content: Any = None
    """What the archive needs to read it."""

    @property
    def state(self) -> list[tuple[str, int, str]]:
        """What shows that one of its files changed."""
        return [(file.path, file.size, file.version) for file in (*self.parts, *self.others)]


@dataclass(kw_only=True)
class Found:
    """What is told of an archive or a shard besides its samples."""

    refused: list[Refusal] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """Sentences without their number, and the number: `{} tiles have no DEM`."""

    def refuse(self, key: str, source: str, error: PairError) -> None:
        """Add a refusal to the list."""
        self.refused.append(
            Refusal(key=key, source=source, reason=error.reason, file=error.file, message=error.message)
        )


@dataclass(kw_only=True)
class IndexedArray:
    """An array of a sample, where it lies."""

    spec: ArraySpec
    file: str
    """Path of the part that holds it."""
    chunk: Chunk
    radiometric_offset: float = 0.0
    crc32c: int = 0
    """Of the stored chunk; of no meaning while `data` is None."""
    data: npt.NDArray[Any] | None = None
    """Its pixels, where they were read."""


@dataclass(kw_only=True)
class IndexedSample:
    """A sample that can be streamed as it lies."""

    key: str
    arrays: list[IndexedArray]
    crs: str = ""
    level: str = ""
    dates: dict[str, str] = field(default_factory=dict)
    lon: float = float("nan")
    lat: float = float("nan")
    attributes: dict[str, Any] = field(default_factory=dict)
    is_unproven: bool = False
    """Whether its radiometric offset is what the user says, for want of a proof."""


class Archive(ABC):
    """An archive at a root; `read` raises PairError for what cannot be a sample."""

    name: str
    version: str
    riders: tuple[str, ...] = ()
    """Arrays that ride along and so may be missing from samples."""
    proves_offset: bool = False
    """Whether the radiometric offset of S2 is proven by pixels, so that samples without a proof are refused."""

    def __init__(self, root: str, options: IndexOptions) -> None:
        self.tree = Tree(root)
        self.options = options

    @abstractmethod
    def shards(self, found: Found) -> list[ArchiveShard]:
        """All shards; looks at names and sizes only. ConfigError when there is no such archive at the root."""

    def facts(self, shard: ArchiveShard) -> Any:
        """What the archive's tables know of a shard, for `entries`; read where the tables are at hand."""
        return None

    @abstractmethod
    def entries(self, shard: ArchiveShard, facts: Any, found: Found) -> list[Any]:
        """The samples that a shard may have, in the order of its first part, by headers and directories alone."""

    @abstractmethod
    def key_of(self, entry: Any) -> tuple[str, str]:
        """Key of an entry, and the file that messages name."""

    @abstractmethod
    def read(self, shard: ArchiveShard, entry: Any, pixels: bool) -> IndexedSample:
        """One sample; with `pixels` these are read, checked and compared with what the archive's own reader gives."""


def open_archive(name: str, root: str, options: IndexOptions) -> Archive:
    """The archive `name` at `root`; nothing is read yet."""
    if name not in ARCHIVES:
        raise ConfigError(f"there is no archive '{name}' that can be indexed; there are {', '.join(ARCHIVES)}")
    module, _, cls = ARCHIVES[name].partition(":")
    opened: Archive = getattr(importlib.import_module(module), cls)(root, options)
    return opened


def read_file(tree: Tree, file: SourceFile, start: int, count: int) -> bytes:
    """Bytes of a file of an archive; PairError when it has no such bytes."""
    if start + count > file.size:
        raise PairError(CORRUPT, file.path, f"it ends before byte {start + count}: it is cut short; fetch it again")
    local = tree.local(file.path)
    if local is None:
        return tree.store.read_range(file.path, start, start + count)
    try:
        descriptor = os.open(local, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise PairError(MISSING_HALF, file.path, "the file is missing; fetch it again") from error
    content = b""
    try:
        while len(content) < count and (more := os.pread(descriptor, count - len(content), start + len(content))):
            content = content + more if content else more
    except OSError as error:
        raise PairError(CORRUPT, file.path, f"bytes {start} to {start + count} cannot be read ({error})") from error
    finally:
        os.close(descriptor)
    if len(content) < count:
        raise PairError(CORRUPT, file.path, f"it ends before byte {start + count}: it is cut short; fetch it again")
    return content


class ChunkReader:
    """Reads chunks and checks them once, also where the samples of one chunk follow one another."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[Chunk, str, bytes, int]] = {}

    def fill(self, array: IndexedArray, path: str, read: Any) -> bytes:
        """Read the pixels of `array` with `read(start, count)`; returns what is stored.

        PairError that names `path` when the ZIP's CRC-32 does not match or the chunk cannot be decoded.
        """
        chunk = array.chunk
        if not chunk.length:
            array.data = np.full(chunk.shape, chunk.fill, chunk.dtype)
            return b""
        array.data = np.empty(chunk.shape, chunk.dtype)
        known, of, stored, array.crc32c = self._last.get(array.spec.name, (None, "", b"", 0))
        if known is None or (of, known.offset, known.length) != (array.file, chunk.offset, chunk.length):
            stored = read(chunk.offset, chunk.length)
            if chunk.crc32 is not None and zlib.crc32(stored) != chunk.crc32:
                raise PairError(
                    CORRUPT, path, f"the CRC-32 of '{array.spec.name}' does not match: it is damaged; fetch it again"
                )
            array.crc32c = google_crc32c.value(stored)
            self._last[array.spec.name] = chunk, array.file, stored, array.crc32c
        try:
            decode_foreign(stored, array.data, chunk.codec, chunk.skip)
        except DataError as error:
            raise PairError(
                CORRUPT, path, f"'{array.spec.name}' cannot be decoded ({error}); fetch it again"
            ) from error
        return stored


def arrays_of_chunks(
    prefix: str, bands: tuple[str, ...], chunks: tuple[Chunk, ...], file: str, *, units: str, gsd_m: float
) -> Iterator[IndexedArray]:
    """An array for each chunk: called `prefix` where there is one, else with the names of its bands behind it."""
    first = 0
    for chunk in chunks:
        planes, height, width = chunk.shape
        some = bands[first : first + planes]
        first += planes
        spec = ArraySpec(
            name=prefix if len(chunks) == 1 else f"{prefix}_{'_'.join(some)}",
            bands=some,
            dtype=chunk.dtype.name,
            height=height,
            width=width,
            gsd_m=gsd_m,
            units=units,
        )
        yield IndexedArray(spec=spec, file=file, chunk=chunk)


def prove(array: IndexedArray, sample: Sample, path: str) -> None:
    """PairError when the pixels of `array` are not those that the archive's own reader has found in it."""
    assert array.data is not None
    for band, plane in zip(array.spec.bands, array.data, strict=True):
        stored = sample.arrays[array_of(band)]
        expected = stored.data[stored.bands.index(band)]
        if plane.astype(expected.dtype).tobytes() != expected.tobytes():
            raise PairError(
                CORRUPT, path, f"{band} decoded in place is not what its Zarr group holds; please report it"
            )
