"""Asking an object store again: which failures pass, how long to wait, when to give up.

s3fs asks again by itself for some seconds; a store that is overloaded for a minute, or restarts, needs more. Everything
here is about time: whether what came is what was meant, checksums say.
"""

import asyncio
import errno
from collections.abc import Callable
from typing import Final, TypeVar

import tenacity

from sharding.credentials import is_refusal

T = TypeVar("T")

PATIENCE_S: Final = 120.0
"""After this long the store is given up."""
_ATTEMPTS: Final = 12
_LONGEST_WAIT_S: Final = 15.0
_FINAL: Final = (
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    FileExistsError,
    NotImplementedError,
)
_FINAL_NUMBERS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EINVAL)
_SDKS: Final = ("botocore", "obstore", "aiobotocore", "aiohttp", "asyncio", "fsspec", "gcsfs", "azure", "google")


def passes(error: BaseException) -> bool:
    """Whether asking again may help: a store that is slow, busy or cut the answer, not one that says no."""
    if isinstance(error, _FINAL) or is_refusal(error):
        return False
    if isinstance(error, OSError):
        return error.errno not in _FINAL_NUMBERS
    return isinstance(error, asyncio.TimeoutError) or is_of_a_store(error)


def is_of_a_store(error: BaseException) -> bool:
    """Whether it is an SDK's own class of error."""
    return type(error).__module__.split(".")[0] in _SDKS


def patiently(
    operation: Callable[[], T],
    patience_s: float = PATIENCE_S,
    again: Callable[[BaseException], None] | None = None,
) -> T:
    """The result of `operation`, asked again with growing, random waits; its last error when the time is over.

    `again` is told of each failure before the wait; what it raises ends the tries.
    """
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(_ATTEMPTS) | tenacity.stop_after_delay(patience_s),
        wait=tenacity.wait_exponential_jitter(multiplier=0.3, max=_LONGEST_WAIT_S, jitter=1.0),
        retry=tenacity.retry_if_exception(passes),
        before_sleep=_tell(again),
        reraise=True,
    )
    return retrying(operation)


def _tell(again: Callable[[BaseException], None] | None) -> Callable[[tenacity.RetryCallState], None] | None:
    if again is None:
        return None

    def told(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if error is not None:
            again(error)

    return told
