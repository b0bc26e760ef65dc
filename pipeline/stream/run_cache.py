"""Runs of samples fetched from an object store, each once while it is in use, many at a time, within a bound.

A run is in memory, or with a node cache in a file that the ranks of the node share. What is held by a batch stays;
in memory, other runs go when room is needed, longest unused first.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.stream.byte_range import ByteRange
from pipeline.stream.holding import Bytes, Hold, Int64s, Source
from pipeline.stream.instruments import Meter
from pipeline.stream.local_files import OTHER_FILES, raise_limit
from pipeline.stream.native import NOWHERE
from pipeline.stream.order import RUN_BYTES
from pipeline.stream.pieces import Brought, Cache, Fetch, InMemory, Piece, close_pieces, in_single_pieces
from pipeline.stream.table import SampleTable
from sharding.errors import ConfigError, StorageError

FETCHES_IN_FLIGHT: Final = 16
"""At 30 ms to the first byte and 10 MB a range, 16 fill a 25 Gbit/s link."""
MAX_COPIES: Final = 4
"""So often a run is fetched again while it is held; then it is the object that is damaged."""
_LOOK_UP_S: Final = 0.1
REMEMBERED: Final = 1 << 18
"""Ranges whose samples are known without a look into an index: of 10 MB each, 2.6 TB."""
Run = tuple[int, int]
"""Numbers of a run's first sample and of the first one behind it; all in one shard."""


@dataclass
class _Entry:
    future: "Future[tuple[Piece, ...]]"
    num_bytes: int
    users: int = 0
    replaced: list["Future[tuple[Piece, ...]]"] = field(default_factory=list)
    """Damaged copies that other threads may still look at."""

    @property
    def failed(self) -> bool:
        return self.future.cancelled() or (self.future.done() and self.future.exception() is not None)

    def close(self) -> None:
        for future in (self.future, *self.replaced):
            if not future.cancel():
                future.add_done_callback(close_pieces)


