"""Random access to samples: payloads go from where they lie straight into a batch's slot, checked and decoded."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch

from pipeline.stream import native
from pipeline.stream.batch import Batch
from pipeline.stream.holding import Bytes, Hold, Int64s, Places, Source
from pipeline.stream.instruments import Meter
from pipeline.stream.order import OrderedSamples
from pipeline.stream.payload import PayloadReader, Slots
from pipeline.stream.permutation import FeistelPermutation, derive_key
from pipeline.stream.slot import Slot
from pipeline.stream.table import Records, SampleTable, bits_of
from sharding.bands import ALL_BANDS
from sharding.errors import DataError

OnCorrupt = Literal["raise", "skip"]
MAX_RENEWED: Final = 2
"""So often a damaged sample is fetched again: a bit may flip on the way."""
MAX_REPLACED: Final = 100
"""So many damaged samples of one rank are replaced; more are no accident."""


@dataclass(eq=False)
class Reading:
    """A batch while it is read."""

    step: int
    samples: OrderedSamples
    sample_id: Int64s
    """As in `samples`, but for those that were replaced."""
    records: Records
    hold: Hold
    slot: Slot
    status: npt.NDArray[np.int32]
    file: npt.NDArray[np.int32]
    """(samples, arrays), as what follows; contiguous, for the native loop."""
    offset: Int64s
    length: Int64s
    checksum: npt.NDArray[np.uint32]
    codec: npt.NDArray[np.uint32]
    places: Places | None = None
    """Where all payloads are, if nothing has to come first."""
    replaced: list[int] = field(default_factory=list)
    read_s: float = 0.0
    decode_s: float = 0.0


class SampleReader:
    """Reads samples of one split by number, from any number of threads."""

    def __init__(
        self, table: SampleTable, source: Source, meter: Meter, *, verify: bool = True, on_corrupt: OnCorrupt = "raise"
    ) -> None:
        self.table = table
        self.source = source
        self.meter = meter
        self._verify = verify
        self._on_corrupt = on_corrupt
        self._payloads = PayloadReader(table, verify)
        self._scratch = threading.local()
        item_bytes = [np.dtype(spec.dtype).itemsize for spec in table.arrays]
        planes = [len(spec.bands) * spec.height * spec.width for spec in table.arrays]
        self._item_bytes = np.array(item_bytes, np.int64)
        self._num_bytes = np.array(planes, np.int64) * self._item_bytes
        self._band_bits = {spec.name: [ALL_BANDS.index(band) for band in spec.bands] for spec in table.arrays}
        self._num_replaced = 0
        self._users: list[Callable[[], None]] = []

    def begin(self, step: int, samples: OrderedSamples, hold: Hold, slot: Slot) -> Reading:
        """Look up where the samples' payloads lie."""
        began = time.perf_counter()
        records = self.table.records(samples.sample_id)
        # What the native loop cannot do it passes over.
        status = np.where(records["simple"], np.int32(native.READ), np.int32(native.LEFT_OUT))
        reading = Reading(
            step=step,
            samples=samples,
            sample_id=samples.sample_id.copy(),
            records=records,
            hold=hold,
            slot=slot,
            status=status,
            file=records["file"].copy(),
            offset=records["offset"].copy(),
            length=records["length"].copy(),
            checksum=records["checksum"].copy(),
            codec=records["codec"].copy(),
        )
        if not self.source.is_remote:
            reading.places = hold.locate(reading.sample_id, reading.file, reading.offset)
        self.meter.add(plan_s=time.perf_counter() - began)
        return reading

    def read(self, reading: Reading, begin: int, end: int) -> None:
        """Fill the slot's rows [begin, end).

        Raises DataError naming file, key and array when a payload is not what the index says and cannot be replaced,
        StorageError when it cannot be read.
        """
        part = slice(begin, end)
        status, length = reading.status[part], reading.length[part]
        counters = np.zeros(native.NUM_COUNTERS, np.int64)
        if reading.places is not None:
            descriptor, place = reading.places[0][part], reading.places[1][part]
        else:
            descriptor, place = reading.hold.locate(reading.sample_id[part], reading.file[part], reading.offset[part])
        native.read_samples(
            descriptor,
            place,
            length,
            reading.checksum[part],
            reading.codec[part],
            reading.slot.address[part],
            self._num_bytes,
            self._item_bytes,
            self._verify,
            self._buffer(int(length.max(initial=1))),
            status,
            counters,
        )
        for row in np.flatnonzero(status != native.READ).tolist():
            self._read_apart(reading, begin + row)
        read_s = counters[native.READ_NS] * 1e-9
        check_s, decode_s = counters[native.CHECK_NS] * 1e-9, counters[native.DECODE_NS] * 1e-9
        reading.read_s += read_s
        reading.decode_s += check_s + decode_s
        self.meter.add(bytes_read=int(counters[native.BYTES]), read_s=read_s, check_s=check_s, decode_s=decode_s)

    def finish(self, reading: Reading) -> Batch:
        """The batch, all of whose rows have been read."""
        records, count = reading.records, len(reading.sample_id)
        has_band, has_label = bits_of(records["presence"]), bits_of(records["labels"])
        return Batch(
            step=reading.step,
            keys=[key.decode() for key in records["key"].tolist()],
            sample_id=torch.from_numpy(reading.sample_id),
            epoch=torch.from_numpy(reading.samples.epoch),
            position=torch.from_numpy(reading.samples.position),
            arrays={name: array[:count] for name, array in reading.slot.arrays.items()},
            present={name: torch.from_numpy(has_band[:, bits]) for name, bits in self._band_bits.items()},
            radiometric_offset=torch.from_numpy(records["radiometric_offset"].copy()),
            labels=torch.from_numpy(has_label[:, : self.table.num_labels].copy()),
            replaced=tuple(sorted(reading.replaced)),
            in_use=reading.slot.in_use,
        )

    def _read_apart(self, reading: Reading, row: int) -> None:
        """Read a sample that the native loop left: an unusual one, or a damaged one, which is fetched again."""
        sample, slots = int(reading.sample_id[row]), reading.slot.sample(row)
        is_damaged = bool(reading.status[row] != native.LEFT_OUT)
        renewed = 0
        if is_damaged:
            self.meter.add(corrupt=int(reading.status[row] != native.SHORT))
            renewed += reading.hold.renew(sample)
        while True:
            try:
                self._read_one(reading, reading.records[row], reading.hold, sample, slots)
                return
            except DataError as error:
                self.meter.add(corrupt=0 if is_damaged else 1)
                is_damaged = True
                if renewed < MAX_RENEWED and reading.hold.renew(sample):
                    renewed += 1
                elif self._on_corrupt == "skip":
                    self._replace(reading, row, error)
                    return
                else:
                    raise

    def _replace(self, reading: Reading, row: int, error: DataError) -> None:
        """Give another sample of the split, the same one on every run: drawn by the place in the order."""
        self._num_replaced += 1
        if self._num_replaced > MAX_REPLACED:
            raise DataError(f"{MAX_REPLACED} damaged samples were replaced, and the next one is: {error}") from error
        epoch, position = int(reading.samples.epoch[row]), int(reading.samples.position[row])
        drawn = FeistelPermutation(len(self.table), derive_key("replace", epoch, position))
        for attempt in range(min(len(self.table), 10)):
            sample = int(drawn([attempt])[0])
            if sample == reading.samples.sample_id[row]:
                continue
            ids = np.array([sample])
            record, hold = self.table.records(ids)[0], self.source.hold(ids)
            try:
                if not self._reads(reading, record, hold, sample, row):
                    continue
            finally:
                hold.release()
            reading.records[row], reading.sample_id[row] = record, sample
            reading.replaced.append(row)
            self.meter.add(replaced=1)
            return
        raise DataError(f"{error}; ten others that were to take its place are damaged too") from error

    def _reads(self, reading: Reading, record: Any, hold: Hold, sample: int, row: int) -> bool:
        """Read a sample that takes another one's place; False when it is damaged too, and stays so."""
        for _ in range(1 + MAX_RENEWED):
            try:
                self._read_one(reading, record, hold, sample, reading.slot.sample(row))
                return True
            except DataError:
                if not hold.renew(sample):
                    break
        return False

    def _read_one(self, reading: Reading, record: Any, hold: Hold, sample: int, slots: Slots) -> None:
        began, read_s = time.perf_counter(), 0.0

        def read_range(file: int, start: int, end: int) -> Bytes:
            nonlocal read_s
            asked = time.perf_counter()
            content = hold.read_range(sample, file, start, end)
            read_s += time.perf_counter() - asked
            self.meter.add(bytes_read=end - start)
            return content

        try:
            self._payloads.read(record, read_range, slots)
        finally:
            decode_s = time.perf_counter() - began - read_s
            reading.read_s += read_s
            reading.decode_s += decode_s
            self.meter.add(read_s=read_s, decode_s=decode_s)

    def _buffer(self, size: int) -> npt.NDArray[np.uint8]:
        """Memory of this thread, used again and again: fresh memory would cost a page fault each 4 KiB."""
        buffer: npt.NDArray[np.uint8] | None = getattr(self._scratch, "buffer", None)
        if buffer is None or len(buffer) < size:
            buffer = self._scratch.buffer = np.empty(size * 5 // 4, np.uint8)
        return buffer

    def attach(self, close: Callable[[], None]) -> None:
        """Remember what must be closed before the source is."""
        self._users.append(close)

    def detach(self, close: Callable[[], None]) -> None:
        """It is closed."""
        if close in self._users:
            self._users.remove(close)

    def close(self) -> None:
        """End who reads, then give back the files, or end the fetching threads."""
        for close in list(self._users):
            close()
        self.source.close()
