"""The folder of a node cache: its locks, and one bound in bytes for all processes of the node that keep files there.

A range lies in `FOLDER/HOME/NAME.range`; while it is written, in `NAME.range.part`, on which its writer holds an
flock(2): a temporary without a lock has lost its writer and is removed. Bytes are set aside by giving the temporary
its final length, so what lies in the folder is what counts. Its sum is kept in the file `account`; only who holds the
lock of that file sets bytes aside or removes any. A process that is killed frees its locks by dying, and leaves an
account that is right or too high, which the next look at the files mends.

Files that are not named like ours are neither counted nor removed.
"""

import contextlib
import errno
import fcntl
import os
import re
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from sharding.errors import ConfigError

RANGE: Final = ".range"
PART: Final = ".part"
NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)
PATIENCE_S: Final = 120.0
"""Longest wait for another process: longer than a fetch with its repeated tries, unless that process has stopped."""
_PLANS: Final = 10
"""Tries to make room, each after a look at all files: one is enough unless others come in between."""
_PLAN_SHARE: Final = 32
_BLOCK: Final = 4096
_OURS: Final = re.compile(rf".+\.\d+-\d+-\d+{re.escape(RANGE)}({re.escape(PART)})?")
_MEMORY: Final = Path("/dev/shm")

Inode = tuple[int, int]
"""Device and number."""


class Needs(Protocol):
    """What is known about the files `NAME.range` of a `HOME`."""

    def next_use(self, home: str, name: str) -> float:
        """How far ahead it is needed next; infinite: never, or nobody knows."""

    def in_use(self, home: str, name: str) -> bool:
        """Whether it is being read, so that removing it would free nothing."""


class CacheFile(NamedTuple):
    """A whole range in the folder."""

    used_ns: int
    """When it was used last."""
    num_bytes: int
    """On the disk, in whole blocks."""
    home: str
    name: str


