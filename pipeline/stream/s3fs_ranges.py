"""Ranges through s3fs, read piece by piece into memory that was used before.

`cat_file` gathers all pieces of a body and joins them in fresh memory: up to half of its processor time where
what came is kept, so that each range takes memory that nothing has touched yet.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from fsspec.asyn import sync

from pipeline.stream.holding import Bytes
from pipeline.stream.lent_memory import MemoryPool
from sharding.store import Store

_PIECE: Final = 1 << 18


class S3fsRanges:
    """Reads ranges of one store's files; usable from any thread."""

    def __init__(self, store: Store, memory: MemoryPool) -> None:
        self._store = store
        self._memory = memory

    def __call__(self, path: str, start: int, end: int, again: Callable[[BaseException], None]) -> Bytes:
        """Bytes [start, end) of `path`; errors as `Store.read_range`."""
        content = self._memory.lend(end - start)

        def read() -> None:
            fs = self._store.fs  # another one once credentials were renewed; see `Store.ask`
            sync(fs.loop, _fill, fs, self._store.full(path), start, content)

        self._store.ask("read", path, read, again)
        return content


async def _fill(fs: Any, path: str, start: int, content: Bytes) -> None:
    bucket, key, version = fs.split_path(path)
    end = start + len(content)
    asked = {"Bucket": bucket, "Key": key, "Range": f"bytes={start}-{end - 1}"}
    if version:
        asked["VersionId"] = version
    body = (await fs._call_s3("get_object", **asked))["Body"]
    at = 0
    try:
        while piece := await body.read(_PIECE):
            if at + len(piece) > len(content):
                raise OSError(f"it gave more than the bytes {start} to {end}")
            content[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
            at += len(piece)
    finally:
        body.close()
    if at != len(content):
        raise OSError(f"it gave {at} of the bytes {start} to {end}: it is cut short")
