"""The processes of a lab, found by what stands in their environment; nothing else is ever signalled."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

NODE = "SLURMLAB_NODE"


def of_lab(conf: Path, node: str | None = None) -> list[int]:
    """Pids of the lab's processes, of one node if given: daemons, step daemons, scripts and ranks.

    This process and its ancestors are none of them, nor is a process that is dead but not reaped.
    """
    own = set(_ancestors())
    return [pid for pid, environ in _environments() if pid not in own and _belongs(environ, conf, node)]


def kill(find: Callable[[], list[int]], *, timeout_s: float = 20) -> None:
    """SIGKILL what `find` finds, again and again until it finds nothing: a dying parent may just have forked."""
    deadline = time.monotonic() + timeout_s
    while pids := find():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {pids} do not die")
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead but not reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except OSError:
        return False


def _belongs(environ: set[str], conf: Path, node: str | None) -> bool:
    if f"SLURM_CONF={conf}" not in environ:
        return False
    return node is None or bool({f"{NODE}={node}", f"SLURMD_NODENAME={node}"} & environ)


def _environments() -> Iterator[tuple[int, set[str]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and is_alive(int(entry.name)):
            with contextlib.suppress(OSError):
                yield int(entry.name), set((entry / "environ").read_bytes().decode(errors="replace").split("\0"))


def _ancestors() -> Iterator[int]:
    pid = os.getpid()
    while pid > 0:
        yield pid
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            return
