"""Byte ranges fetched from an object store, each once while it is in use, many at a time, within a memory bound."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from sharding.dataset import split_version
from sharding.errors import DataError, StorageError
from sharding.store import Store

FETCHES_IN_FLIGHT: Final = 16
"""At 30 ms to the first byte and 10 MB a range, 16 fill a 25 Gbit/s link."""
ATTEMPTS: Final = 6
"""Tries for one range; with the waits below they last about half a minute."""


@dataclass(frozen=True)
class ByteRange:
    """Bytes [start, end) of the file `path`, whose whole size is `file_bytes`."""

    path: str
    start: int
    end: int
    file_bytes: int


def open_store(url: str) -> Store:
    """The store at `url`, with as many connections as we use (botocore's pool has 10 by default)."""
    store = Store(split_version(url)[0])
    if "s3" in store.fs.protocol:
        options = dict(store.fs.storage_options)
        options["config_kwargs"] = {"max_pool_connections": 4 * FETCHES_IN_FLIGHT} | options.get("config_kwargs", {})
        store.fs = type(store.fs)(**options)
    return store


def fetch(store: Store, wanted: ByteRange, max_wait_s: float = 10.0) -> bytes:
    """The bytes of a range; tries again, with random waits, while the store fails.

    Raises DataError naming the file when it is missing or shorter than `file_bytes`, StorageError when the store
    kept failing.
    """
    retrying = Retrying(
        retry=retry_if_exception_type(StorageError),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.5, max=max_wait_s),
        before_sleep=lambda _: _check_size(store, wanted),
        reraise=True,
    )
    try:
        return retrying(store.read_range, wanted.path, wanted.start, wanted.end)
    except StorageError as error:
        raise StorageError(f"{error}; gave up after {ATTEMPTS} tries, check the store and start again") from error
    except OSError as error:
        raise StorageError(f"cannot read {store.name(wanted.path)}: {error.strerror}") from error


def _check_size(store: Store, wanted: ByteRange) -> None:
    try:
        size = store.size(wanted.path)
    except StorageError:
        return  # the next try tells
    if size != wanted.file_bytes:
        raise wrong_size(store.name(wanted.path), size, wanted.file_bytes)


def wrong_size(name: str, found: int, expected: int) -> DataError:
    """The error for a shard that is not as long as the manifest says."""
    return DataError(
        f"shard {name} holds {found} bytes, its manifest says {expected}; fetch or build it again, "
        "python -m sharding.verify tells whether others are damaged too"
    )


class RunCache:
    """Fetched ranges by key. Ranges that somebody has acquired stay; others go, longest unused first.

    Memory stays below `max_bytes` unless what is acquired at one time needs more.
    """

    def __init__(self, store: Store, max_bytes: int) -> None:
        self._store = store
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(FETCHES_IN_FLIGHT, thread_name_prefix="fetch")
        self.num_requests = 0
        """Ranges asked of the store so far, without repeated tries."""

    @property
    def is_busy(self) -> bool:
        """Whether all connections have work, or the ranges in use fill the memory."""
        with self._lock:
            pending = sum(not entry.future.done() for entry in self._entries.values())
            acquired = sum(entry.num_bytes for entry in self._entries.values() if entry.users)
        return pending >= FETCHES_IN_FLIGHT or acquired >= self._max_bytes

    def acquire(self, key: Hashable, wanted: ByteRange) -> None:
        """Start to fetch a range unless it is there, and keep it until `release`."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.failed:
                users = entry.users if entry else 0
                entry = _Entry(self._submit(wanted), wanted, users)
                if key not in self._entries:
                    self._bytes += entry.num_bytes
                self._entries[key] = entry
            entry.users += 1
            self._entries.move_to_end(key)
            self._evict()

    def release(self, key: Hashable) -> None:
        """Undo one `acquire`."""
        with self._lock:
            self._entries[key].users -= 1
            self._evict()

    def get(self, key: Hashable) -> bytes:
        """The bytes of an acquired range; waits for them. Raises what the fetch raised."""
        with self._lock:
            future = self._entries[key].future
        return future.result()

    def refetch(self, key: Hashable, bad: bytes) -> bytes:
        """The bytes of an acquired range, fetched again unless another thread has replaced `bad` already."""
        with self._lock:
            entry = self._entries[key]
            if entry.future.done() and entry.future.result() is bad:
                entry.future = self._submit(entry.wanted)
            future = entry.future
        return future.result()

    def map(self, function: Callable[[str], bytes], paths: list[str]) -> list[bytes]:
        """`function` of each path, as many at a time as there may be fetches."""
        return list(self._pool.map(function, paths))

    def close(self) -> None:
        """Fetch nothing more and end the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def _submit(self, wanted: ByteRange) -> "Future[bytes]":
        self.num_requests += 1
        return self._pool.submit(fetch, self._store, wanted)

    def _evict(self) -> None:
        if self._bytes <= self._max_bytes:
            return
        for key in [key for key, entry in self._entries.items() if not entry.users]:
            entry = self._entries.pop(key)
            entry.future.cancel()
            self._bytes -= entry.num_bytes
            if self._bytes <= self._max_bytes:
                return


@dataclass
class _Entry:
    future: "Future[bytes]"
    wanted: ByteRange
    users: int

    @property
    def num_bytes(self) -> int:
        return self.wanted.end - self.wanted.start

    @property
    def failed(self) -> bool:
        return self.future.cancelled() or (self.future.done() and self.future.exception() is not None)
