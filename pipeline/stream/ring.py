"""Reader threads that fill a ring of preallocated batch slots, in order, ahead of the consumer.

No worker processes: reading, checking and decoding are C calls, and a hand-over between processes costs more than
they do (354 us a sample against 79 us). A batch is shared among the threads in pieces, so that the first one is
there as early as may be.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
import torch

from pipeline.stream import switching
from pipeline.stream.batch import Batch
from pipeline.stream.closing import Finalizer
from pipeline.stream.holding import Hold
from pipeline.stream.order import OrderedSamples
from pipeline.stream.reader import Reading, SampleReader
from pipeline.stream.slot import Slot

PIECE: Final = 32
"""Samples that a thread takes at a time: a millisecond or two, in which it does not need the interpreter's lock."""
MAX_AHEAD: Final = 64
"""Batches whose runs are asked for before there is a slot for them."""


@dataclass(frozen=True)
class Job:
    """A batch to be read."""

    step: int
    samples: OrderedSamples

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.samples.sample_id)


@dataclass(eq=False)
class _Fill:
    """A batch on its way: what it holds, how many samples are claimed and done, and what went wrong."""

    job: Job
    hold: Hold | None = None
    slot: Slot | None = None
    reading: Reading | None = None
    begin_s: float = 0.0
    claimed: int = 0
    missing: int = 0
    batch: Batch | None = None
    error: BaseException | None = None

    @property
    def is_ready(self) -> bool:
        return self.error is not None or self.batch is not None

    @property
    def has_work(self) -> bool:
        return self.reading is not None and self.error is None and self.claimed < self.job.size