class CacheFolder:
    """A folder whose files take at most `max_bytes`, with all processes that use it together.

    Raises ConfigError when the folder cannot be used.
    """

    def __init__(self, folder: Path, home: str, max_bytes: int) -> None:
        self.path = folder.resolve()
        self.max_bytes = max_bytes
        self.evicted = 0
        """Ranges that this process removed to make room."""
        self._victims: list[CacheFile] = []
        """What goes next, the first one last."""
        self._planning = threading.Lock()
        self._account_path = str(self.path / "account")
        self._boot = _boot_id()
        if max_bytes <= _BLOCK:
            raise ConfigError(f"a node cache of {max_bytes} bytes holds nothing; give it some GiB or leave it away")
        if _is_memory(self.path):
            raise ConfigError(
                f"the cache folder {folder} lies in memory ({_MEMORY}); name one on a local disk, "
                "or leave it away: fetched data then stay in the memory of each process, as much as cache_gib says"
            )
        try:
            (self.path / home).mkdir(parents=True, exist_ok=True)
            _refuse_without_locks(self.path / home)
            self.remove_leftovers()
        except OSError as error:
            if error.errno in NO_SPACE:
                return  # it may be old ranges that fill the disk: the first write makes room
            raise ConfigError(
                f"the cache folder {folder} cannot be used ({error.filename or self.path}: {error.strerror}); "
                "name a folder on a local disk in which you may write, one for each user"
            ) from error

    def reserve(self, part: int, num_bytes: int, needs: Needs) -> bool:
        """Set `num_bytes` aside for the open temporary `part`; False when files that must stay leave no room."""
        return self._reserve(part, num_bytes, needs)

    def fit(self, needs: Needs) -> None:
        """Remove what is too much, after a run with a higher bound; plan anew what goes next."""
        self._victims = []
        self._reserve(None, 0, needs)

    def shrink(self, num_bytes: int, needs: Needs) -> bool:
        """Remove files of `num_bytes`, because the disk is full before the bound is; False when none may go."""
        freed = 0
        for _ in range(_PLANS):
            with self._account() as account:
                total = self._total(account)
                gone = self._evict(_on_disk(num_bytes) - freed, needs)
                self._set_total(account, total - gone)
            freed += gone
            if freed >= num_bytes or not self._plan(num_bytes - freed, needs):
                break
        return freed > 0

    def keep(self, part: int, path: str) -> None:
        """Give the full temporary `path + PART`, whose lock is held by `part`, its name: it is a range from now on."""
        with self._account():  # who counts the files must not miss one that changes its name
            if not is_at(part, path + PART):
                raise FileNotFoundError(errno.ENOENT, "somebody removed it while it was written", path + PART)
            os.rename(path + PART, path)

    def remove(self, path: str, inodes: Collection[Inode]) -> None:
        """Remove a file, if it still is one of `inodes`; when these are empty, whatever it is."""
        with self._account() as account:
            try:
                status = os.stat(path)
            except FileNotFoundError:
                return
            if not inodes or (status.st_dev, status.st_ino) in inodes:
                total = self._total(account)
                os.unlink(path)
                self._set_total(account, total - _on_disk(status.st_size))

    def drop(self, part: int, path: str) -> None:
        """Unlock `part`, and remove it if it still is the temporary `path`."""
        try:
            if is_at(part, path):
                status = os.fstat(part)
                if status.st_size:
                    self.remove(path, [(status.st_dev, status.st_ino)])
                else:
                    os.unlink(path)
        except OSError:
            pass  # unlocked, it is a leftover that the next look removes
        finally:
            unlock(part)

    def remove_leftovers(self) -> None:
        """Remove the temporaries of processes that are gone."""
        with self._account() as account:
            total = self._total(account)
            for _, entry in self._entries(PART):
                total -= _remove_if_left(entry.path)
            self._set_total(account, total)

    @contextlib.contextmanager
    def _account(self) -> Iterator[int]:
        for _ in pauses(PATIENCE_S, longest_s=0.004):
            account = try_lock(self._account_path)
            if account is not None:
                try:
                    yield account
                finally:
                    unlock(account)
                return
        message = f"another process has held its lock for {PATIENCE_S:.0f} s"
        raise TimeoutError(errno.ETIMEDOUT, message, self._account_path)

    def _total(self, account: int) -> int:
        """What is in the folder by the account, or by the files where there is none since the node started."""
        words = os.pread(account, 128, 0).decode(errors="replace").split()
        if len(words) == 2 and words[0].isdecimal() and words[1] == self._boot:
            return int(words[0])
        return self._look()[0]

    def _set_total(self, account: int, total: int) -> None:
        os.pwrite(account, f"{total:020d} {self._boot}\n".encode(), 0)

    def _look(self) -> tuple[int, list[CacheFile]]:
        """Bytes of all files and the whole ranges; temporaries that lost their writer are removed."""
        total, files = _BLOCK, []  # the account itself
        for home, entry in self._entries():
            if entry.name.endswith(PART) and _remove_if_left(entry.path):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            num_bytes = _on_disk(status.st_size)
            total += num_bytes
            if entry.name.endswith(RANGE):
                files.append(CacheFile(status.st_mtime_ns, num_bytes, home, entry.name))
        return total, files

    def _entries(self, ending: str = "") -> Iterator[tuple[str, "os.DirEntry[str]"]]:
        """Home and file of all that is ours."""
        with os.scandir(self.path) as homes:
            for home in homes:
                if home.is_dir(follow_symlinks=False):
                    with os.scandir(home.path) as entries:
                        for entry in entries:
                            if entry.name.endswith(ending) and _OURS.fullmatch(entry.name):
                                yield home.name, entry

    def _reserve(self, part: int | None, num_bytes: int, needs: Needs) -> bool:
        for _ in range(_PLANS):
            with self._account() as account:
                more = 0 if part is None else _on_disk(num_bytes) - _on_disk(os.fstat(part).st_size)
                total = self._total(account)
                total -= self._evict(total + more - self.max_bytes, needs)
                excess = total + more - self.max_bytes
                if excess <= 0:
                    self._set_total(account, total + more)
                    if part is not None:
                        os.ftruncate(part, num_bytes)
                    return True
                self._set_total(account, total)
            if not self._plan(excess, needs):
                return False
        return False

    def _plan(self, num_bytes: int, needs: Needs) -> bool:
        """Look at all files and choose which go next, at least `num_bytes`; False when there is nothing to gain.

        The choice lasts for a 32nd of the files, so that few writers must look. What is not in use now may be so when
        its turn comes, therefore `_evict` asks again.
        """
        with self._planning:
            if self._victims:
                return True  # another thread has just chosen
            with self._account() as account:
                before = self._total(account)
                total, files = self._look()
                self._set_total(account, total)
            idle = [file for file in files if not needs.in_use(file.home, file.name)]
            victims: list[CacheFile] = []
            for _, file in sorted((-needs.next_use(file.home, file.name), file) for file in idle):
                if num_bytes <= 0 and len(victims) >= len(files) // _PLAN_SHARE:
                    break
                victims.append(file)
                num_bytes -= file.num_bytes
            self._victims = victims[::-1]
        return bool(victims) or total < before

    def _evict(self, num_bytes: int, needs: Needs) -> int:
        """Remove chosen files of `num_bytes` or all that are left; returns how many bytes that were."""
        freed = 0
        while self._victims and freed < num_bytes:
            file = self._victims.pop()
            path = f"{self.path}/{file.home}/{file.name}"
            with contextlib.suppress(FileNotFoundError):  # another process was first
                if os.stat(path).st_mtime_ns == file.used_ns and not needs.in_use(file.home, file.name):
                    os.unlink(path)
                    self.evicted += 1
                    freed += file.num_bytes
        return freed


