"""Credentials that a store refuses: read again from where they come from, and tried once more.

Temporary credentials expire, and whoever renews them writes the new ones into a file (`~/.aws/credentials`,
`AWS_SHARED_CREDENTIALS_FILE`), which a client that has read the old ones does not look at again.
"""

import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

T = TypeVar("T")

WAITS_S: Final = (0.0, 1.0, 2.0)
"""Before each further try: at once, and for those that are written a moment later than the old ones expire."""
_CODES: Final = frozenset(
    (
        "400",  # what HEAD says of an expired token: it has no room for a reason
        "401",
        "403",
        "AccessDenied",
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidToken",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    )
)
"""Of S3 and of what stands before it."""
_CLASSES: Final = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound")
"""Of botocore, when there is nothing to read or it is being written."""


def is_refusal(error: BaseException) -> bool:
    """Whether a store refuses who asks, or there is nobody to ask as."""
    if isinstance(error, PermissionError) or type(error).__name__ in _CLASSES:
        return True
    cause = error.__cause__ if isinstance(error, OSError) else error  # s3fs translates, and keeps what it translated
    answer: Any = getattr(cause, "response", None)
    return isinstance(answer, dict) and answer.get("Error", {}).get("Code") in _CODES


def with_renewal(
    operation: Callable[[], T], renew: Callable[[], None], again: Callable[[BaseException], None] | None = None
) -> T:
    """The result of `operation`; when the store refuses the credentials, `renew` is called and it is done again.

    So often as WAITS_S says; then the refusal is raised. `again` is told of each refusal before the next try.
    """
    for wait_s in WAITS_S:
        try:
            return operation()
        except Exception as error:
            if not is_refusal(error):
                raise
            time.sleep(wait_s)
            renew()
            if again is not None:
                again(error)
    return operation()
