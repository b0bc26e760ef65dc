"""Running the contenders of `benchmarks.stream`: made data, warm pages, pinned processes, failures that are told."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import stream_rivals
from benchmarks.stream_data import FORMATS, RIVALS_FORMATS
from benchmarks.stream_readers import Task
from pipeline.errors import ConfigError, StorageError

_FORMATS_OF = {
    "ours": ("none", "lz4"),
    "raw": ("none",),
    "ranges": ("none",),
    "memcpy": ("arrays",),
    "memmap": ("arrays",),
    "h5py": ("h5",),
    "webdataset": ("npy",),
    "energon": ("energon", "npy"),
}
"""Of the readers that are not called as what they read; the first is what is read."""
_LIMIT_S = 300
_GRACE_S = 10
_NOT_COLD = 0.02
_NOT_COLD_BYTES = 32 << 20
"""Libraries are read from the disk too."""


@dataclass(frozen=True)
class Failure:
    """Why a contender has no figures."""

    why: str


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the parts are told."""

    quick: bool
    rounds: int
    as_json: bool
    only: frozenset[str]
    loop_ms: tuple[float, ...]
    delay_ms: float


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all runs share."""

    folder: Path
    num_pairs: int
    seconds: float

    def make_data(self, readers: set[str]) -> dict[str, str]:
        """Every format that the readers need; returns readers that cannot run, and why."""
        why = {name: text for name, text in stream_rivals.missing().items() if name in readers}
        wanted = {"index", "arrays", *(found for name in readers - set(why) for found in _formats_of(name))}
        for name in FORMATS:  # in the order in which they can be made
            if name in wanted and not (self.folder / name).exists():
                print(f"making {self.num_pairs} pairs as {name}", file=sys.stderr, flush=True)
                python = str(stream_rivals.python()) if name in RIVALS_FORMATS else sys.executable
                command = [python, "-m", "benchmarks.stream_data", name, str(self.folder), str(self.num_pairs)]
                done = subprocess.run(command, check=False, capture_output=True, text=True, env=_environment())
                if done.returncode and name in RIVALS_FORMATS:
                    why[name] = f"its data could not be made: {_last_line(done.stderr)}"
                elif done.returncode:
                    raise StorageError(f"the pairs could not be made as {name}: {_last_line(done.stderr)}")
        return why

    def run(self, task: Task, cores: int, action: str, *, env: dict[str, str] | None = None, **more: Any) -> Any:
        """What a contender tells (a dict), or a `Failure`."""
        if not task.remote:
            warm(self.folder / (task.codec if task.reader == "ours" else _formats_of(task.reader)[0]))
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "told.json"
            task = replace(task, folder=str(self.folder.resolve()), cache=task.cache or scratch)
            spec = {"task": asdict(task), "out": str(out), "action": action, "seconds": self.seconds, **more}
            command = [_python(task), "-m", "benchmarks.stream_contender", json.dumps(spec)]
            code, said = _pinned(command, pin(cores), env or {})
            if code or not out.exists():
                return Failure(f"failed: {said}")
            return json.loads(out.read_text())


def pin(cores: int) -> list[int]:
    """So many of the cores that we may use; ConfigError when there are fewer."""
    available = sorted(os.sched_getaffinity(0))
    if len(available) < cores:
        raise ConfigError(f"{cores} cores are needed, there are {len(available)}")
    return available[:cores]


def warm(folder: Path) -> None:
    """Read all of a format into the page cache, through links too."""
    buffer = bytearray(4 << 20)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def was_cold(told: dict[str, Any], sample_bytes: int) -> bool:
    """Whether more than a little was read from the disk itself."""
    return bool(told["from_disk"] > max(_NOT_COLD * told["samples"] * sample_bytes, _NOT_COLD_BYTES))


def _formats_of(reader: str) -> tuple[str, ...]:
    return _FORMATS_OF.get(reader, (reader,))


def _python(task: Task) -> str:
    """Rivals run in their environment; so does obstore where ours has none, for it sees our packages."""
    if task.reader in stream_rivals.PACKAGES or (task.client == "obstore" and not _has_obstore()):
        return str(stream_rivals.python())
    return sys.executable


def _has_obstore() -> bool:
    import importlib.util

    return importlib.util.find_spec("obstore") is not None


def _pinned(command: list[str], cores: list[int], env: dict[str, str]) -> tuple[int, str]:
    """Exit code and last words. The process and all that it started are gone afterwards."""
    with tempfile.TemporaryFile("w+") as words:
        child = subprocess.Popen(
            command,
            stdout=words,
            stderr=words,
            env={**_environment(), **env},
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        try:
            code = child.wait(timeout=_LIMIT_S)
        except subprocess.TimeoutExpired:
            return 1, f"no end after {_LIMIT_S} s"
        finally:
            _end(child)
        words.seek(0)
        return code, _last_line(words.read())


def _end(child: "subprocess.Popen[str]") -> None:
    """Its workers end by themselves when it has, and tidy up /dev/shm; whatever does not is killed."""
    with contextlib.suppress(ProcessLookupError):
        end = time.monotonic() + (_GRACE_S if child.poll() is not None else 0)
        while time.monotonic() < end:
            os.killpg(child.pid, 0)
            time.sleep(0.05)
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def _last_line(text: str) -> str:
    """The last line that names an error, else the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"(\w+\.)*\w*(Error|Exception)\b", line)]
    return (named or lines or ["nothing was said"])[-1][:200].replace("|", "/")
