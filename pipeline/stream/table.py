"""Where each sample's payloads lie: the indexes of a split's shards, loaded when they are needed and kept for a while.

Memory is bounded, whatever the size of the data set: of each shard only its number of samples is always there (the
manifest has it), of the shards that were used last the records are.
"""

import hashlib
import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.stream.byte_range import ByteRange
from sharding.bands import ALL_BANDS, RIDERS
from sharding.codec import CODECS
from sharding.errors import DataError
from sharding.manifest import Manifest, ShardSpec
from sharding.shard_index import CHECKSUMS, FOREIGN_VERSION, ShardIndex, parse_index
from sharding.store import Store

Int64s = npt.NDArray[np.int64]
Records = npt.NDArray[np.void]

KEY_BYTES: Final = 96
"""What tar has room for in a name, less the extension."""
KEPT_BYTES: Final = 256 << 20
"""Of records, per process: about a million samples."""
_GAP: Final = 1 << 16
"""Bytes between two payloads that are fetched rather than skipped."""


def record_type(num_arrays: int) -> np.dtype[Any]:
    """One sample, arrays in the manifest's order: as in `sharding.shard_index`, and whether the native loop can.

    `file` is a number in `SampleTable.files`, `checksum_kind` one in CHECKSUMS.
    """
    arrays = (num_arrays,)
    return np.dtype(
        [
            ("key", f"S{KEY_BYTES}"),
            ("presence", "<u8"),
            ("labels", "<u8"),
            ("offset", "<i8", arrays),
            ("length", "<i8", arrays),
            ("skip", "<i8", arrays),
            ("file", "<i4", arrays),
            ("checksum", "<u4", arrays),
            ("codec", "<u4", arrays),
            ("radiometric_offset", "<f4", arrays),
            ("checksum_kind", "u1"),
            ("simple", "?"),
        ]
    )


@dataclass(frozen=True)
class DataFile:
    """A file that holds payloads."""

    path: str
    num_bytes: int


