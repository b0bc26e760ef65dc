"""Ends a process whose Python cannot run any more, as when machine code holds the interpreter's lock for ever.

`faulthandler.dump_traceback_later(exit=True)` needs no lock either, but its clock goes on while a process is stopped:
of six processes that were continued after SIGSTOP it ended three before Python could put it off. The guard is a thread
in machine code that counts its own naps, and a stopped process takes none.
"""

import faulthandler
import signal
import threading
import time
from typing import IO, Any, Final

import numba
import numpy as np
from numba import types

NAP_S: Final = 0.1
SIGNAL: Final = signal.SIGQUIT
"""On this signal a guarded process writes the stacks of its threads, and goes on."""
_NEVER: Final = 2**62
_HEADER_BYTES: Final = 2048
_NAP_US: Final = int(NAP_S * 1e6)
_DUMP_US: Final = 1_000_000
"""Time for the stacks to be written."""
_NUMBER: Final = int(SIGNAL)
_STDERR: Final = 2
_RUNS, _BEATS, _NAPS, _IS_OVER, _LENGTH, _FILE, _NUM_FIELDS = range(7)

_usleep: Any = types.ExternalFunction("usleep", types.int32(types.uint32))
_getpid: Any = types.ExternalFunction("getpid", types.int32())
_kill: Any = types.ExternalFunction("kill", types.int32(types.int32, types.int32))
_write: Any = types.ExternalFunction("write", types.intp(types.int32, types.uintp, types.uintp))
_exit_now: Any = types.ExternalFunction("_exit", types.void(types.int32))


class Guard:
    """Ends the process with code 1 when `beat` is not called in time; a header and all stacks go to `file` before."""

    def __init__(self, file: IO[str]) -> None:
        self._state = np.zeros(_NUM_FIELDS, dtype=np.int64)
        self._state[_NAPS], self._state[_FILE] = _NEVER, file.fileno()
        self._header = np.zeros(_HEADER_BYTES, dtype=np.uint8)
        faulthandler.register(SIGNAL, file=file, all_threads=True, chain=False)
        self._thread = threading.Thread(target=_loop, args=(self._state, self._header), name="guard", daemon=True)
        self._thread.start()
        while not self._state[_RUNS]:  # until then it needs the interpreter's lock itself
            time.sleep(0.001)

    def beat(self, allowed_s: float, header: str) -> None:
        """Python runs, and beats again within `allowed_s` (0: whenever).

        Otherwise `header` is written, to stderr too, and the process ends.
        """
        text = np.frombuffer(header.encode()[:_HEADER_BYTES], dtype=np.uint8)
        self._header[: len(text)] = text
        self._state[_LENGTH] = len(text)
        self._state[_NAPS] = round(allowed_s / NAP_S) if allowed_s else _NEVER
        self._state[_BEATS] += 1

    def close(self) -> None:
        """Watch no more."""
        self._state[_IS_OVER] = 1
        self._thread.join()
        faulthandler.unregister(SIGNAL)


def _watch(state: Any, header: Any) -> None:
    state[_RUNS] = 1
    beats, naps = state[_BEATS], 0
    while state[_IS_OVER] == 0 and naps <= state[_NAPS]:
        _usleep(_NAP_US)
        naps += 1
        if state[_BEATS] != beats:
            beats, naps = state[_BEATS], 0
    if state[_IS_OVER] == 0:
        for file in (state[_FILE], _STDERR):
            _write(file, types.uintp(header.ctypes.data), types.uintp(state[_LENGTH]))
        _kill(_getpid(), _NUMBER)
        _usleep(_DUMP_US)
        _exit_now(1)


def _compiled() -> Any:
    signature: Any = types.void(types.int64[::1], types.uint8[::1])
    try:
        return numba.njit(signature, nogil=True, cache=True)(_watch)
    except (RuntimeError, OSError):  # neither this folder nor the user's can be written, or it is full
        return numba.njit(signature, nogil=True)(_watch)


_loop = _compiled()
