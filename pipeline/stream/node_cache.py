"""Fetched byte ranges on a local disk, shared by the ranks of a node through the file system alone.

A range is fetched by one thread of one process of the node; others that want it wait for that one. Whoever dies frees
his lock by dying, and another goes on. What lies there is found with one open and one fstat, without a lock.

Nothing is synced to the disk: after a power cut a file may have the right size and the wrong content. The reader's
checksums find that, `discard` has it fetched again; so a reader that skips them should not keep a cache over a crash.
"""

import contextlib
import errno
import functools
import hashlib
import math
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote, unquote

import numpy as np

from pipeline.stream.byte_range import ByteRange
from pipeline.stream.cache_folder import (
    NO_SPACE,
    PART,
    PATIENCE_S,
    RANGE,
    CacheFolder,
    Inode,
    Needs,
    pauses,
    try_lock,
)
from pipeline.stream.holding import Content
from sharding.errors import StorageError

T = TypeVar("T")

_LONGEST: Final = 150
"""A path that needs more bytes in a file's name is named by its hash; a name has 255."""
_HASHED: Final = "="
"""Begins the name of such a path, and no other: `quote` leaves no such sign."""
_unquote: Final = functools.lru_cache(4096)(unquote)

_caches: "weakref.WeakSet[NodeCache]" = weakref.WeakSet()
"""Those of this process: what one of them will need, another one must not throw out."""
_caches_lock: Final = threading.Lock()


def warn(text: str) -> None:
    """Say something on stderr."""
    print(f"warning: {text}", file=sys.stderr)