def try_lock(path: str) -> int | None:
    """A descriptor of the file `path` with the lock on it, which nobody else has; None while another has it.

    The file and its folder are made when they are missing.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor = os.open(path, flags, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_at(descriptor, path):  # not renamed or removed by the one who had the lock before
            return descriptor
    except BlockingIOError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def unlock(descriptor: int) -> None:
    """Give up the lock, also for children that inherited the descriptor, and close."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def is_at(descriptor: int, path: str) -> bool:
    """Whether an open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def pauses(limit_s: float, longest_s: float = 0.05) -> Iterator[None]:
    """Come at once, then after pauses from 1 ms up to `longest_s`, until `limit_s` have passed.

    A blocking flock(2) could not be given up when the other process has stopped.
    """
    end, pause = time.monotonic() + limit_s, 0.001
    while True:
        yield
        if time.monotonic() >= end:
            return
        time.sleep(pause)
        pause = min(2 * pause, longest_s)


def _remove_if_left(path: str) -> int:
    """Remove a temporary unless its writer lives; returns the bytes it took."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_at(descriptor, path):
            return 0
        os.unlink(path)
        return _on_disk(os.fstat(descriptor).st_size)
    except BlockingIOError:
        return 0
    finally:
        os.close(descriptor)


def _refuse_without_locks(home: Path) -> None:
    """ConfigError unless a lock on a file of `home` keeps others out."""
    path = home / f"locks-{os.getpid()}-{time.monotonic_ns()}.0-0-0{RANGE}{PART}"
    with path.open("xb") as first, open(f"/proc/self/fd/{first.fileno()}", "r+b") as second:
        path.unlink(missing_ok=True)
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            reason = "a second lock on a locked file was granted"
        except BlockingIOError:
            return
        except OSError as error:
            reason = str(error.strerror)
    raise ConfigError(
        f"the cache folder {home.parent} is on a file system without locks ({reason}), so the processes of a node "
        "cannot share it; name a folder on a local disk"
    )


def _is_memory(folder: Path) -> bool:
    existing = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    same_device = os.path.ismount(_MEMORY) and existing.stat().st_dev == _MEMORY.stat().st_dev
    return same_device or folder.is_relative_to(_MEMORY)


def _on_disk(num_bytes: int) -> int:
    return -(-num_bytes // _BLOCK) * _BLOCK


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"process-{os.getpid()}-{time.monotonic_ns()}"
