"""Indexing one shard of an archive as it lies: a task of its own, which leaves a marker when it is done."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import numpy as np

from sharding.bands import presence_mask
from sharding.errors import DataError
from sharding.foreign_archive import Archive, ArchiveShard, Found, IndexedSample, IndexOptions, open_archive
from sharding.manifest import ArraySpec, PartSpec, ShardSpec
from sharding.shard_index import FOREIGN_VERSION, Records, ShardIndex, dump_index, record_dtype
from sharding.shard_task import ShardResult, marker_path
from sharding.sources.base import METADATA, MIXED, NO_DATA, PairError, Sample, StoredArray
from sharding.statistics import Accumulator
from sharding.store import Store

UNPROVEN: Final = "{} tiles of S2 do not prove their radiometric offset and have that of --unproven-offset"
UNSTORED: Final = "{{}} samples store no chunk of {}, for all of it is the fill value: they count as without it"
_LONGEST_KEY: Final = 96


@dataclass(frozen=True, kw_only=True)
class IndexJob:
    """What all shards of an index share."""

    source: str
    root: str
    options: IndexOptions
    arrays: tuple[ArraySpec, ...]
    """Of the data set; a sample that has others is refused."""
    out: str

    @property
    def digest(self) -> str:
        """Of all that determines a shard's index besides its files."""
        told = [self.source, asdict(self.options), [asdict(spec) for spec in self.arrays], FOREIGN_VERSION]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class IndexTask:
    """All that a process needs to index one shard."""

    job: IndexJob
    shard: ArchiveShard
    facts: Any
    sampled: int
    """With `headers_only`: how many of the shard's samples are read for the statistics."""


@dataclass(kw_only=True)
class IndexResult(ShardResult):
    """What the manifest needs to know of an indexed shard; its marker stays, so that nothing is done twice."""

    notes: dict[str, int] = field(default_factory=dict)
    """As `Found.counts`."""
    sampled: int = 0
    """As asked of the task; a shard may have fewer, and refused ones do not count."""
    read: int = 0
    """Samples that the statistics are of."""


def files_digest(shard: ArchiveShard) -> str:
    """Of the files of a shard, by path, size and time."""
    return hashlib.sha256(json.dumps(shard.state).encode()).hexdigest()


def read_result(store: Store, task: IndexTask) -> IndexResult | None:
    """The result of an earlier run if neither the archive's files nor what was made of them have changed, else None."""
    path = marker_path(task.shard.name)
    if not store.exists(path):
        return None
    try:
        result = IndexResult.parse(store.read(path))
    except (ValueError, TypeError, KeyError):
        return None
    if (result.plan, result.files, result.sampled) != (task.job.digest, files_digest(task.shard), task.sampled):
        return None
    spec = result.spec
    for made, size in ((spec.index_path, spec.index_bytes), (spec.metadata_path, spec.metadata_bytes)) if spec else ():
        if not store.exists(made) or store.size(made) != size:
            return None
    return result


_opened: dict[tuple[str, str, IndexOptions], Archive] = {}


def open_once(source: str, root: str, options: IndexOptions) -> Archive:
    """The archive; one a process, for it keeps listings."""
    if (source, root, options) not in _opened:
        _opened[source, root, options] = open_archive(source, root, options)
    return _opened[source, root, options]


def index_shard(task: IndexTask) -> IndexResult:
    """The result of a shard: an earlier run's where it is still true, else made now."""
    job, shard, store = task.job, task.shard, Store(task.job.out)
    known = read_result(store, task)
    if known is not None:
        return known
    archive = open_once(job.source, job.root, job.options)
    found = Found()
    entries = archive.entries(shard, task.facts, found)
    with_pixels = None if not job.options.headers_only else spread(len(entries), task.sampled)
    checksum = checksum_of(job)
    writer = _Writer(job, shard, checksum)
    for number, entry in enumerate(entries):
        key, file = archive.key_of(entry)
        try:
            sample = archive.read(shard, entry, with_pixels is None or number in with_pixels)
            writer.add(sample, file)
            found.counts[UNPROVEN] += sample.is_unproven
        except PairError as error:
            found.refuse(key, job.source, error)
    result = IndexResult(
        name=shard.name, plan=job.digest, files=files_digest(shard), spec=None, sampled=task.sampled,
        refused=found.refused, notes=dict(sorted(found.counts.items())),
    )  # fmt: skip
    for name, count in writer.unstored.items():
        result.notes[UNSTORED.format(name)] = count
    if writer.samples:
        writer.finish(store, result, len(entries))
    store.write(marker_path(shard.name), result.dump())
    return result


