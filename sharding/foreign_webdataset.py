"""Plain WebDataset tars indexed as they lie: members `KEY.FIELD.npy`, in one tar or in several that belong together.

Tars belong together when their names, and those of their folders, differ only in the fields: `train/s1/000.tar` and
`train/s2/000.tar`, or `s1-000.tar` and `s2-000.tar`. What bands and units the arrays have, the user says.
"""

import io
import math
import re
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from sharding.bands import ALL_BANDS, S1_BANDS, S2_BANDS
from sharding.errors import ConfigError
from sharding.foreign_archive import (
    Archive,
    ArchiveShard,
    ChunkReader,
    Found,
    IndexedArray,
    IndexedSample,
    IndexOptions,
    NpyArray,
    read_file,
)
from sharding.foreign_codec import RAW
from sharding.foreign_store import BESIDE
from sharding.foreign_zarr import AS_IT_LIES, Chunk
from sharding.manifest import ArraySpec
from sharding.sources.assemble import Radiometry, _check_s1, _refuse_empty
from sharding.sources.base import CORRUPT, METADATA, MISSING_HALF, WRONG_SIZE, WRONG_TYPE, PairError, SourceFile
from sharding.sources.tar_members import Member, scan_tar
from sharding.sources.terramesh_shards import tile_key
from sharding.splits import SPLITS
from sharding.tally import BIN_WIDTHS

_MEMBER: Final = re.compile(r"(?P<key>(?:.*/)?[^./]+)\.(?P<field>[^/]*)\.npy", re.IGNORECASE)
"""As webdataset splits names: the key ends at the first dot behind the last slash."""
_ARRAY: Final = re.compile(
    r"(?P<name>[A-Za-z][A-Za-z0-9_-]*)=(?P<bands>[A-Za-z0-9_,]+):(?P<units>[A-Za-z]+)(?P<more>(?::[^:]+)*)"
)
_KEY: Final = re.compile(r"[A-Za-z0-9_/-]{1,91}", re.ASCII)
_HEAD: Final = 256
"""Bytes that hold the header of nearly every .npy."""
_NUMBERS: Final = {"scale": "scale", "offset": "offset", "nodata": "nodata", "gsd": "gsd_m"}


def parse_array(text: str) -> NpyArray:
    """What `--array NAME=BAND,…:UNITS[:scale=…][:offset=…][:nodata=…][:gsd=…]` says; ConfigError for anything else."""
    found = _ARRAY.fullmatch(text)
    if found is None:
        raise ConfigError(f"--array is '{text}'; write NAME=BAND,BAND:UNITS, such as s1=VV,VH:dB or s2=B02,B03,B04:DN")
    bands = tuple(found["bands"].split(","))
    strange = [band for band in bands if band not in ALL_BANDS]
    if strange or len(set(bands)) < len(bands):
        told = f"'{strange[0]}'" if strange else "a band twice"
        raise ConfigError(f"--array {found['name']} has {told}; there are {' '.join(ALL_BANDS)}")
    if len({_kind(band) for band in bands}) > 1:
        raise ConfigError(f"--array {found['name']} mixes bands of S1, of S2 or others, which have units of their own")
    if found["units"] not in BIN_WIDTHS:
        raise ConfigError(f"--array {found['name']} is in '{found['units']}'; units are {', '.join(BIN_WIDTHS)}")
    numbers: dict[str, float] = {}
    for setting in found["more"].split(":")[1:]:
        name, _, value = setting.partition("=")
        try:
            numbers[_NUMBERS[name]] = float(value)
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"--array {found['name']} has '{setting}'; write {', '.join(f'{known}=NUMBER' for known in _NUMBERS)}"
            ) from error
    if not all(map(math.isfinite, numbers.values())) or min(numbers.get("scale", 1.0), numbers.get("gsd_m", 1.0)) <= 0:
        raise ConfigError(f"--array {found['name']}: its numbers are finite, scale and gsd above 0")
    return NpyArray(name=found["name"], bands=bands, units=found["units"], **numbers)


def _kind(band: str) -> str:
    return "s1" if band in S1_BANDS else "s2" if band in S2_BANDS else band


@dataclass(frozen=True, kw_only=True)
class _Entry:
    key: str
    members: dict[str, tuple[str, Member]]
    """Path of the tar and place in it, by name of the array."""


