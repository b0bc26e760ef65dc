"""Who made a data set, when and with what: the part of `build.json` that every command writes alike."""

import datetime
import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from typing import Any


def made_by(command: list[str] | None, started: float, packages: Sequence[str]) -> dict[str, Any]:
    """Command, host, times (`started` in seconds since 1970; it ends now) and the versions of `packages`."""
    return {
        "command": command,
        "host": platform.node(),
        "started": datetime.datetime.fromtimestamp(started, datetime.UTC).isoformat(timespec="seconds"),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": sys.version.split()[0],
            **{package: importlib.metadata.version(package) for package in packages},
        },
    }
