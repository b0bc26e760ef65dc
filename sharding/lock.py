"""A lock file that one process holds at a time, for as long as it lives."""

import errno
import fcntl
import os
import sys
from pathlib import Path
from typing import IO, Final

_NO_LOCKS: Final = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
"""What flock(2) says on Lustre without `-o flock` and on NFS without a lock manager."""


def hold(path: Path, owner: str) -> IO[str] | None:
    """Lock `path` and write `owner` into it; the lock lasts until the file returned is closed.

    BlockingIOError when another process holds it; its `strerror` is the owner that the other wrote.
    None, and a warning on stderr, where the file system has no locks: then nothing keeps a second process out.
    """
    lock = path.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        with lock:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
        raise BlockingIOError(error.errno, holder, str(path)) from error
    except OSError as error:
        lock.close()
        if error.errno not in _NO_LOCKS:
            raise
        print(
            f"warning: {path.parent} is on a file system without locks ({error.strerror}), so nothing keeps a second "
            "process from writing there: see to it that there is only one",
            file=sys.stderr,
        )
        return None
    try:
        os.ftruncate(lock.fileno(), 0)
        os.write(lock.fileno(), f"{owner}\n".encode())
    except BaseException:
        lock.close()
        raise
    return lock


def may_be_held(path: Path) -> bool:
    """Whether a process holds the lock at `path`; True where the file system cannot tell."""
    try:
        with path.open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return True
    return False
