"""Files of this machine, read in place: open ones are kept, as many as the system lets a process have."""

import errno
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.stream.byte_range import wrong_size
from pipeline.stream.holding import Bytes, Hold, Int64s, Source
from pipeline.stream.table import DataFile
from sharding.errors import DataError, StorageError
from sharding.store import Store

OTHER_FILES: Final = 1024
"""Open files that the rest of the process may need beside the shards."""
CHECKED_AT_START: Final = 4096
"""So many files are looked for before the first batch; of more, each when it is needed."""


class LocalFiles(Source):
    """Opens files when they are needed, and closes those that nobody uses, longest unused first."""

    is_remote = False
    is_busy = False

    def __init__(self, store: Store, files: Sequence[DataFile]) -> None:
        self._paths = [store.full(file.path) for file in files]
        self._sizes = [file.num_bytes for file in files]
        self._most = raise_limit(len(files)) - OTHER_FILES
        self._kept: npt.NDArray[np.int32] | None = None
        """By file: its descriptor, or -1; where all files may be open at once, none is closed before the end."""
        if len(files) <= self._most:
            self._kept = np.full(len(files), -1, np.int32)
        self._open: OrderedDict[int, int] = OrderedDict()
        self._users: dict[int, int] = {}
        self._lock = threading.Lock()
        if len(files) <= CHECKED_AT_START:
            for file in range(len(files)):
                self._check_size(file, self._stat(file).st_size)

    def hold(self, samples: Int64s) -> "LocalHold":
        """Opens nothing yet."""
        return LocalHold(self)

    def kept(self, files: npt.NDArray[np.int32]) -> npt.NDArray[np.int32] | None:
        """Descriptors that stay open until the end, of files in any shape; None where too many would be open."""
        if self._kept is None:
            return None
        found = self._kept[files]
        missing = files[found < 0]
        if len(missing):
            for file in np.unique(missing).tolist():
                self._kept[file] = self.use(file)
            found = self._kept[files]
        return found

    def use(self, file: int) -> int:
        """An open descriptor, until `unuse`; DataError when the file is missing or of another size."""
        with self._lock:
            descriptor = self._open.get(file)
            if descriptor is None:
                try:
                    descriptor = self._open_file(file)
                except StorageError as error:
                    if getattr(error.__cause__, "errno", 0) != errno.EMFILE:
                        raise
                    self._close_unused(0)  # other data sets of this process have files open too
                    descriptor = self._open_file(file)
                self._open[file] = descriptor
            self._open.move_to_end(file)
            self._users[file] = self._users.get(file, 0) + 1
            self._close_unused(self._most)
            return descriptor

    def unuse(self, files: Sequence[int]) -> None:
        """Undo one `use` of each."""
        with self._lock:
            for file in files:
                if file in self._users:  # else all were closed
                    self._users[file] -= 1
            self._close_unused(self._most)

    def read(self, file: int, descriptor: int, start: int, end: int) -> Bytes:
        """Bytes of an open file; DataError when it has become shorter, StorageError when it cannot be read."""
        buffer, got = bytearray(end - start), 0
        try:
            while got < len(buffer) and (more := os.preadv(descriptor, [memoryview(buffer)[got:]], start + got)):
                got += more
        except OSError as error:
            raise StorageError(f"cannot read shard {self._paths[file]}: {error.strerror}") from error
        if got < len(buffer):
            self._check_size(file, os.fstat(descriptor).st_size)
            raise StorageError(f"shard {self._paths[file]} gave {got} of {len(buffer)} bytes at {start}")
        return np.frombuffer(buffer, np.uint8)

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            self._users.clear()
            self._close_unused(0)

    def _open_file(self, file: int) -> int:
        try:
            descriptor = os.open(self._paths[file], os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise self._missing(file) from error
        except OSError as error:
            raise StorageError(f"cannot open shard {self._paths[file]}: {error.strerror}") from error
        try:
            self._check_size(file, os.fstat(descriptor).st_size)
        except DataError:
            os.close(descriptor)
            raise
        return descriptor

    def _stat(self, file: int) -> os.stat_result:
        try:
            return os.stat(self._paths[file])
        except FileNotFoundError as error:
            raise self._missing(file) from error
        except OSError as error:
            raise StorageError(f"cannot open shard {self._paths[file]}: {error.strerror}") from error

    def _missing(self, file: int) -> DataError:
        return DataError(f"shard {self._paths[file]} is missing; fetch or build it again")

    def _check_size(self, file: int, size: int) -> None:
        if size != self._sizes[file]:
            raise wrong_size(self._paths[file], size, self._sizes[file])

    def _close_unused(self, most: int) -> None:
        if len(self._open) <= most:
            return
        for file in [file for file in self._open if not self._users.get(file)]:
            os.close(self._open.pop(file))
            self._users.pop(file, None)
            if len(self._open) <= most:
                return


class LocalHold(Hold):
    """Descriptors in use by one batch."""

    def __init__(self, files: LocalFiles) -> None:
        self._files = files
        self._used: dict[int, int] = {}
        self._lock = threading.Lock()

    def locate(
        self, samples: Int64s, files: npt.NDArray[np.int32], offsets: Int64s
    ) -> tuple[npt.NDArray[np.int32], Int64s]:
        """Places are offsets in the file."""
        kept = self._files.kept(files)
        if kept is not None:
            return kept, offsets
        distinct, inverse = np.unique(files, return_inverse=True)
        descriptors = np.array([self._descriptor(file) for file in distinct.tolist()], np.int32)
        return descriptors[inverse.reshape(files.shape)], offsets

    def read_range(self, sample: int, file: int, start: int, end: int) -> Bytes:
        """Straight from the file."""
        return self._files.read(file, self._descriptor(file), start, end)

    def renew(self, sample: int) -> bool:
        """A file that is read in place cannot be had anew."""
        return False

    def abandon(self) -> None:
        """Nobody waits for a file of this machine."""

    def release(self) -> None:
        """The files may be closed."""
        with self._lock:
            used, self._used = self._used, {}
        self._files.unuse(list(used))

    def _descriptor(self, file: int) -> int:
        with self._lock:
            if file not in self._used:
                self._used[file] = self._files.use(file)
            return self._used[file]


def raise_limit(num_files: int) -> int:
    """The number of files that this process may open, raised as far as it takes and the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num_files + 2 * OTHER_FILES
    if soft < wanted:  # often 1,024 by default; a process may raise it up to `hard` by itself
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))
        soft = max(soft, limit)
    return max(soft, OTHER_FILES + 64)
