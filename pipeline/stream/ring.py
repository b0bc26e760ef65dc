"""Reader threads that fill a ring of preallocated batch slots, in order, ahead of the consumer.

No worker processes: reading, checking and decoding are C calls, and a hand-over between processes costs more than
they do (354 us a sample against 79 us). A batch is shared among the threads in pieces, so that the first one is
there as early as may be.
"""

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.stream.batch import Batch
from pipeline.stream.order import OrderedSamples
from pipeline.stream.reader import Run, SampleReader

PIECE: Final = 8
"""Samples that a thread takes at a time: about a millisecond's work."""
MAX_AHEAD: Final = 64
"""Batches whose runs are asked for before there is a slot for them."""


@dataclass(frozen=True)
class Job:
    """A batch to be read."""

    step: int
    samples: OrderedSamples


@dataclass
class _Slot:
    arrays: dict[str, Tensor]
    views: dict[str, npt.NDArray[Any]]
    in_use: list[torch.cuda.Event] = field(default_factory=list)


@dataclass
class _Fill:
    """A batch on its way: its slot, how many samples are claimed and done, and what went wrong."""

    job: Job
    runs: set[Run]
    slot: _Slot | None = None
    claimed: int = 0
    missing: int = 0
    batch: Batch | None = None
    error: BaseException | None = None


