"""Closing what has threads: when it is asked for, or when its owner has become garbage."""

import threading
import weakref
from collections.abc import Callable


class Finalizer:
    """Calls `close` once, at the latest when `owner` is collected; `close` must not refer to `owner`.

    Garbage may be collected in any thread, also in one for which `close` would wait: there it runs beside.
    """

    def __init__(self, owner: object, close: Callable[[], None]) -> None:
        self._close = close
        self._finalizer = weakref.finalize(owner, _close_beside, close)

    @property
    def alive(self) -> bool:
        """Whether it has not been called yet."""
        return self._finalizer.alive

    def __call__(self) -> None:
        """Close now, in the caller's thread; a second time does nothing."""
        if self._finalizer.detach() is not None:
            self._close()


def _close_beside(close: Callable[[], None]) -> None:
    if threading.current_thread() is threading.main_thread():
        close()
    else:
        threading.Thread(target=close, name="close", daemon=True).start()