class FetchedRuns(Source):
    """The runs of a split that lies in an object store."""

    is_remote = True

    def __init__(
        self,
        table: SampleTable,
        sample_bytes: float,
        fetch: Fetch,
        max_bytes: int,
        cache: Cache | None = None,
        cache_bytes: int = 0,
        meter: Meter | None = None,
    ) -> None:
        self._table = table
        self._sample_bytes = sample_bytes
        self._fetch = fetch
        self._max_bytes = max_bytes
        self._cache = cache
        self._cache_bytes = cache_bytes
        self._meter = meter or Meter()
        # A held run of a node cache is an open file, or one for each of its parts.
        files_of_run = max(len(shard.data_files) for shard in table.shards)
        self._most_held = (raise_limit(4 * OTHER_FILES) - OTHER_FILES) // files_of_run if cache else None
        self._run_samples = 1
        self._bytes = 0
        self._acquired, self._num_held = 0, 0  # of what somebody holds
        self._pending = 0
        self._counting = threading.Lock()
        self._entries: OrderedDict[Run, _Entry] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(FETCHES_IN_FLIGHT, thread_name_prefix="fetch")
        self._file_numbers = {file.path: number for number, file in enumerate(table.files)}
        self._sample_of: dict[ByteRange, int] = {}
        self._closed = False
        self._stop_fetching = getattr(fetch, "stop", lambda: None)

    def set_run_samples(self, run_samples: int) -> None:
        """Fetch runs of this many samples, or longer ones where the whole split fits into the cache."""
        room = self._max_bytes if self._cache is None else self._cache_bytes
        if len(self._table) * self._sample_bytes <= room:
            run_samples = max(run_samples, round(RUN_BYTES / max(self._sample_bytes, 1.0)))
        self._run_samples = run_samples

    def foresee(self, next_use: Callable[[int], int]) -> None:
        """Tell the node's cache how far ahead the run of a sample is needed."""

        def of_range(wanted: ByteRange) -> float:
            sample = self._sample_of.get(wanted)
            if sample is None:
                sample = self._table.first_sample_at(wanted.path, wanted.start)
            # Another rank's, whose index is not at hand: kept before what is needed later than in half an epoch.
            return len(self._table) / 2 if sample is None else next_use(sample)

        if self._cache is not None:
            self._cache.set_next_use(of_range)

    def refuse_small_cache(self, num_streams: int, samples_per_stream: int, streams_of_node: int) -> None:
        """ConfigError when memory cannot hold so many samples of so many streams, which so would be fetched twice.

        With a folder on disk, when that cannot hold those of the streams of all ranks of the node.
        """
        wanted = min(num_streams * samples_per_stream, len(self._table)) * self._sample_bytes
        if self._cache is None and wanted > self._max_bytes:
            raise ConfigError(
                f"{num_streams} streams of this rank need {wanted / 2**30:.2f} GiB of cache for their shuffle windows, "
                f"cache_gib is {self._max_bytes / 2**30:.2f}; raise cache_gib, lower window_gib, or give cache_dir, "
                "a folder on a local disk"
            )
        node = min(streams_of_node * samples_per_stream, len(self._table)) * self._sample_bytes
        if self._cache is not None and node > self._cache_bytes:
            raise ConfigError(
                f"the ranks of a node need {node / 2**30:.2f} GiB for their shuffle windows, cache_dir_gib is "
                f"{self._cache_bytes / 2**30:.2f}; raise cache_dir_gib, or lower window_gib"
            )

    @property
    def is_busy(self) -> bool:
        """Whether all connections have work, or the runs in use fill the memory."""
        with self._lock:
            is_full = self._acquired >= self._max_bytes
            is_full |= self._most_held is not None and self._num_held >= self._most_held
        return is_full or self._pending >= 2 * FETCHES_IN_FLIGHT

    def hold(self, samples: Int64s) -> "RunHold":
        """Begin to fetch the runs of `samples` that are not there."""
        runs = self.runs_of(samples)
        for run in dict.fromkeys(runs):
            self._acquire(run)
        return RunHold(self, dict(zip(samples.tolist(), runs, strict=True)))

    def runs_of(self, samples: Int64s) -> list[Run]:
        """The run of each sample."""
        shards = self._table.shards_holding(samples)
        begin, end = self._table.first_sample[shards], self._table.first_sample[shards + 1]
        first = samples - (samples - begin) % self._run_samples
        return list(zip(first.tolist(), np.minimum(first + self._run_samples, end).tolist(), strict=True))

    def pieces(
        self, run: Run, is_abandoned: Callable[[], bool]
    ) -> tuple["Future[tuple[Piece, ...]]", tuple[Piece, ...]]:
        """What was brought of a run that is held, and by what; waits for it, unless nobody wants it any more.

        Raises what fetching raised, CancelledError when it was abandoned.
        """
        with self._lock:
            future = self._entries[run].future
        while not future.done():
            if is_abandoned():
                raise CancelledError
            wait([future], timeout=_LOOK_UP_S)
        return future, future.result()

    def renew(self, run: Run, damaged: "Future[tuple[Piece, ...]]") -> bool:
        """Fetch a held run again, unless another thread has begun to; False when that was done often enough."""
        with self._lock:
            entry = self._entries[run]
            if entry.future is not damaged:
                return True
            if len(entry.replaced) >= MAX_COPIES:
                return False
            entry.replaced.append(damaged)
            # A second time past the disk, which may be what damages it.
            entry.future = self._submit(self._bring_anew, run, damaged.result(), len(entry.replaced) > 1)
            return True

    def release(self, run: Run) -> None:
        """Undo one hold."""
        with self._lock:
            if self._closed:
                return
            entry = self._entries[run]
            entry.users -= 1
            if not entry.users:
                self._acquired -= entry.num_bytes
                self._num_held -= 1
            # Held no longer, a file is closed, and what nobody has begun to fetch is not fetched.
            if not entry.users and (self._cache is not None or entry.future.cancel()):
                self._drop(run)
            self._evict()

    def close(self) -> None:
        """Fetch nothing more, end the threads, let go of everything."""
        with self._lock:
            self._closed = True
        self._stop_fetching()
        self._pool.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            for run in list(self._entries):
                self._drop(run)

    def _acquire(self, run: Run) -> None:
        with self._lock:
            entry = self._entries.get(run)
            if entry is None:
                num_bytes = int((run[1] - run[0]) * self._sample_bytes)
                entry = self._entries[run] = _Entry(self._submit(self._bring, run), num_bytes)
                self._bytes += num_bytes
            elif entry.failed:  # its other copies may still be looked at
                entry.future = self._submit(self._bring, run)
            if not entry.users:
                self._acquired += entry.num_bytes
                self._num_held += 1
            entry.users += 1
            self._entries.move_to_end(run)
            self._evict()

    def _submit(self, bring: Callable[..., tuple[Piece, ...]], *what: Any) -> "Future[tuple[Piece, ...]]":
        with self._counting:
            self._pending += 1
        future = self._pool.submit(bring, *what)
        future.add_done_callback(self._count_done)
        return future

    def _count_done(self, _: object) -> None:
        with self._counting:
            self._pending -= 1

    def _bring_anew(self, run: Run, damaged: tuple[Piece, ...], past_cache: bool) -> tuple[Piece, ...]:
        try:
            if self._cache is not None:
                for piece in damaged:
                    self._cache.discard(piece.wanted)
        except StorageError:  # a disk that may only be read now
            past_cache = True
        return self._bring(run, past_cache)

    def _bring(self, run: Run, past_cache: bool = False) -> tuple[Piece, ...]:
        pieces: list[Piece] = []
        try:
            for wanted in self._table.ranges(*run):
                brought: Brought
                if self._cache is None or past_cache:
                    brought = InMemory(self._fetch(wanted))
                else:
                    brought = self._cache.bring(wanted, lambda wanted=wanted: self._fetch(wanted))  # type: ignore[misc]
                    self._meter.add(cache_hits=int(brought.hit), cache_misses=int(not brought.hit))
                    self._remember(wanted, run[0])
                pieces.append(Piece.of(wanted, self._file_numbers[wanted.path], brought))
        except BaseException:
            for piece in pieces:
                piece.brought.close()
            raise
        return tuple(pieces)

    def _remember(self, wanted: ByteRange, sample: int) -> None:
        with self._lock:
            self._sample_of[wanted] = sample
            if len(self._sample_of) > REMEMBERED:
                del self._sample_of[next(iter(self._sample_of))]

    def _evict(self) -> None:
        if self._bytes <= self._max_bytes:
            return
        for run in [run for run, entry in self._entries.items() if not entry.users]:
            self._drop(run)
            if self._bytes <= self._max_bytes:
                return

    def _drop(self, run: Run) -> None:
        entry = self._entries.pop(run)
        self._bytes -= entry.num_bytes
        entry.close()


