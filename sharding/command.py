"""How every command of the project ends: an exit code, and at most one sentence on stderr."""

import errno
import sys
from collections.abc import Callable

from sharding.errors import FusMAEError


def exit_code(main: Callable[[list[str] | None], int], argv: list[str] | None = None) -> int:
    """Run `main`; turn our errors into one sentence on stderr and an exit code.

    2 is wrong usage, 1 is failed work (an interrupted or a full disk too), 0 is success. Errors that are not
    ours keep their traceback: they are defects to be reported.
    """
    try:
        return main(argv)
    except FusMAEError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(
            "error: interrupted; nothing half-written counts as finished, the same command goes on",
            file=sys.stderr,
        )
        return 1
    except BrokenPipeError:
        return 1  # whoever read our output has gone
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        print(
            f"error: {error.strerror}: {error.filename or 'the output'}; free space or choose another place",
            file=sys.stderr,
        )
        return 1


def run_command(main: Callable[[list[str] | None], int]) -> None:
    """Run `main` as a program and exit with its code."""
    sys.exit(exit_code(main))
