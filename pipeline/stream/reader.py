"""Random access to samples: payloads go from the shard straight into a batch's slot, checked and decoded.

Local shards are read in place, all arrays of a sample with one system call. Other stores are asked for whole runs of
samples, which stay in memory while they are in use.
"""

import os
import resource
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import google_crc32c
import numpy as np
import numpy.typing as npt

from pipeline.stream.order import RUN_BYTES
from pipeline.stream.run_cache import ByteRange, RunCache, wrong_size
from pipeline.stream.table import SampleTable
from sharding.bands import present_bands
from sharding.codec import CODECS, decode_into
from sharding.errors import ConfigError, DataError, StorageError
from sharding.manifest import ArraySpec, Manifest
from sharding.store import Store

Slots = dict[str, npt.NDArray[Any]]
Bytes = npt.NDArray[np.uint8]
Run = tuple[int, int]
"""Numbers of a run's first sample and of the first one behind it; all in one shard."""
OTHER_FILES: Final = 1024
"""Open files that the rest of the process may need beside the shards."""
_NONE: Final = CODECS.index("none")


class SampleReader:
    """Reads samples of one split by number, from any number of threads."""

    def __init__(
        self, store: Store, manifest: Manifest, split: str, *, verify: bool = True, cache_gib: float = 2.0
    ) -> None:
        self.manifest = manifest
        self.split = split
        self._store = store
        self._verify = verify
        self._arrays = manifest.arrays
        self._scratch = threading.local()
        self._planes: dict[int, list[_Planes]] = {}
        self._descriptors: list[int] = []
        self._cache_bytes = int(cache_gib * 2**30)
        self._cache = None if store.is_local else RunCache(store, self._cache_bytes)
        self._run_samples = 1
        try:
            self.table = SampleTable.load(store, manifest, split, self._cache.map if self._cache else _map)
            if self._cache is None:
                self._open_shards()
        except BaseException:
            self.close()
            raise

    @property
    def num_samples(self) -> int:
        """Samples of the split."""
        return len(self.table)

    @property
    def sample_bytes(self) -> float:
        """Mean size of a sample in its shard, by the manifest."""
        return sum(shard.num_bytes for shard in self.table.shards) / max(len(self.table), 1)

    @property
    def num_requests(self) -> int:
        """Ranges asked of an object store so far; 0 for local data."""
        return self._cache.num_requests if self._cache else 0

    @property
    def is_remote(self) -> bool:
        """Whether runs must be acquired before samples are read."""
        return self._cache is not None

    @property
    def is_busy(self) -> bool:
        """Whether enough runs are on their way, or the runs in use fill the cache."""
        return self._cache is not None and self._cache.is_busy

    def set_run_samples(self, run_samples: int) -> None:
        """Fetch runs of this many samples, or longer ones where the whole split fits into the cache."""
        if self.num_samples * self.sample_bytes <= self._cache_bytes:
            run_samples = max(run_samples, round(RUN_BYTES / max(self.sample_bytes, 1.0)))
        self._run_samples = run_samples

    def refuse_small_cache(self, num_streams: int, samples_per_stream: int) -> None:
        """ConfigError when the cache cannot hold so many samples of so many streams, and so would fetch them twice."""
        wanted = min(num_streams * samples_per_stream, self.num_samples) * self.sample_bytes
        if self.is_remote and wanted > self._cache_bytes:
            raise ConfigError(
                f"{num_streams} streams of this rank need {wanted / 2**30:.2f} GiB of cache for their shuffle windows, "
                f"cache_gib is {self._cache_bytes / 2**30:.2f}; raise cache_gib, or lower window_gib"
            )

    def runs_of(self, samples: Iterable[int]) -> set[Run]:
        """The runs in which samples lie; empty for local data, which needs none."""
        return {self._run_of(sample) for sample in samples} if self.is_remote else set()

    def acquire(self, runs: Iterable[Run]) -> None:
        """Start to fetch runs and keep them until `release`."""
        for run in runs:
            assert self._cache is not None
            self._cache.acquire(run, self._range_of(run))

    def release(self, runs: Iterable[Run]) -> None:
        """Give runs back."""
        for run in runs:
            assert self._cache is not None
            self._cache.release(run)

    def read_into(self, sample: int, slots: Slots) -> None:
        """Fill `slots` (by array name: bands x height x width) with a sample; absent bands become 0.

        The sample's run must have been acquired. Raises DataError naming shard, key and array when the payload is
        not what the index says, StorageError when it cannot be read.
        """
        start, end = int(self.table.start[sample]), int(self.table.end[sample])
        todo = self._todo(sample, slots)
        if self._cache is not None:
            run = self._run_of(sample)
            content = self._cache.get(run)
            try:
                self._decode(sample, todo, *self._within(run, content))
            except DataError:
                content = self._cache.refetch(run, content)  # a bit may have flipped on the way
                self._decode(sample, todo, *self._within(run, content))
        elif self._reads_in_place(sample, todo):
            self._scatter(sample, todo, start)
        else:
            scratch = self._buffer("span", max(end - start, 0))
            self._pread(sample, [scratch], start)
            self._decode(sample, todo, scratch, start)

    def close(self) -> None:
        """Close the shards and end the fetching threads."""
        if self._cache is not None:
            self._cache.close()
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _open_shards(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = len(self.table.shards) + OTHER_FILES
        if soft < wanted:  # often 1,024 by default; a process may raise it up to `hard` by itself
            limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))
        for shard in self.table.shards:
            path = self._store.full(shard.path)
            try:
                self._descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            except FileNotFoundError as error:
                raise DataError(f"shard {path} is missing; fetch or build it again") from error
            except OSError as error:
                raise StorageError(f"cannot open shard {path}: {error.strerror}") from error
            size = os.fstat(self._descriptors[-1]).st_size
            if size != shard.num_bytes:
                raise wrong_size(path, size, shard.num_bytes)

    def _run_of(self, sample: int) -> Run:
        begin, end = self.table.first_sample[(shard := self.table.shard_of(sample)) : shard + 2].tolist()
        first = sample - (sample - begin) % self._run_samples
        return first, min(first + self._run_samples, end)

    def _range_of(self, run: Run) -> ByteRange:
        spec = self.table.shards[self.table.shard_of(run[0])]
        return ByteRange(spec.path, *self.table.span(*run), spec.num_bytes)

    def _within(self, run: Run, content: bytes) -> tuple[Bytes, int]:
        return np.frombuffer(content, np.uint8), self._range_of(run).start

    def _todo(self, sample: int, slots: Slots) -> list["_Payload"]:
        """The sample's payloads in the order of the tar; bands that it lacks are set to 0 here."""
        presence = int(self.table.presence[sample])
        planes = self._planes.get(presence)
        if planes is None:
            planes = self._planes[presence] = [_Planes.of(spec, presence) for spec in self._arrays]
        offset, length = self.table.offset[sample].tolist(), self.table.length[sample].tolist()
        todo = []
        for place, (spec, part) in enumerate(zip(self._arrays, planes, strict=True)):
            slot = slots[spec.name]
            if bool(part.num_stored) != bool(length[place]):
                raise DataError(f"{self._name(sample, place)} and the index's presence bits disagree; build it again")
            if part.absent:
                slot[part.absent] = 0
            if part.num_stored:
                todo.append(_Payload(place, offset[place], length[place], slot, part))
        return sorted(todo, key=lambda payload: payload.offset)

    def _reads_in_place(self, sample: int, todo: list["_Payload"]) -> bool:
        return all(
            payload.planes.whole is not None
            and self.table.codec[sample, payload.place] == _NONE
            and payload.length == payload.target.nbytes
            for payload in todo
        )

    def _scatter(self, sample: int, todo: list["_Payload"], start: int) -> None:
        """One preadv into all slots; the metadata between payloads goes to a scratch buffer."""
        targets, position = [], start
        for payload in todo:
            if payload.offset > position:
                targets.append(self._buffer("gap", payload.offset - position))
            targets.append(payload.target.reshape(-1).view(np.uint8))
            position = payload.offset + payload.length
        self._pread(sample, targets, start)
        for payload in todo:
            self._check(sample, payload, payload.target.reshape(-1).view(np.uint8))

    def _decode(self, sample: int, todo: list["_Payload"], content: Bytes, start: int) -> None:
        for payload in todo:
            stored = content[payload.offset - start : payload.offset - start + payload.length]
            self._check(sample, payload, stored)
            try:
                codec = CODECS[self.table.codec[sample, payload.place]]
                if payload.planes.whole is not None:
                    decode_into(stored, payload.target, codec)
                    continue
                shape = (payload.planes.num_stored, *payload.slot.shape[1:])
                decoded = np.empty(shape, payload.slot.dtype)
                decode_into(stored, decoded, codec)
                payload.slot[payload.planes.stored] = decoded
            except (DataError, IndexError) as error:
                raise DataError(f"{self._name(sample, payload.place)} cannot be decoded: {error}") from error

    def _check(self, sample: int, payload: "_Payload", stored: Bytes) -> None:
        if self._verify and google_crc32c.value(stored) != self.table.crc32c[sample, payload.place]:
            raise DataError(
                f"{self._name(sample, payload.place)} is damaged: its CRC-32C does not match; fetch this shard again, "
                "python -m sharding.verify tells whether others are damaged too"
            )

    def _pread(self, sample: int, buffers: list[Any], start: int) -> None:
        shard = self.table.shard_of(sample)
        wanted = sum(len(buffer) for buffer in buffers)
        if not wanted:
            return
        try:
            got = os.preadv(self._descriptors[shard], buffers, start)
        except OSError as error:
            raise StorageError(f"cannot read shard {self._shard_name(shard)}: {error.strerror}") from error
        if got != wanted:
            size, expected = os.fstat(self._descriptors[shard]).st_size, self.table.shards[shard].num_bytes
            if size != expected:
                raise wrong_size(self._shard_name(shard), size, expected)
            raise StorageError(f"shard {self._shard_name(shard)} gave {got} of {wanted} bytes at {start}")

    def _buffer(self, purpose: str, size: int) -> Bytes:
        """A buffer of this thread, used again and again: fresh memory would cost a page fault each 4 KiB."""
        buffer: Bytes | None = getattr(self._scratch, purpose, None)
        if buffer is None or len(buffer) < size:
            buffer = np.empty(size * 5 // 4, np.uint8)
            setattr(self._scratch, purpose, buffer)
        return buffer[:size]

    def _shard_name(self, shard: int) -> str:
        return self._store.name(self.table.shards[shard].path)

    def _name(self, sample: int, place: int) -> str:
        key = self.table.key[sample].decode()
        shard = self._shard_name(self.table.shard_of(sample))
        return f"array {self._arrays[place].name} of sample {key} in shard {shard}"


@dataclass(frozen=True)
class _Planes:
    """Where the stored bands of one array go in the slot."""

    num_stored: int
    stored: list[int]
    absent: list[int]
    whole: slice | None
    """The stored planes when they are neighbours in the slot, so that they can be decoded in place."""

    @classmethod
    def of(cls, spec: ArraySpec, presence: int) -> "_Planes":
        names = present_bands(presence, spec.name)
        unknown = set(names) - set(spec.bands)
        if unknown:
            raise DataError(f"a sample has band {min(unknown)}, which its manifest does not know; build it again")
        stored = [spec.bands.index(band) for band in names]
        absent = [plane for plane in range(len(spec.bands)) if plane not in stored]
        neighbours = bool(stored) and stored == list(range(stored[0], stored[0] + len(stored)))
        return cls(len(stored), stored, absent, slice(stored[0], stored[-1] + 1) if neighbours else None)


@dataclass(frozen=True)
class _Payload:
    place: int
    """Number of the array in the manifest."""
    offset: int
    length: int
    slot: npt.NDArray[Any]
    planes: _Planes

    @property
    def target(self) -> npt.NDArray[Any]:
        assert self.planes.whole is not None
        return self.slot[self.planes.whole]


def _map(function: Any, paths: list[str]) -> list[bytes]:
    return [function(path) for path in paths]