@dataclass(eq=False, kw_only=True)
class Held:
    """A range to read from: an open file, or bytes when the disk had no room for it. Must be closed."""

    descriptor: int | None = None
    """Open for reading; its byte 0 is the range's first."""
    content: Content | None = None
    hit: bool
    """Whether it was there, or somebody else fetched it."""
    give_back: Callable[[], None] | None = None

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        give_back, self.give_back = self.give_back, None
        if give_back is not None:
            give_back()
        self.descriptor = self.content = None

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class NodeCache:
    """The ranges of one data set in a folder that holds `max_bytes` of all data sets together.

    Any number of threads and processes use one folder. Raises ConfigError when it cannot be used: it cannot be made or
    written, lies in memory or has no locks. Later, whatever the disk refuses stays in memory; `say` is told once.
    """

    def __init__(self, folder: Path, fingerprint: str, max_bytes: int, say: Callable[[str], None] = warn) -> None:
        self._home = quote(fingerprint[:16], safe="")
        self._folder = CacheFolder(folder, self._home, max_bytes)
        self._say = say
        self._said: set[str] = set()
        self._next_use: Callable[[ByteRange], float] | None = None
        self._long_paths: dict[str, str] = {}
        self._held: dict[str, list[Inode]] = {}
        self._mutex = threading.Lock()
        self.hits = 0
        """Ranges that were there, or that another process or thread fetched while we waited."""
        self.misses = 0
        """Ranges that we fetched."""
        self.waited_s = 0.0
        """Time spent waiting for ranges that others were fetching, over all threads."""
        self.full_disk = 0
        """Ranges that stayed in memory because the disk had no room or failed."""
        with _caches_lock:
            _caches.add(self)

    @property
    def evicted(self) -> int:
        """Ranges that we removed to make room."""
        return self._folder.evicted

    def set_next_use(self, next_use: Callable[[ByteRange], float]) -> None:
        """Tell where in the future a range is needed next (infinite: never); what is needed last goes first.

        It is asked for every range of the data set in the folder, also for those that other ranks brought: an answer
        for the whole node keeps theirs as well. All caches of a process that share a folder must count alike. What
        nobody in this process knows or needs goes before all else, longest unused first.
        """
        self._next_use = next_use
        try:
            self._folder.fit(self._needs())
        except OSError as error:
            self._tell(error)

    def bring(self, wanted: ByteRange, fetch: Callable[[], Content]) -> Held:
        """The range from the folder; when it is not there, `fetch` it and put it there.

        Raises what `fetch` raised; then the next one who wants the range tries.
        """
        name, held, part = self._name(wanted), None, None
        try:
            held = self._open(name, wanted.num_bytes)
            if held is None:
                held, part = self._with_room(wanted.num_bytes, lambda: self._wait(name, wanted.num_bytes))
        except OSError as error:
            self._tell(error)
        if held is not None:
            with self._mutex:
                self.hits += 1
            return held
        try:
            content = fetch()
            with self._mutex:
                self.misses += 1
            held = None if part is None else self._put(part, name, content)
        finally:
            if part is not None:
                self._folder.drop(part, self._path(name) + PART)
        if held is not None:
            return held
        with self._mutex:
            self.full_disk += 1
        return Held(content=content, hit=False)

    def discard(self, wanted: ByteRange) -> None:
        """Remove a range whose content is wrong, so that it is fetched again; call it before `Held.close`.

        What another process has put there in its place stays: only a file that this process has open is removed, or,
        when it has none open, whatever is there. Raises StorageError when it cannot be removed.
        """
        name = self._name(wanted)
        with self._mutex:
            inodes = tuple(self._held.get(name, ()))
        try:
            self._folder.remove(self._path(name), inodes)
        except OSError as error:
            raise StorageError(
                f"cannot remove damaged {self._path(name)} from the cache ({error.strerror}); remove it by hand"
            ) from error

    def _open(self, name: str, num_bytes: int) -> Held | None:
        """The range if it is there; one that is too short or too long is removed."""
        path = self._path(name)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        status = os.fstat(descriptor)
        if status.st_size == num_bytes:
            return self._hold(name, descriptor, status, hit=True)
        try:
            self._folder.remove(path, [(status.st_dev, status.st_ino)])
        finally:
            os.close(descriptor)
        return None

    def _wait(self, name: str, num_bytes: int) -> tuple[Held | None, int | None]:
        """The range once somebody has put it there, or its temporary, locked, when we are the one to fetch it."""
        path, since = self._path(name) + PART, None
        try:
            for _ in pauses(PATIENCE_S):
                part = try_lock(path)
                try:
                    held = self._open(name, num_bytes)  # it may have come between our last look and the lock
                    if held is None and part is not None:
                        mine, part = part, None
                        return None, mine
                finally:
                    if part is not None:
                        self._folder.drop(part, path)
                if held is not None:
                    return held, None
                since = since or time.monotonic()
        finally:
            if since is not None:
                with self._mutex:
                    self.waited_s += time.monotonic() - since
        raise TimeoutError(errno.ETIMEDOUT, f"another process has been fetching it for {PATIENCE_S:.0f} s", path)

    def _put(self, part: int, name: str, content: Content) -> Held | None:
        """Write a range and give it its name; None when the disk or the bound has no room for it."""
        path = self._path(name)
        held = None
        try:
            if not self._with_room(len(content), lambda: self._write(part, content)):
                self._tell(f"its bound of {self._folder.max_bytes} bytes is too small for what is in use at one time")
                return None
            descriptor = os.open(path + PART, os.O_RDONLY | os.O_CLOEXEC)
            held = self._hold(name, descriptor, os.fstat(descriptor), hit=False)
            self._folder.keep(part, path)
            return held
        except OSError as error:
            if held is not None:
                held.close()
            self._tell(error)
            return None

    def _write(self, part: int, content: Content) -> bool:
        if not self._folder.reserve(part, len(content), self._needs()):
            return False
        left, place = np.frombuffer(content, np.uint8).data, 0
        while left:
            written = os.pwrite(part, left, place)
            left, place = left[written:], place + written
        os.close(os.dup(part))  # NFS tells only when a descriptor is closed that its server has no room
        return True

    def _with_room(self, num_bytes: int, action: Callable[[], T]) -> T:
        """What `action` returns; on a full disk it is done again after ranges of `num_bytes` were removed."""
        try:
            return action()
        except OSError as error:
            if error.errno not in NO_SPACE or not self._folder.shrink(num_bytes, self._needs()):
                raise
        return action()

    def _hold(self, name: str, descriptor: int, status: os.stat_result, hit: bool) -> Held:
        inode = (status.st_dev, status.st_ino)
        with self._mutex:
            self._held.setdefault(name, []).append(inode)
        give_back = functools.partial(self._give_back, name, descriptor, inode)
        return Held(descriptor=descriptor, hit=hit, give_back=give_back)

    def _give_back(self, name: str, descriptor: int, inode: Inode) -> None:
        with self._mutex:
            inodes = self._held[name]
            inodes.remove(inode)
            if not inodes:
                del self._held[name]
        with contextlib.suppress(OSError):  # a disk that may only be read now
            os.utime(descriptor, ns=(now := time.time_ns(), now))  # the kernel's own is 4 ms coarse
        os.close(descriptor)

    def _needs(self) -> Needs:
        caches: dict[str, list[NodeCache]] = {}
        with _caches_lock:
            for cache in _caches:
                if cache._folder.path == self._folder.path:
                    caches.setdefault(cache._home, []).append(cache)
        return _Needs(caches)

    def _ahead(self, name: str) -> float:
        if self._next_use is None:
            return math.inf
        path, _, numbers = name.removesuffix(RANGE).rpartition(".")
        known = self._long_paths.get(path) if path.startswith(_HASHED) else _unquote(path)
        return math.inf if known is None else self._next_use(ByteRange(known, *map(int, numbers.split("-"))))

    def _name(self, wanted: ByteRange) -> str:
        path = quote(wanted.path, safe="")
        if len(path) > _LONGEST:
            path = _HASHED + hashlib.sha256(wanted.path.encode()).hexdigest()
            self._long_paths[path] = wanted.path
        return f"{path}.{wanted.start}-{wanted.end}-{wanted.file_bytes}{RANGE}"

    def _path(self, name: str) -> str:
        return f"{self._folder.path}/{self._home}/{name}"

    def _tell(self, reason: OSError | str) -> None:
        text = reason if isinstance(reason, str) else str(reason.strerror)
        with self._mutex:
            if text in self._said:
                return
            self._said.add(text)
        place = "" if isinstance(reason, str) or reason.filename is None else f" ({reason.filename})"
        self._say(
            f"the node cache {self._folder.path} cannot keep a range: {text}{place}; "
            "such ranges stay in memory, and the next one is tried again"
        )


@dataclass(frozen=True)
class _Needs:
    """What the caches of this process that share a folder need, by the name of their data set's subfolder."""

    caches: dict[str, list[NodeCache]]

    def next_use(self, home: str, name: str) -> float:
        return min((cache._ahead(name) for cache in self.caches.get(home, ())), default=math.inf)

    def in_use(self, home: str, name: str) -> bool:
        return any(name in cache._held for cache in self.caches.get(home, ()))