class SampleTable:
    """N samples of a split in the order of shards and records, with A arrays in the manifest's order."""

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        split: str,
        *,
        data: Store | None = None,
        kept_bytes: int = KEPT_BYTES,
        open_runs: int = 0,
    ) -> None:
        """The indexes are in `store`, the payloads in `data`, by default the same.

        Records of at least as many shards are kept as there are runs open at a time, whatever `kept_bytes` is.
        """
        self.shards = manifest.shards_of(split)
        self.arrays = manifest.arrays
        self.num_labels = len(manifest.labels)
        self.first_sample: Int64s = np.cumsum([0] + [shard.samples for shard in self.shards])
        """(shards + 1,): the number of each shard's first sample, and N."""
        parts = [_files_of(shard) for shard in self.shards]
        self.files = tuple(file for files in parts for file in files)
        self._first_file = np.cumsum([0] + [len(files) for files in parts])
        self._file_number = {file.path: number for number, file in enumerate(self.files)}
        self._store = store
        self._data = data or store
        self._type = record_type(len(self.arrays))
        # Records lie in places of equal size, one a shard; pages of a place that was never used take no memory.
        self._place_size = max(shard.samples for shard in self.shards)
        wanted = kept_bytes // (self._place_size * self._type.itemsize)
        self._num_places = min(max(wanted, open_runs * 5 // 4, 2), len(self.shards))
        self._records: Records = np.empty(self._num_places * self._place_size, self._type)
        self._bytes = self._records.view(np.uint8).reshape(len(self._records), self._type.itemsize)
        self._place_of: Int64s = np.full(len(self.shards), -1)
        self._used: OrderedDict[int, int] = OrderedDict()
        """Place by shard, longest unused first."""
        self._loading: dict[int, Future[Records]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self.first_sample[-1])

    def shards_holding(self, samples: Int64s) -> Int64s:
        """The number of the shard of each sample."""
        shards: Int64s = np.searchsorted(self.first_sample, samples, side="right") - 1
        return shards

    def records(self, samples: Int64s) -> Records:
        """The records of samples, `record_type`; reads indexes that are not at hand.

        DataError naming the index that is missing or not the one that was written.
        """
        shards = self.shards_holding(samples)
        distinct = np.unique(shards)
        if self._num_places == len(self.shards) or len(distinct) <= max(self._num_places // 2, 1):
            return self._gather(samples, shards, distinct.tolist())
        found = np.empty(len(samples), self._type)
        for shard in distinct.tolist():
            here = np.flatnonzero(shards == shard)
            found[here] = self._gather(samples[here], shards[here], [shard])
        return found

    def _gather(self, samples: Int64s, shards: Int64s, distinct: list[int]) -> Records:
        while True:
            with self._lock:
                missing = [shard for shard in distinct if self._place_of[shard] < 0]
                if not missing:
                    for shard in distinct:
                        self._used.move_to_end(shard)
                    rows = self._place_of[shards] * self._place_size + samples - self.first_sample[shards]
                    # As bytes: numpy copies records field by field, which takes five times as long.
                    found: Records = self._bytes[rows].view(self._type)[:, 0]
                    return found
            for shard in missing:
                self._bring(shard)

    def _bring(self, shard: int) -> None:
        """Load a shard's records; one thread reads the index, others that want it wait."""
        with self._lock:
            if self._place_of[shard] >= 0:
                return
            future = self._loading.get(shard)
            is_mine = future is None
            if future is None:
                future = self._loading[shard] = Future()
        if is_mine:
            try:
                records = self._load(shard)
            except BaseException as error:
                with self._lock:
                    del self._loading[shard]
                future.set_exception(error)
            else:
                with self._lock:
                    self._keep(shard, records)
                    del self._loading[shard]
                future.set_result(records)
        future.result()

    def _keep(self, shard: int, records: Records) -> None:
        if len(self._used) < self._num_places:
            place = len(self._used)
        else:
            oldest, place = self._used.popitem(last=False)
            self._place_of[oldest] = -1
        self._records[place * self._place_size : place * self._place_size + len(records)] = records
        self._place_of[shard] = self._used[shard] = place

    def ranges(self, first: int, last: int) -> tuple[ByteRange, ...]:
        """The bytes that hold the payloads of samples [first, last), all of one shard; far apart ones separately."""
        records = self.records(np.arange(first, last))
        stored = records["length"] > 0
        ranges = []
        for file in np.unique(records["file"][stored]).tolist():
            here = stored & (records["file"] == file)
            start, length = records["offset"][here], records["length"][here]
            order = np.argsort(start)
            start, end = start[order], np.maximum.accumulate(start[order] + length[order])
            cuts = np.flatnonzero(start[1:] - end[:-1] > _GAP) + 1
            about = self.files[file]
            for low, high in zip([0, *cuts.tolist()], [*cuts.tolist(), len(start)], strict=True):
                ranges.append(ByteRange(about.path, int(start[low]), int(end[high - 1]), about.num_bytes))
        return tuple(ranges)

    def first_sample_at(self, path: str, start: int) -> int | None:
        """The sample whose payloads begin at byte `start` of a file, if the file's index is at hand."""
        file = self._file_number.get(path)
        if file is None:
            return None
        shard = int(np.searchsorted(self._first_file, file, side="right")) - 1
        with self._lock:
            place = int(self._place_of[shard])
            if place < 0:
                return None
            begin = place * self._place_size
            records = self._records[begin : begin + self.shards[shard].samples]
            here = (records["file"] == file) & (records["length"] > 0) & (records["offset"] == start)
        found = np.flatnonzero(here.any(axis=1))
        return int(self.first_sample[shard] + found[0]) if len(found) else None

    def name(self, file: int) -> str:
        """A file as a message shows it."""
        return self._data.name(self.files[file].path)

    def _load(self, number: int) -> Records:
        shard = self.shards[number]
        index = _checked_index(self._store, shard)
        name = self._store.name(shard.index_path)
        names = [spec.name for spec in self.arrays]
        # Riders of our own shards are left out of the manifest by the stream; an index may call them anything.
        unknown = set() if index.version == FOREIGN_VERSION else set(index.arrays) - set(names) - set(RIDERS)
        if unknown:
            raise DataError(f"shard {shard.path} has the array '{min(unknown)}', which its manifest does not know")
        own = index.records
        if own.dtype["key"].itemsize > KEY_BYTES:
            raise DataError(f"{name} has keys of {own.dtype['key'].itemsize} bytes; {KEY_BYTES} are the longest")
        records = np.zeros(len(own), self._type)
        for field in ("key", "presence", "labels"):
            records[field] = own[field]
        fields = dict(offset="offset", length="length", checksum="crc32c", codec="codec")
        fields |= {"radiometric_offset": "radiometric_offset"}
        if index.version == FOREIGN_VERSION:
            fields |= {"file": "file", "skip": "skip"}
        for place, array in enumerate(index.arrays):
            if array in names:
                column = names.index(array)
                for field, stored in fields.items():
                    records[field][:, column] = own["arrays"][stored][:, place]
        records["file"] += int(self._first_file[number])
        self._refuse_payloads_outside(records, number, name)
        records["checksum_kind"] = CHECKSUMS.index(index.checksum)
        records["simple"] = self._are_simple(records)
        return records

    def _are_simple(self, records: Records) -> npt.NDArray[np.bool_]:
        """Whether each array has all bands of the manifest or none, in a codec of our own."""
        simple = (records["codec"] < len(CODECS)).all(axis=1) & (records["skip"] == 0).all(axis=1)
        simple &= records["checksum_kind"] == CHECKSUMS.index("crc32c")
        for column, spec in enumerate(self.arrays):
            mask = np.uint64(sum(1 << ALL_BANDS.index(band) for band in spec.bands))
            bits = records["presence"] & mask
            is_stored = records["length"][:, column] > 0
            simple &= np.where(is_stored, bits == mask, bits == 0)
        return np.asarray(simple, np.bool_)

    def _refuse_payloads_outside(self, records: Records, number: int, name: str) -> None:
        first, last = self._first_file[number : number + 2]
        sizes = np.array([file.num_bytes for file in self.files[first:last]], np.int64)
        file = records["file"] - first
        if not ((file >= 0) & (file < len(sizes))).all():
            raise DataError(f"{name} points to files that its manifest does not know; fetch both again")
        outside = (records["offset"] < 0) | (records["offset"] + records["length"] > sizes[file])
        if (outside & (records["length"] > 0)).any():
            bad = self.files[int(records["file"][outside & (records["length"] > 0)][0])].path
            raise DataError(f"{name} points behind the end of {bad}; the two do not belong together, fetch both again")


def bits_of(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """The bits of words (n,) in ascending order: (n, 64)."""
    octets = np.ascontiguousarray(words, "<u8").view(np.uint8).reshape(len(words), 8)
    bits: npt.NDArray[np.uint8] = np.unpackbits(octets, axis=1, bitorder="little")
    return bits.astype(np.bool_)


def _files_of(shard: ShardSpec) -> tuple[DataFile, ...]:
    return tuple(DataFile(part.path, part.num_bytes) for part in shard.data_files)


def _checked_index(store: Store, shard: ShardSpec) -> ShardIndex:
    name = store.name(shard.index_path)
    content = store.read(shard.index_path)
    index = parse_index(content, name)
    if hashlib.sha256(content).hexdigest() != shard.index_sha256:
        raise DataError(f"{name} is not the index that the manifest names: its SHA-256 differs; fetch it again")
    if len(index.records) != shard.samples:
        raise DataError(f"{name} lists {len(index.records)} samples, the manifest {shard.samples}; fetch it again")
    return index