def spread(count: int, wanted: int) -> frozenset[int]:
    """`wanted` numbers below `count`, evenly spread."""
    wanted = min(count, wanted)
    return frozenset((2 * i + 1) * count // (2 * wanted) for i in range(wanted))


def refuse_other_layout(sample: IndexedSample, arrays: Iterable[ArraySpec], riders: tuple[str, ...], file: str) -> None:
    """PairError when a sample's arrays are not those of the data set; it may lack those that ride along."""
    known = {spec.name: spec for spec in arrays}
    own = {array.spec.name: array.spec for array in sample.arrays}
    for name in sorted(own.keys() | (known.keys() - set(riders))):
        told, expected = own.get(name), known.get(name)
        if told != expected:
            raise PairError(
                MIXED,
                file,
                f"{name} of {sample.key} is {_described(told)}, of the first samples {_described(expected)}; one "
                " data set holds one kind, index the others apart from it or build all with sharding.build",
            )


def _described(spec: ArraySpec | None) -> str:
    if spec is None:
        return "no array of its own"
    return f"{' '.join(spec.bands)} of {spec.height}x{spec.width} {spec.dtype} {spec.units}"


def checksum_of(job: IndexJob) -> str:
    """What an index has of each payload: a checksum of what was read, else the ZIP's own, which a tar lacks."""
    if not job.options.headers_only:
        return "crc32c"
    return "none" if job.source == "webdataset" else "crc32"


class _Writer:
    """Gathers the records, metadata and statistics of a shard."""

    def __init__(self, job: IndexJob, shard: ArchiveShard, checksum: str) -> None:
        self._job, self._shard, self._checksum = job, shard, checksum
        self._riders = open_once(job.source, job.root, job.options).riders
        self._numbers = {file.path: number for number, file in enumerate(shard.parts)}
        self._statistics = Accumulator()
        self._lines: list[str] = []
        self._levels: list[str] = []
        self._read = 0
        self.samples: list[IndexedSample] = []
        self.unstored: Counter[str] = Counter()
        """Arrays that ride along and have no chunk, by name."""

    def add(self, sample: IndexedSample, file: str) -> None:
        """Take a sample over; PairError when it does not belong to the data set."""
        refuse_other_layout(sample, self._job.arrays, self._riders, file)
        if len(sample.key.encode()) > _LONGEST_KEY:
            raise PairError(METADATA, file, f"the key {sample.key:.40}… has more than {_LONGEST_KEY} bytes")
        for name in [a.spec.name for a in sample.arrays if a.spec.name in self._riders and not a.chunk.length]:
            self.unstored[name] += 1
        sample.arrays = [a for a in sample.arrays if a.chunk.length or a.spec.name not in self._riders]
        for array in sample.arrays:
            if not array.chunk.length:
                told = (
                    f"of {sample.key} no pixel of {' '.join(array.spec.bands)} is stored: all are {array.chunk.fill:g}"
                )
                raise PairError(NO_DATA, file, f"{told}; leave it out")
            if self._checksum == "crc32" and array.chunk.crc32 is None:
                raise PairError(
                    METADATA,
                    file,
                    f"of {array.spec.name} of {sample.key} no checksum is known, since it is a part of a chunk without "
                    "compression; index it without --headers-only",
                )
        if sample.arrays[0].data is not None:
            self._statistics.add(_counted(sample))
            self._read += 1
        for array in sample.arrays:
            array.data = None
        self._lines.append(self._line(sample))
        if sample.level and sample.level not in self._levels:
            self._levels.append(sample.level)
        self.samples.append(sample)

    def finish(self, store: Store, result: IndexResult, num_entries: int) -> None:
        """Write index and metadata, and tell the result of them."""
        records = self._records()
        names = tuple(spec.name for spec in self._job.arrays)
        index = dump_index(ShardIndex(arrays=names, records=records, version=FOREIGN_VERSION, checksum=self._checksum))
        metadata = "".join(self._lines).encode()
        parts = tuple(PartSpec(path=file.path, num_bytes=file.size) for file in self._shard.parts)
        result.spec = ShardSpec(
            path=parts[0].path,
            split=self._shard.split,
            samples=len(self.samples),
            tar_samples=num_entries,
            num_bytes=sum(part.num_bytes for part in parts),
            sha256="",
            index_path=f"index/{self._shard.name}.idx",
            index_bytes=len(index),
            index_sha256=hashlib.sha256(index).hexdigest(),
            metadata_path=f"metadata/{self._shard.name}.jsonl",
            metadata_bytes=len(metadata),
            metadata_sha256=hashlib.sha256(metadata).hexdigest(),
            parts=parts,
        )
        result.bands = sorted({band for sample in self.samples for a in sample.arrays for band in a.spec.bands})
        result.moments, result.read = self._statistics.result(), self._read
        result.counts = {self._job.source: len(self.samples)}
        result.levels = {self._job.source: self._levels}
        store.write(result.spec.index_path, index)
        store.write(result.spec.metadata_path, metadata)

    def _records(self) -> Records:
        key_bytes = max(len(sample.key.encode()) for sample in self.samples)
        records: Records = np.zeros(len(self.samples), record_dtype(len(self._job.arrays), key_bytes, FOREIGN_VERSION))
        columns = {spec.name: column for column, spec in enumerate(self._job.arrays)}
        for record, sample in zip(records, self.samples, strict=True):
            record["key"] = sample.key.encode()
            record["presence"] = presence_mask([band for array in sample.arrays for band in array.spec.bands])
            record["lon"], record["lat"] = sample.lon, sample.lat
            for array in sample.arrays:
                chunk = array.chunk
                checksum = {"crc32c": array.crc32c, "crc32": chunk.crc32, "none": 0}[self._checksum]
                record["arrays"][columns[array.spec.name]] = (
                    chunk.offset, chunk.length, checksum, chunk.codec, array.radiometric_offset,
                    self._numbers[array.file], chunk.skip,
                )  # fmt: skip
        return records

    def _line(self, sample: IndexedSample) -> str:
        lon, lat = (None if math.isnan(value) else value for value in (sample.lon, sample.lat))
        line = {
            "key": sample.key,
            "split": self._shard.split,
            "lon": lon,
            "lat": lat,
            "source": self._job.source,
            "labels": [],
            "crs": sample.crs,
            "level": sample.level,
            "dates": sample.dates,
            "bands": [band for array in sample.arrays for band in array.spec.bands],
            "attributes": sample.attributes,
        }
        return json.dumps(line, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"


def _counted(sample: IndexedSample) -> Sample:
    """The sample as statistics take it: its arrays as they are stored."""
    arrays = {}
    for array in sample.arrays:
        assert array.data is not None
        spec = array.spec
        arrays[spec.name] = StoredArray(
            data=array.data,
            bands=spec.bands,
            units=spec.units,
            gsd_m=spec.gsd_m,
            scale=spec.scale,
            radiometric_offset=array.radiometric_offset,
            nodata=spec.nodata,
        )
    return Sample(key=sample.key, source="", arrays=arrays, crs="", level="", dates={})


def require_unique(keys: Iterable[tuple[str, Records]]) -> None:
    """DataError when a key is in more than one shard; takes the path and the keys of each."""
    paths, found = zip(*keys, strict=True)
    everything = np.concatenate([records["key"] for records in found])
    order = np.argsort(everything, kind="stable")
    twice = np.flatnonzero(everything[order][1:] == everything[order][:-1])
    if not len(twice):
        return
    ends = np.cumsum([len(records) for records in found])
    first, second = (paths[int(np.searchsorted(ends, order[twice[0] + i], side="right"))] for i in (0, 1))
    example = everything[order[twice[0]]].decode()
    raise DataError(
        f"{len(twice)} keys occur more than once, such as {example} in {first} and {second}; "
        "move one of the two away, or give the keys of a plain WebDataset the names of their tars by --prefix-keys"
    )


def without_statistics(result: IndexResult) -> IndexResult:
    """For the way between processes: the marker keeps them."""
    return replace(result, moments={})
