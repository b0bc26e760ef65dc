"""Ranges asked of an object store: patiently, counted, and given up soon where asking again cannot help."""

import threading
import time
from collections.abc import Callable
from typing import Final, Literal

from pipeline.stream.byte_range import ByteRange, wrong_size
from pipeline.stream.holding import Content
from pipeline.stream.instruments import Meter
from pipeline.stream.lent_memory import MemoryPool
from pipeline.stream.order import RUN_BYTES
from pipeline.stream.s3fs_ranges import S3fsRanges
from sharding.credentials import is_refusal
from sharding.dataset import split_version
from sharding.errors import StorageError
from sharding.store import Store

Client = Literal["fsspec", "obstore"]
ReadRange = Callable[[str, int, int, Callable[[BaseException], None]], Content]
CONNECTIONS = 64
"""botocore's pool has 10 by default, which holds 16 requests up."""
KEPT_BYTES: Final = 16 * RUN_BYTES
"""Of memory that is not in use, for the next ranges."""
_NO_RETRIES: Final = {"total_max_attempts": 1}
"""By botocore: five tries of its own in each of s3fs's five would make a stalled answer take a quarter of an hour."""


def open_store(url: str) -> Store:
    """The store at `url`, with as many connections as we use; all tries are those of `Store.ask`, which counts them."""
    store = Store(split_version(url)[0])
    if store.is_s3:
        options = dict(store.fs.storage_options)
        ours = {"max_pool_connections": CONNECTIONS, "retries": _NO_RETRIES}
        options["config_kwargs"] = ours | options.get("config_kwargs", {})
        store.fs = type(store.fs)(**options)
        store.fs.retries = 1
    return store


class Fetcher:
    """Asks one store for ranges; usable from any thread."""

    def __init__(self, store: Store, meter: Meter, client: Client = "fsspec") -> None:
        self._store = store
        self._meter = meter
        self._stopped = threading.Event()
        self._read = _reader(store, client)

    def stop(self) -> None:
        """Try nothing again."""
        self._stopped.set()

    def __call__(self, wanted: ByteRange) -> Content:
        """The bytes of a range; asked again, with growing random waits, while the store fails in ways that pass.

        Raises DataError naming the file when it is missing or not `file_bytes` long, StorageError when the store
        kept failing or refuses the credentials.
        """
        began = time.perf_counter()

        def again(error: BaseException) -> None:
            if self._stopped.is_set():
                raise StorageError(f"the stream was closed while {wanted.path} was fetched")
            self._meter.add(retries=1)
            self._refuse_other_size(wanted)

        try:
            content = self._read(wanted.path, wanted.start, wanted.end, again)
        except StorageError as error:
            self._refuse_other_size(wanted)
            if error.__cause__ is not None and is_refusal(error.__cause__):
                raise
            raise StorageError(f"{error}; given up, check the store and start again") from error
        except OSError as error:
            raise StorageError(f"cannot read {self._store.name(wanted.path)}: {error.strerror or error}") from error
        self._meter.add(requests=1, bytes_fetched=len(content), fetch_s=time.perf_counter() - began)
        return content

    def _refuse_other_size(self, wanted: ByteRange) -> None:
        try:
            size = self._store.size_once(wanted.path)
        except StorageError:
            return  # the next try tells
        if size != wanted.file_bytes:
            raise wrong_size(self._store.name(wanted.path), size, wanted.file_bytes)


def _reader(store: Store, client: Client) -> ReadRange:
    memory = MemoryPool(KEPT_BYTES)
    if client == "obstore":
        from pipeline.stream.obstore_ranges import ObstoreRanges

        return ObstoreRanges(store, memory)
    return S3fsRanges(store, memory) if store.is_s3 else store.read_range
