"""What a run says to whoever looks on: lines, and on a terminal a bar below them that is redrawn."""

import os
import sys
import threading
from typing import Any, Final

_FORMAT: Final = "step {n_fmt}/{total_fmt} {percentage:3.0f}% |{bar}| left {remaining}"
_COLUMNS: Final = 80


def _has_width() -> bool:
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns > 0
    except OSError:
        return False


class Terminal:
    """Rank 0's stdout; a file or a pipe gets the lines alone, and so does a terminal before `begin`."""

    def __init__(self, is_speaking: bool) -> None:
        self._is_speaking = is_speaking
        self._bar: Any = None

    def begin(self, step: int, num_steps: int) -> None:
        """Show a bar from `step` on, where stdout is a terminal."""
        if not self._is_speaking or not sys.stdout.isatty():
            return
        from tqdm import tqdm

        tqdm.monitor_interval = 0  # no thread of its own
        tqdm.set_lock(threading.RLock())  # no semaphore of the machine's
        # Some terminals, as in containers, do not know their width.
        width: dict[str, Any] = {"dynamic_ncols": True} if _has_width() else {"ncols": _COLUMNS}
        self._bar = tqdm(total=num_steps, initial=step, file=sys.stdout, bar_format=_FORMAT, **width)

    def say(self, words: str) -> None:
        """One line, above the bar."""
        if not self._is_speaking:
            return
        if self._bar is not None:
            self._bar.write(words, file=sys.stdout)
            sys.stdout.flush()
        else:
            print(words, flush=True)

    def show(self, step: int) -> None:
        """`step` is done; drawn ten times a second at the most."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Leave the bar as it is and go to the next line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