class IndexedWebDataset(Archive):
    """Shards are tars that belong together; samples come in the order of the members of the first array."""

    name = "webdataset"
    version = ""

    def __init__(self, root: str, options: IndexOptions) -> None:
        super().__init__(root, options)
        if not options.arrays:
            raise ConfigError("plain .npy do not say what they hold; name each by --array, such as --array s1=VV,VH:dB")
        bands = [band for array in options.arrays for band in array.bands]
        names = [array.name.lower() for array in options.arrays]
        for what, values in (("band", bands), ("array", names)):
            if twice := sorted({value for value in values if values.count(value) > 1}):
                raise ConfigError(f"the {what} {twice[0]} is in more than one --array; name each once")
        self._arrays = {array.name.lower(): array for array in options.arrays}
        self._chunks = ChunkReader()
        self._headers: dict[bytes, tuple[int, tuple[int, ...], np.dtype[Any], bool]] = {}

    def shards(self, found: Found) -> list[ArchiveShard]:
        """The tars, by split and by what their names have in common."""
        self.tree.require()
        groups: dict[tuple[str, str], list[SourceFile]] = {}
        for file in self._tars(""):
            split = self.options.split or file.path.split("/")[0]
            if split not in SPLITS:
                raise ConfigError(
                    f"{self.tree.store.name(file.path)} is in none of the folders {', '.join(SPLITS)}; say by --split "
                    "which split it is, for each split an index of its own"
                )
            groups.setdefault((split, self._common_name(file.path, split)), []).append(file)
        if not groups:
            where = "" if self.options.split else f" in {', '.join(SPLITS)}"
            raise ConfigError(f"{self.tree.store.url} holds no .tar{where}; give --root the folder that holds them")
        if not self.options.split:
            for name in self.tree.folders():
                if name not in (*SPLITS, BESIDE):
                    found.counts[f"the folder {name} is none of {', '.join(SPLITS)} and is not looked into"] += 1
        ordered = sorted(groups.items(), key=lambda item: (SPLITS.index(item[0][0]), item[0][1]))
        return [
            ArchiveShard(name=f"{split}-{name}", split=split, parts=tuple(sorted(files, key=lambda file: file.path)))
            for (split, name), files in ordered
        ]

    def entries(self, shard: ArchiveShard, facts: Any, found: Found) -> list[_Entry]:
        """The samples that have all arrays, by the headers of the tars."""
        members: dict[str, dict[str, tuple[str, Member]]] = {}
        twice: dict[str, str] = {}
        for part in shard.parts:
            try:
                inside, repeated = scan_tar(self.tree, part.path)
            except PairError as error:
                found.refuse(shard.name, self.name, error)
                return []  # it is not known what else it held
            for name, member in inside.items():
                match = _MEMBER.fullmatch(name)
                if match is None or match["field"].lower() not in self._arrays:
                    found.counts["{} members of the tars are of no --array and are left out"] += 1
                    continue
                array = self._arrays[match["field"].lower()].name
                if array in members.setdefault(match["key"], {}) or name in repeated:
                    twice[match["key"]] = part.path
                members[match["key"]][array] = part.path, member
        entries = []
        for name, there in members.items():
            try:
                entries.append(self._entry(shard, name, there, twice))
            except PairError as error:
                found.refuse(self._key(shard, name), self.name, error)
        first = self.options.arrays[0].name
        return sorted(entries, key=lambda entry: (entry.members[first][0], entry.members[first][1].offset))

    def key_of(self, entry: _Entry) -> tuple[str, str]:
        """The key, and the tar of the first array."""
        return entry.key, entry.members[self.options.arrays[0].name][0]

    def read(self, shard: ArchiveShard, entry: _Entry, pixels: bool) -> IndexedSample:
        """One sample, whose arrays lie as they are behind their headers."""
        files = {file.path: file for file in shard.parts}
        found = IndexedSample(key=entry.key, arrays=[], level=self.options.level)
        for about in self.options.arrays:
            path, member = entry.members[about.name]
            name = f"{path}, {about.name} of {entry.key}"
            content = read_file(
                self.tree, files[path], member.offset, member.size if pixels else min(member.size, _HEAD)
            )
            array = self._located(about, files[path], member, content, name)
            if pixels:
                self._chunks.fill(array, name, lambda at, n, c=content, m=member: c[at - m.offset : at - m.offset + n])
                _check(array, name)
            found.arrays.append(array)
        found.attributes = {"shard": shard.name}
        return found

    def _tars(self, folder: str) -> list[SourceFile]:
        found = [file for name, file in self.tree.files(folder).items() if name.endswith(".tar")]
        for name in self.tree.folders(folder):
            if folder or self.options.split or name in SPLITS:
                found += self._tars(f"{folder}/{name}" if folder else name)
        return found

    def _common_name(self, path: str, split: str) -> str:
        """A tar's name without its split and without the names of arrays; parts that begin with one count too."""
        parts = path.removesuffix(".tar").split("/")
        parts = parts[1:] if parts[0] == split and len(parts) > 1 else parts
        # The longest first, and no splitting before: a name may hold `-` and `_` itself, and begin with another one.
        names = "|".join(re.escape(name) for name in sorted(self._arrays, key=len, reverse=True))
        of_array = re.compile(rf"(?<![^-_.])(?:{names})(?![0-9])[^-_.]*", re.IGNORECASE)
        words = [word for part in parts for word in re.split(r"[-_.]", of_array.sub("", part)) if word]
        return re.sub(r"[^A-Za-z0-9_-]", "_", "-".join(words)) or "all"

    def _entry(
        self, shard: ArchiveShard, name: str, there: dict[str, tuple[str, Member]], twice: dict[str, str]
    ) -> _Entry:
        lacking = [array.name for array in self.options.arrays if array.name not in there]
        path = next(iter(there.values()))[0]
        if lacking:
            others = ", ".join(part.path for part in shard.parts)
            raise PairError(MISSING_HALF, path, f"there is no {name}.{lacking[0]}.npy in {others}; fetch them again")
        if name in twice:
            raise PairError(METADATA, twice[name], f"it has an array of {name} a second time; fetch it again")
        return _Entry(key=self._key(shard, name), members=there)

    def _key(self, shard: ArchiveShard, name: str) -> str:
        key = f"{shard.name}/{name}" if self.options.prefix_keys else name
        return key if _KEY.fullmatch(key) else tile_key(key)

    def _located(self, about: NpyArray, file: SourceFile, member: Member, content: bytes, name: str) -> IndexedArray:
        begin, shape, dtype, by_column = self._header(file, member, content, name)
        if by_column or dtype.byteorder == ">" or dtype.kind not in "fiu" or dtype.itemsize > 8:
            why = "column by column (fortran_order)" if by_column else f"as {dtype.str}"
            message = (
                f"it is stored {why}, so it cannot be streamed as it lies; write it again, in C order, little-endian"
            )
            raise PairError(AS_IT_LIES, name, message)
        planes = len(about.bands)
        if len(shape) == 2 and planes == 1:
            shape = (1, *shape)
        if len(shape) != 3 or shape[0] != planes or not math.prod(shape):
            raise PairError(WRONG_SIZE, name, f"it has the shape {shape}, ({planes}, height, width) was expected")
        size = math.prod(shape) * dtype.itemsize
        if begin + size != member.size:
            raise PairError(
                CORRUPT, name, f"it has {member.size} bytes, its header says {begin + size}; fetch it again"
            )
        own = (shape[0], shape[1], shape[2])
        chunk = Chunk(offset=member.offset + begin, length=size, codec=RAW, skip=0, crc32=None, dtype=dtype, shape=own)
        spec = ArraySpec(
            name=about.name,
            bands=about.bands,
            dtype=dtype.name,
            height=own[1],
            width=own[2],
            gsd_m=about.gsd_m,
            units=about.units,
            scale=about.scale,
            nodata=_as_stored(about, dtype, name),
        )
        return IndexedArray(spec=spec, file=file.path, chunk=chunk, radiometric_offset=about.offset)

    def _header(
        self, file: SourceFile, member: Member, content: bytes, name: str
    ) -> tuple[int, tuple[int, ...], np.dtype[Any], bool]:
        """Where the pixels begin, shape, type, and whether the first axis runs fastest."""
        width = 2 if content[6:7] == b"\x01" else 4
        end = 8 + width + int.from_bytes(content[8 : 8 + width], "little")
        if content[:6] != b"\x93NUMPY" or not 8 + width < end <= min(member.size, 1 << 16):
            raise PairError(CORRUPT, name, "it is no .npy; fetch the tar again")
        head = content[:end] if end <= len(content) else read_file(self.tree, file, member.offset, end)
        if head not in self._headers:
            stream = io.BytesIO(head)
            try:
                version = np.lib.format.read_magic(stream)
                parse = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, by_column, dtype = parse(stream)
            except (ValueError, EOFError) as error:
                raise PairError(CORRUPT, name, f"its .npy header cannot be read ({error}); fetch it again") from error
            self._headers[head] = end, tuple(shape), dtype, bool(by_column)
        return self._headers[head]


