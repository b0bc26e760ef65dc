"""Memory that comes back: a fetched range goes where an earlier one lay, for fresh memory costs a fault each page.

Faults, with the kernel's zeroing, take longer than to copy the pages: 0.3 to 0.8 s of processor time a GB was measured,
and 1.1 s with huge pages.
"""

import mmap
import threading
import weakref
from collections import deque
from typing import Final

import numpy as np

from pipeline.stream.holding import Bytes

_ROUND: Final = 1 << 16
_WASTE: Final = 8
"""A region is lent for what is smaller by an eighth of it at most."""


class MemoryPool:
    """Lends memory, keeping up to `keep_bytes` of what came back; usable from any thread."""

    def __init__(self, keep_bytes: int) -> None:
        self._keep_bytes = keep_bytes
        self._lock = threading.Lock()
        # What comes back comes whenever Python collects it, also in a thread that has the lock.
        self._returned: deque[mmap.mmap] = deque()
        self._free: list[mmap.mmap] = []

    def lend(self, num_bytes: int) -> Bytes:
        """Memory of `num_bytes`, holding anything; MemoryError when there is none.

        It comes back when nothing refers to it, or to a view of it, any more.
        """
        with self._lock:
            while self._returned:
                self._free.append(self._returned.popleft())
            region = self._fitting(num_bytes)
            kept = sum(map(len, self._free))
            while kept > self._keep_bytes:
                kept -= len(self._free.pop(0))
        if region is None:
            region = _mapped(num_bytes)
        # As its base is no array, views of it, and their views, refer to this one.
        lent = np.frombuffer(region, np.uint8, num_bytes)
        weakref.finalize(lent, self._returned.append, region).atexit = False
        return lent

    def _fitting(self, num_bytes: int) -> mmap.mmap | None:
        """The smallest free region that is large enough, and not much larger."""
        most = num_bytes + num_bytes // _WASTE + _ROUND
        sizes = [(len(region), place) for place, region in enumerate(self._free) if num_bytes <= len(region) <= most]
        return self._free.pop(min(sizes)[1]) if sizes else None


def _mapped(num_bytes: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, -(-max(num_bytes, 1) // _ROUND) * _ROUND, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no memory for {num_bytes} bytes of a fetched range: {error.strerror}") from error
