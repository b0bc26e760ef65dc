"""Fetched ranges of bytes, in memory or in a file of the node's cache, and where payloads lie in them."""

import os
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.stream.byte_range import ByteRange
from pipeline.stream.holding import Bytes, Content, Int64s
from pipeline.stream.native import IN_MEMORY, NOWHERE
from sharding.errors import DataError


class Fetch(Protocol):
    """Asks a store for a range."""

    def __call__(self, wanted: ByteRange) -> Content:
        """All bytes of the range, or an error."""


class Brought(Protocol):
    """A range that was brought: an open file at whose start it is, or bytes."""

    descriptor: int | None
    content: Content | None
    hit: bool

    def close(self) -> None:
        """Give it back."""


class Cache(Protocol):
    """Where fetched ranges are kept for other ranks and later (`pipeline.stream.node_cache`)."""

    def bring(self, wanted: ByteRange, fetch: Callable[[], Content]) -> Brought:
        """The range, fetched unless it is there."""

    def discard(self, wanted: ByteRange) -> None:
        """It is damaged."""

    def set_next_use(self, next_use: Callable[[ByteRange], float]) -> None:
        """Tell when ranges are needed, so that it knows which may go."""


@dataclass
class InMemory:
    """A range that this process has fetched for itself."""

    content: Content | None
    descriptor: int | None = None
    hit: bool = False

    def close(self) -> None:
        """Let go of the bytes."""
        self.content = None


@dataclass(frozen=True)
class Piece:
    """A range that was brought, of the file with this number in the table."""

    wanted: ByteRange
    file: int
    brought: Brought
    content: Bytes | None
    """As long as a piece is looked at, its bytes stay, whoever closes it."""
    descriptor: int
    """Open file, or IN_MEMORY."""
    base: int
    """What is to be added to an offset in the file: then it is one in the cached file, or an address."""

    @classmethod
    def of(cls, wanted: ByteRange, file: int, brought: Brought) -> "Piece":
        """The piece that holds `wanted`."""
        content = None if brought.content is None else np.frombuffer(brought.content, np.uint8)
        address = 0 if content is None else int(content.ctypes.data)
        descriptor = IN_MEMORY if brought.descriptor is None else brought.descriptor
        return cls(wanted, file, brought, content, descriptor, address - wanted.start)

    def read(self, start: int, end: int) -> Bytes:
        """Bytes [start, end) of the file; DataError when the cached copy does not have them."""
        if self.content is not None:
            return self.content[start - self.wanted.start : end - self.wanted.start]
        assert self.brought.descriptor is not None
        try:
            content = os.pread(self.brought.descriptor, end - start, start - self.wanted.start)
        except OSError as error:
            raise DataError(f"the cached copy of {self.wanted.path} cannot be read: {error.strerror}") from error
        if len(content) != end - start:
            raise DataError(f"the cached copy of {self.wanted.path} ends too early")
        return np.frombuffer(content, np.uint8)


def in_single_pieces(pieces: list[Piece], offsets: Int64s) -> tuple[npt.NDArray[np.int32], Int64s]:
    """Where payloads (samples, arrays) are, each sample's all in one piece."""
    about = np.array([(p.descriptor, p.base, p.wanted.start, p.wanted.end) for p in pieces], np.int64)[:, :, None]
    inside = (offsets >= about[:, 2]) & (offsets < about[:, 3])
    descriptors = np.where(inside, about[:, 0], NOWHERE).astype(np.int32)
    return descriptors, offsets + about[:, 1]


def close_pieces(future: "Future[Any]") -> None:
    """Give back what a future has brought, if it has."""
    if not future.cancelled() and future.exception() is None:
        for piece in future.result():
            piece.brought.close()
