"""A file of which any range can be asked for, as one that `zipfile` and others can read."""

import io
from abc import abstractmethod
from typing import Any


class RangedFile(io.RawIOBase):
    """`size` bytes; subclasses say how a range of them is had."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self._position = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """As a file's."""
        self._position = offset + (0, self._position, self.size)[whence]
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """As a file's."""
        count = max(0, min(len(buffer), self.size - self._position))
        buffer[:count] = self.read_at(self._position, count)
        self._position += count
        return count

    def read_at(self, start: int, count: int) -> bytes:
        """`count` bytes from `start` on; ValueError when the file has no such bytes."""
        if not 0 <= start <= start + count <= self.size:
            raise ValueError(f"it has {self.size} bytes, so none from {start} to {start + count}")
        return self._range(start, count) if count else b""

    @abstractmethod
    def _range(self, start: int, count: int) -> bytes:
        """Bytes that are there."""