class BatchRing:
    """Reads `jobs` in order, `slots` batches ahead, with `threads` threads; at most `batch_size` samples each."""

    def __init__(
        self, reader: SampleReader, jobs: Iterator[Job], batch_size: int, threads: int, slots: int, hold: int = 1
    ) -> None:
        """A batch stays valid until `hold` others have been given out."""
        self._reader = reader
        self._jobs = jobs
        self._batch_size = batch_size
        self._hold = hold
        self._max_slots = slots + hold  # those in the consumer's hands
        self._free: deque[Slot] = deque()
        self._num_slots = 0
        self._ahead: deque[_Fill] = deque()
        """Jobs whose runs are being fetched, but which have no slot yet."""
        self._fills: deque[_Fill] = deque()
        """Jobs with a slot, in order; those at the front may be ready."""
        self._given: deque[Slot] = deque()
        self._ended = False
        self._stopped = False
        self._failed = False
        self._changed = threading.Condition()
        self._gpu = _current_gpu()
        self._threads = [
            threading.Thread(target=self._work, name=f"reader-{number}", daemon=True) for number in range(threads)
        ]
        self._closing = threading.Lock()
        reader.attach(self.close)
        switching.shorten()
        for thread in self._threads:
            thread.start()

    def next(self) -> Batch | None:
        """The next batch, None behind the last one; raises what a thread raised while it read it."""
        began = time.perf_counter()
        with self._changed:
            if len(self._given) == self._hold:
                self._free.append(self._given.popleft())
                self._changed.notify_all()
            while not self._is_ready():
                self._changed.wait()
            if self._stopped or not self._fills:
                return None
            fill = self._fills[0]
            if fill.error is not None:
                raise fill.error  # it stays in the ring: other threads may still be at it
            self._fills.popleft()
            assert fill.slot is not None
            self._given.append(fill.slot)
        assert fill.batch is not None
        wait_s = time.perf_counter() - began
        self._account(fill, wait_s)
        return replace(fill.batch, wait_s=wait_s)

    def close(self) -> None:
        """End the threads and give everything back; batches handed out stay valid. Safe to call again."""
        with self._changed:
            if not self._stopped:
                switching.restore()
            self._stopped = True
            for fill in (*self._ahead, *self._fills):
                if fill.hold is not None:
                    fill.hold.abandon()  # a store that fails is waited for no longer
            self._changed.notify_all()
        with self._closing:
            for thread in self._threads:
                thread.join()
            self._threads = []
            for fill in (*self._ahead, *self._fills):
                if fill.hold is not None:
                    fill.hold.release()
            self._ahead.clear()
            self._fills.clear()
            self._free.clear()
            self._reader.detach(self.close)

    def _is_ready(self) -> bool:
        if self._stopped or (self._ended and not self._fills and not self._ahead):
            return True
        return bool(self._fills) and self._fills[0].is_ready

    def _account(self, fill: _Fill, wait_s: float) -> None:
        """Say what the consumer has waited for: first for the network, for the rest as the readers' time was spent."""
        reading = fill.reading
        assert reading is not None
        fetch_s = min(reading.hold.waited_s, wait_s)
        rest_s, busy_s = wait_s - fetch_s, reading.read_s + reading.decode_s + fill.begin_s
        read_s = rest_s * reading.read_s / busy_s if busy_s else 0.0
        decode_s = rest_s * reading.decode_s / busy_s if busy_s else 0.0
        self._reader.meter.add(
            samples=fill.job.size,
            wait_s=wait_s,
            wait_fetch_s=fetch_s,
            wait_read_s=read_s,
            wait_decode_s=decode_s,
            wait_other_s=wait_s - fetch_s - read_s - decode_s,
        )

    def _work(self) -> None:
        try:
            self._read_on()
        except BaseException as error:  # none of a sample's: whatever it is, the consumer must not wait for ever
            with self._changed:
                self._failed = True
                waiting = [fill for fill in self._fills if not fill.is_ready]
                for fill in waiting:
                    fill.error = error
                if not waiting:
                    self._fills.append(_Fill(Job(0, _NO_SAMPLES), error=error))
                self._changed.notify_all()

    def _read_on(self) -> None:
        if self._gpu is not None:
            torch.cuda.set_device(self._gpu)  # a new thread's own is GPU 0, which would get a context of every rank
        while (piece := self._claim()) is not None:
            fill, begin, end = piece
            error: BaseException | None = None
            batch: Batch | None = None
            try:
                if end == 0:
                    self._begin(fill)
                else:
                    assert fill.reading is not None
                    self._reader.read(fill.reading, begin, end)
            except BaseException as raised:  # the consumer raises it
                error = raised
            with self._changed:
                fill.missing -= end - begin
                is_last = end > 0 and fill.missing == 0
            if is_last and error is None and fill.error is None:
                assert fill.reading is not None
                try:
                    batch = self._reader.finish(fill.reading)
                except BaseException as raised:
                    error = raised
            self._finish(fill, batch, is_last, error)

    def _claim(self) -> tuple[_Fill, int, int] | None:
        """Some samples to read, or (0, 0): a batch to begin; waits while there is nothing to do, None at the end."""
        with self._changed:
            while not self._stopped:
                try:
                    work = self._next_work()
                except BaseException as error:  # in the order: the consumer raises it behind what came before
                    self._ahead.append(_Fill(Job(0, _NO_SAMPLES), error=error))
                    self._ended = True
                    self._changed.notify_all()
                    continue
                if work is not None:
                    return work
                if self._failed or (self._ended and not self._ahead and not any(not f.is_ready for f in self._fills)):
                    return None
                self._changed.wait()
            return None

    def _next_work(self) -> tuple[_Fill, int, int] | None:
        """The earliest samples that nobody has claimed, or the next batch to begin; None when there is no room."""
        for fill in self._fills:
            if fill.error is not None:
                return None  # what comes before it is still read, what comes after it nobody wants
            if fill.has_work:
                begin = fill.claimed
                fill.claimed = min(begin + PIECE, fill.job.size)
                return fill, begin, fill.claimed
        if self._failed:
            return None
        self._look_ahead()
        if not self._ahead or (not self._free and self._num_slots == self._max_slots):
            return None
        fill = self._ahead.popleft()
        if fill.error is not None:
            self._fills.append(fill)
            self._failed = True
            self._changed.notify_all()
            return None
        fill.missing = fill.job.size
        fill.slot = self._free.popleft() if self._free else None  # the one whose copies to the device are oldest
        self._num_slots += fill.slot is None
        self._fills.append(fill)
        return fill, 0, 0

    def _look_ahead(self) -> None:
        """Have the next job at hand and, for remote data, enough runs on their way for all connections."""
        source = self._reader.source
        while not self._ended:
            if self._ahead and (not source.is_remote or len(self._ahead) >= MAX_AHEAD or source.is_busy):
                return
            job = next(self._jobs, None)
            if job is None:
                self._ended = True
                self._changed.notify_all()
                return
            self._ahead.append(_Fill(job, source.hold(job.samples.sample_id)))

    def _begin(self, fill: _Fill) -> None:
        """Give a batch its slot, and look up where its samples lie."""
        began = time.perf_counter()
        if fill.slot is None:
            fill.slot = Slot.empty(self._reader.table.arrays, self._batch_size, pin=self._gpu is not None)
        waited = time.perf_counter()
        for event in fill.slot.in_use:  # a copy to the device may still read the slot
            event.synchronize()
        fill.slot.in_use.clear()
        self._reader.meter.add(copy_s=time.perf_counter() - waited)
        assert fill.hold is not None
        reading = self._reader.begin(fill.job.step, fill.job.samples, fill.hold, fill.slot)
        fill.begin_s = time.perf_counter() - began
        fill.reading = reading

    def _finish(self, fill: _Fill, batch: Batch | None, is_last: bool, error: BaseException | None) -> None:
        with self._changed:
            if error is not None and fill.error is None:
                fill.error = error
                self._failed = True
            if batch is not None:
                fill.batch = batch
            if fill.job.size == 0 and fill.reading is not None and batch is None and error is None:
                fill.batch = self._reader.finish(fill.reading)
                is_last = True
            self._changed.notify_all()
        if is_last and fill.hold is not None:
            fill.hold.release()


class BatchIterator:
    """Hands out a ring's batches; closes it when closed, left as a context, exhausted or garbage collected."""

    def __init__(self, ring: BatchRing, close_too: Callable[[], None] = lambda: None) -> None:
        self._ring = ring
        # One finalizer for both: the threads must have ended before what they read from is closed.
        self._finalizer = Finalizer(self, partial(_close_in_order, ring, close_too))

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


def _current_gpu() -> int | None:
    """The GPU that this process uses, if it uses one."""
    return torch.cuda.current_device() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
