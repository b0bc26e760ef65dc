"""A store of zarr's that reads through `sharding.store`: a bucket that fails is asked again, and errors are ours.

Imports zarr: import it where a store is opened.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import NoReturn

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import Buffer, BufferPrototype

from pipeline.errors import DataError
from sharding.store import Store


class ReadOnlyStore(ZarrStore):
    """The files below a URL that do not change while they are read."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, store: Store) -> None:
        super().__init__(read_only=True)
        self._store = store
        self._sizes: dict[str, int] = {}
        """Of shards, whose indexes are at their ends."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ReadOnlyStore) and other._store.url == self._store.url

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The bytes of a file or a part of it; None when there is no such file."""
        try:
            content = await asyncio.to_thread(self._read, key, byte_range)
        except DataError:
            return None
        return prototype.buffer.from_bytes(content)

    def _read(self, key: str, byte_range: ByteRequest | None) -> bytes:
        if byte_range is None:
            return self._store.read(key)
        if isinstance(byte_range, RangeByteRequest):
            return self._store.read_range(key, byte_range.start, byte_range.end)
        if key not in self._sizes:
            self._sizes[key] = self._store.size(key)
        size = self._sizes[key]
        start = byte_range.offset if isinstance(byte_range, OffsetByteRequest) else max(size - byte_range.suffix, 0)
        return self._store.read_range(key, start, size)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Several parts at the same time."""
        return await asyncio.gather(*(self.get(key, prototype, byte_range) for key, byte_range in key_ranges))

    async def exists(self, key: str) -> bool:
        """Whether a file is there."""
        return await asyncio.to_thread(self._store.exists, key)

    async def set(self, key: str, value: Buffer) -> NoReturn:
        """Refused."""
        raise NotImplementedError("this store is only read")

    async def delete(self, key: str) -> NoReturn:
        """Refused."""
        raise NotImplementedError("this store is only read")

    async def list(self) -> AsyncIterator[str]:
        """All files."""
        for path in await asyncio.to_thread(self._store.files):
            yield path

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """The files whose paths begin so."""
        async for path in self.list():
            if path.startswith(prefix):
                yield path

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """The names of files and folders right below a folder."""
        within = f"{prefix.rstrip('/')}/" if prefix else ""
        names = {path[len(within) :].partition("/")[0] async for path in self.list_prefix(within)}
        for name in sorted(names):
            yield name