class BatchRing:
    """Reads `jobs` in order, `slots` batches ahead, with `threads` threads; at most `batch_size` samples each."""

    def __init__(self, reader: SampleReader, jobs: Iterator[Job], batch_size: int, threads: int, slots: int) -> None:
        self._reader = reader
        self._jobs = jobs
        self._batch_size = batch_size
        self._max_slots = slots + 1  # one more is in the consumer's hands
        self._free: deque[_Slot] = deque()
        self._num_slots = 0
        self._ahead: deque[_Fill] = deque()
        """Jobs whose runs are being fetched, but which have no slot yet."""
        self._fills: deque[_Fill] = deque()
        """Jobs with a slot, in order; those at the front may be ready."""
        self._given: _Slot | None = None
        self._ended = False
        self._stopped = False
        self._failed = False
        self._changed = threading.Condition()
        self._gpu = _current_gpu()
        self._threads = [
            threading.Thread(target=self._work, name=f"reader-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def next(self) -> Batch | None:
        """The next batch, None behind the last one; raises what a thread raised while it read it."""
        began = time.perf_counter()
        with self._changed:
            if self._given is not None:
                self._free.append(self._given)
                self._given = None
                self._changed.notify_all()
            while not self._is_ready():
                self._changed.wait()
            if self._stopped or not self._fills:
                return None
            fill = self._fills[0]
            if fill.error is not None:
                raise fill.error  # it stays in the ring: other threads may still be at it
            self._fills.popleft()
            self._given = fill.slot
        assert fill.batch is not None
        return replace(fill.batch, wait_s=time.perf_counter() - began)

    def close(self) -> None:
        """End the threads and give everything back; batches handed out stay valid."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if threading.current_thread() in self._threads:
            return  # garbage was collected in one of ours: the others may wait for a lock that it holds
        for thread in self._threads:
            thread.join()
        self._threads = []
        for fill in (*self._ahead, *self._fills):
            self._reader.release(fill.runs)
        self._ahead.clear()
        self._fills.clear()
        self._free.clear()

    def _is_ready(self) -> bool:
        if self._stopped or (self._ended and not self._fills and not self._ahead):
            return True
        return bool(self._fills) and (self._fills[0].error is not None or self._fills[0].missing == 0)

    def _work(self) -> None:
        if self._gpu is not None:
            torch.cuda.set_device(self._gpu)  # a new thread's own is GPU 0, which would get a context of every rank
        while (piece := self._claim()) is not None:
            fill, begin, end = piece
            error: BaseException | None = None
            try:
                assert fill.slot is not None
                for place in range(begin, end):
                    views = {name: view[place] for name, view in fill.slot.views.items()}
                    self._reader.read_into(int(fill.job.samples.sample_id[place]), views)
            except BaseException as raised:  # the consumer raises it
                error = raised
            with self._changed:
                self._finish(fill, end - begin, error)

    def _claim(self) -> tuple[_Fill, int, int] | None:
        """Some samples to read; waits while there is nothing to do, None when there never will be."""
        with self._changed:
            while not self._stopped:
                try:
                    fill = self._unclaimed()
                except BaseException as error:  # in the order or in the table: the consumer raises it
                    self._fills.append(_Fill(Job(0, _NO_SAMPLES), set(), error=error))
                    self._failed = True
                    self._changed.notify_all()
                    return None
                if fill is not None:
                    begin = fill.claimed
                    fill.claimed = min(begin + PIECE, len(fill.job.samples.sample_id))
                    return fill, begin, fill.claimed
                if self._failed or (self._ended and not self._ahead):
                    return None
                self._changed.wait()
            return None

    def _unclaimed(self) -> _Fill | None:
        """The batch whose samples are to be read next, or None when all slots are taken or all is read."""
        if self._fills and self._fills[-1].claimed < len(self._fills[-1].job.samples.sample_id):
            return self._fills[-1]
        if self._failed:
            return None
        self._look_ahead()
        if not self._ahead or (not self._free and self._num_slots == self._max_slots):
            return None
        fill = self._ahead.popleft()
        fill.slot = self._take_slot()
        samples = fill.job.samples
        fill.missing = len(samples.sample_id)
        fill.batch = _batch(self._reader, fill.job, fill.slot)
        self._fills.append(fill)
        self._changed.notify_all()
        return fill

    def _look_ahead(self) -> None:
        """Have the next job at hand and, for remote data, enough runs on their way for all connections."""
        while not self._ended:
            if self._ahead and (not self._reader.is_remote or len(self._ahead) >= MAX_AHEAD or self._reader.is_busy):
                return
            job = next(self._jobs, None)
            if job is None:
                self._ended = True
                self._changed.notify_all()
                return
            runs = self._reader.runs_of(job.samples.sample_id.tolist())
            self._reader.acquire(runs)
            self._ahead.append(_Fill(job, runs))

    def _finish(self, fill: _Fill, count: int, error: BaseException | None) -> None:
        fill.missing -= count
        if error is not None and fill.error is None:
            fill.error = error
            self._failed = True
        if fill.missing == 0:
            self._reader.release(fill.runs)
            fill.runs = set()
        if fill.missing == 0 or error is not None:
            self._changed.notify_all()

    def _take_slot(self) -> _Slot:
        if self._free:
            slot = self._free.popleft()  # the one whose copies to the device are oldest
            for event in slot.in_use:  # a copy to the device may still read the slot
                event.synchronize()
            slot.in_use.clear()
            return slot
        self._num_slots += 1
        pin = self._gpu is not None
        arrays = {
            spec.name: torch.empty(
                (self._batch_size, len(spec.bands), spec.height, spec.width),
                dtype=getattr(torch, spec.dtype),
                pin_memory=pin,
            )
            for spec in self._reader.manifest.arrays
        }
        return _Slot(arrays, {name: array.numpy() for name, array in arrays.items()})


class BatchIterator:
    """Hands out a ring's batches; closes it when closed, left as a context, exhausted or garbage collected."""

    def __init__(self, ring: BatchRing, close_too: Callable[[], None] = lambda: None) -> None:
        self._ring = ring
        # One finalizer for both: the threads must have ended before what they read from is closed.
        self._finalizer = weakref.finalize(self, _close_in_order, ring, close_too)

    def __iter__(self) -> "BatchIterator":
        return self

    @property
    def is_closed(self) -> bool:
        """Whether the threads have been ended."""
        return not self._finalizer.alive

    def __next__(self) -> Batch:
        if self.is_closed:
            raise StopIteration
        try:
            batch = self._ring.next()
        except BaseException:
            self.close()
            raise
        if batch is None:
            self.close()
            raise StopIteration
        return batch

    def close(self) -> None:
        """End the reader threads; safe to call again."""
        self._finalizer()

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close_in_order(ring: BatchRing, close_too: Callable[[], None]) -> None:
    ring.close()
    close_too()


_NO_SAMPLES: Final = OrderedSamples(*(np.empty(0, np.int64) for _ in range(3)))


def _batch(reader: SampleReader, job: Job, slot: _Slot) -> Batch:
    ids = job.samples.sample_id
    table = reader.table
    return Batch(
        step=job.step,
        keys=table.keys_of(ids),
        sample_id=torch.from_numpy(ids),
        epoch=torch.from_numpy(job.samples.epoch),
        position=torch.from_numpy(job.samples.position),
        arrays={name: array[: len(ids)] for name, array in slot.arrays.items()},
        present={spec.name: torch.from_numpy(table.present(ids, spec.bands)) for spec in reader.manifest.arrays},
        radiometric_offset=torch.from_numpy(table.radiometric_offset[ids]),
        labels=torch.from_numpy(table.labels[ids]),
        in_use=slot.in_use,
    )


def _current_gpu() -> int | None:
    """The GPU that this process uses, if it uses one."""
    return torch.cuda.current_device() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
