"""What a batch holds of the files from when it is foreseen until it is read: open files, or fetched runs of samples."""

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Content = bytes | Bytes
Places = tuple[npt.NDArray[np.int32], Int64s]
"""Descriptors, and offsets or addresses, of payloads."""


class Hold(ABC):
    """The files, or fetched parts of them, that some samples lie in; usable from any thread until `release`."""

    waited_s: float = 0.0
    """For the network, by the thread that waited longest."""

    @abstractmethod
    def locate(self, samples: Int64s, files: npt.NDArray[np.int32], offsets: Int64s) -> Places:
        """Where payloads (samples, arrays) at `offsets` of `files` are: descriptors, and places for `native`.

        Waits until they are there. Of payloads that do not exist the place means nothing.
        """

    @abstractmethod
    def read_range(self, sample: int, file: int, start: int, end: int) -> Bytes:
        """The bytes of a payload of `sample`; waits until they are there."""

    @abstractmethod
    def renew(self, sample: int) -> bool:
        """Fetch what `sample` lies in again, because it is damaged; False when that cannot help."""

    @abstractmethod
    def abandon(self) -> None:
        """Nobody wants the samples any more: threads that wait for them give up."""

    @abstractmethod
    def release(self) -> None:
        """Give everything back; safe to call again."""


class Source(ABC):
    """A split's files."""

    is_remote: bool

    @abstractmethod
    def hold(self, samples: Int64s) -> Hold:
        """Begin to bring what `samples` lie in; returns at once."""

    @property
    @abstractmethod
    def is_busy(self) -> bool:
        """Whether nothing more should be asked for now."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back."""
