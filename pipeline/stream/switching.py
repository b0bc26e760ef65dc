"""How long a thread may keep the interpreter's lock while reader threads wait for it.

By default it is 5 ms, in which a reader could have filled half a batch: beside a loop that holds the lock for 10 ms a
batch, two threads give 4,700 pairs a second with 5 ms and 5,700 with 0.3 ms. PyTorch lets go of the lock in each
operation, so this is about what lies between them.
"""

import sys
import threading
from typing import Final

INTERVAL_S: Final = 0.0005
"""Shorter still gains little."""

_lock: Final = threading.Lock()
_users = 0
_before = 0.0


def shorten() -> None:
    """Let threads take turns more often, until `restore` was called as often."""
    global _users, _before
    with _lock:
        if _users == 0:
            _before = sys.getswitchinterval()
            sys.setswitchinterval(min(_before, INTERVAL_S))
        _users += 1


def restore() -> None:
    """Undo one `shorten`; the last one sets back what was before."""
    global _users
    with _lock:
        _users -= 1
        if _users == 0:
            sys.setswitchinterval(_before)