class RunHold(Hold):
    """The runs of one batch."""

    def __init__(self, source: FetchedRuns, runs: dict[int, Run]) -> None:
        self._source = source
        self._runs = runs
        self._held = set(runs.values())
        self._used: dict[tuple[Run, int], Future[tuple[Piece, ...]]] = {}
        """By run and thread: what each has looked at, which so stays until `release`."""
        self._waits: dict[int, float] = {}
        self._is_abandoned = False

    def locate(
        self, samples: Int64s, files: npt.NDArray[np.int32], offsets: Int64s
    ) -> tuple[npt.NDArray[np.int32], Int64s]:
        """Places are offsets in a cached file, or addresses."""
        pieces = [self._pieces(self._runs[sample]) for sample in samples.tolist()]
        if all(len(found) == 1 for found in pieces):
            return in_single_pieces([found[0] for found in pieces], offsets)
        descriptors = np.full(files.shape, NOWHERE, np.int32)
        places = offsets.copy()
        for row, of_sample in enumerate(pieces):
            for piece in of_sample:
                inside = (files[row] == piece.file) & (offsets[row] >= piece.wanted.start)
                inside &= offsets[row] < piece.wanted.end
                places[row] = np.where(inside, offsets[row] + piece.base, places[row])
                descriptors[row] = np.where(inside, piece.descriptor, descriptors[row])
        return descriptors, places

    def read_range(self, sample: int, file: int, start: int, end: int) -> Bytes:
        """From the run that the sample lies in."""
        for piece in self._pieces(self._runs[sample]):
            if piece.file == file and piece.wanted.start <= start and end <= piece.wanted.end:
                return piece.read(start, end)
        raise AssertionError(f"sample {sample} does not lie in its run")

    def renew(self, sample: int) -> bool:
        """Fetch the sample's run again."""
        run = self._runs[sample]
        return self._source.renew(run, self._used[run, threading.get_ident()])

    def release(self) -> None:
        """The runs may go."""
        held, self._held = self._held, set()
        self._used.clear()
        for run in held:
            self._source.release(run)

    def abandon(self) -> None:
        """Threads that wait for a run give up."""
        self._is_abandoned = True

    def _pieces(self, run: Run) -> tuple[Piece, ...]:
        began = time.perf_counter()
        future, pieces = self._source.pieces(run, lambda: self._is_abandoned)
        thread = threading.get_ident()
        waited_s = self._waits[thread] = self._waits.get(thread, 0.0) + time.perf_counter() - began
        self.waited_s = max(self.waited_s, waited_s)
        self._used[run, thread] = future
        return pieces