def _as_stored(about: NpyArray, dtype: np.dtype[Any], name: str) -> float | None:
    """The number without data as the type holds it; PairError when it cannot, for then no pixel would ever match."""
    if about.nodata is None:
        return None
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            stored = float(dtype.type(about.nodata))
    else:
        limits = np.iinfo(dtype)
        stored = about.nodata if about.nodata.is_integer() and limits.min <= about.nodata <= limits.max else math.inf
    if not math.isfinite(stored):
        message = f"--array {about.name} has nodata={about.nodata:g}, which its {dtype.name} cannot hold; give another"
        raise PairError(WRONG_TYPE, name, f"{message}, or none")
    return stored


def _check(array: IndexedArray, name: str) -> None:
    """As a build does: S1 must be a measurement in its units, S2 must not be empty."""
    assert array.data is not None
    spec = array.spec
    paths = [name] * len(spec.bands)
    if set(spec.bands) <= set(S1_BANDS):
        _refuse_empty(array.data, spec.bands, paths, spec.nodata)
        radiometry = Radiometry(s1_units=spec.units, s1_scale=spec.scale, s1_nodata=spec.nodata)
        _check_s1(array.data, spec.bands, paths, radiometry)
    elif set(spec.bands) <= set(S2_BANDS):
        _refuse_empty(array.data, spec.bands, paths, spec.nodata)
