"""What one check of a node found, and how checks are run so that none can hold up the answer."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

_SLICE_S: Final = 0.1
State = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at on a node."""

    name: str
    state: State
    """failed: no rank may start here. warning: it may, and somebody should look. skipped: `measured` says why."""
    measured: str
    """What was found, in words and figures."""
    advice: str = ""
    """What to do about it; empty where nothing is wrong."""
    is_shared: bool = False
    """Of something that all nodes share: where it fails on all of them, no node is to blame."""
    figures: dict[str, str | float] = field(default_factory=dict)
    """The same for programs."""


Look = Callable[[], Check | list[Check]]


def run_checks(looks: Mapping[str, Look], limit_s: float, stop: threading.Event | None = None) -> list[Check]:
    """What all checks found, in the order given; they run at the same time, each in a thread.

    A check that is not done after `limit_s` (a file system that hangs) counts as failed, and its thread is left behind:
    the caller ends its process without waiting for it. When `stop` is set, those that are not done are left out.
    """
    found: dict[str, list[Check]] = {}
    news = threading.Condition()

    def run(name: str, look: Look) -> None:
        try:
            result = look()
        except Exception as error:
            # Whatever goes wrong in a look is wrong with the node, and the others' findings must not be lost with it.
            result = Check(name=name, state="failed", measured=f"{type(error).__name__}: {error}", advice="see there")
        with news:
            found[name] = [result] if isinstance(result, Check) else result
            news.notify_all()

    for name, look in looks.items():
        threading.Thread(target=run, args=(name, look), daemon=True).start()
    deadline = time.monotonic() + limit_s
    with news:
        # In slices: a signal's handler sets `stop`, and wakes nobody.
        while len(found) < len(looks) and time.monotonic() < deadline and not (stop is not None and stop.is_set()):
            news.wait(_SLICE_S)
        results: list[Check] = []
        for name in looks:
            if name in found:
                results += found[name]
            elif stop is None or not stop.is_set():
                advice = "what it looks at hangs: have the node, and what it mounts, looked at"
                results.append(Check(name=name, state="failed", measured=f"no answer in {limit_s:g} s", advice=advice))
    return results


def passed(checks: Iterable[Check]) -> bool:
    """Whether a rank may start."""
    return all(check.state != "failed" for check in checks)
