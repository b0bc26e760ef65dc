"""What a node must have besides GPUs: space, a store that answers, a clock that agrees, the packages."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from pipeline.errors import FusMAEError
from pipeline.run_folder import PACKAGES
from pipeline.store_speed import StoreSpeed
from slurm.check import Check, State

GIB: Final = 2**30
_WRITTEN_BYTES: Final = 2**20
SKEW_WARNING_S: Final = 1.0
SKEW_FAILED_S: Final = 30.0
IMPORTED: Final = ("torch", "deepspeed", "xformers.ops", "webdataset", "zarr", "numcodecs", "fsspec")
# Each import's time apart; the answer is the last line, whatever a package prints.
_IMPORTS: Final = """
import importlib, json, sys, time
seconds = {}
for name in sys.argv[1:]:
    began = time.perf_counter()
    importlib.import_module(name)
    seconds[name] = round(time.perf_counter() - began, 2)
print("\\n" + json.dumps(seconds), flush=True)
"""


@dataclass(frozen=True, kw_only=True)
class Space:
    """What a folder must have left."""

    free_gib: float
    free_inodes: int
    wished_gib: float = 0.0
    """With less than this, counting what the folder holds, comes a warning."""


def check_folder(name: str, folder: Path, space: Space, *, is_shared: bool, owner: str) -> Check:
    """Free bytes and inodes of a folder's file system, and whether a file can be written and synced there.

    A folder that is not there yet is looked at where it would be made. A full quota and a disk that has become
    read-only show only in the writing.
    """
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    system = os.statvfs(place)
    free_gib, inodes = system.f_bavail * system.f_frsize / GIB, system.f_favail
    figures: dict[str, str | float] = {"free_gib": round(free_gib, 2), "free_inodes": inodes}
    measured = f"{folder}: {free_gib:,.1f} GiB and {inodes:,} inodes free"
    if not system.f_files:
        measured = f"{folder}: {free_gib:,.1f} GiB free, inodes are not counted"

    def told(state: State, measured: str, advice: str = "") -> Check:
        return Check(name=name, state=state, measured=measured, advice=advice, is_shared=is_shared, figures=figures)

    if free_gib < space.free_gib:
        return told("failed", measured, f"free space: {space.free_gib:g} GiB are needed at least (--min-free-gib)")
    if system.f_files and inodes < space.free_inodes:
        return told("failed", measured, f"delete files: {space.free_inodes} inodes are needed (--min-free-inodes)")
    probe = place / f".preflight-{owner}-{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(os.urandom(_WRITTEN_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        advice = "it must be writable: look at its mount, its owner and the quota"
        return told("failed", f"{folder}: a file of 1 MiB cannot be written: {error.strerror}", advice)
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    if space.wished_gib and free_gib + _held_gib(folder) < space.wished_gib:
        return told("warning", measured, f"{space.wished_gib:g} GiB may be used by the settings; less will be")
    return told("ok", measured)


def _held_gib(folder: Path) -> float:
    """What the files of a folder take, those that vanish meanwhile left out."""
    held = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                held += os.lstat(os.path.join(root, name)).st_blocks * 512
    return held / GIB


def check_clock(folder: Path, owner: str, now: Callable[[], float] = time.time) -> Check:
    """The node's clock against that of the file system that all nodes share: of NFS and Lustre, the server's."""
    probe = folder / f".preflight-clock-{owner}-{os.getpid()}"
    try:
        probe.touch()
        before = now()
        os.utime(probe)  # to the server's time
        written, after = probe.stat().st_mtime, now()
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    # Within the time that asking took, the two agree.
    skew = max(written - after, before - written, 0.0)
    measured = f"{skew:.2f} s {'behind' if written > after else 'before'} {folder}" if skew >= 0.01 else "agrees"
    figures: dict[str, str | float] = {"skew_s": round(skew, 3)}
    if skew <= SKEW_WARNING_S:
        return Check(name="clock", state="ok", measured=measured, is_shared=True, figures=figures)
    return Check(
        name="clock",
        state="failed" if skew > SKEW_FAILED_S else "warning",
        measured=measured,
        advice="set the clock (chrony, ntp): logs, credentials and time limits go by it",
        is_shared=True,
        figures=figures,
    )


def check_store(name: str, measure: Callable[[], StoreSpeed], min_mb_s: float) -> Check:
    """A store's first byte and its speed; only one that does not give what is asked for has failed."""
    try:
        speed = measure()
    except (FusMAEError, OSError) as error:
        advice = "without it no rank gets on: try it from this node, with this user's credentials"
        return Check(name=name, state="failed", measured=str(error), advice=advice, is_shared=True)
    rates = f"first byte after {speed.first_byte_s * 1e3:.0f} ms, {speed.read_mb_s:,.0f} MB/s read"
    figures: dict[str, str | float] = {
        "first_byte_s": round(speed.first_byte_s, 4),
        "read_mb_s": round(speed.read_mb_s, 1),
        "read_bytes": speed.num_bytes,
    }
    if speed.write_mb_s is not None:
        rates += f", {speed.write_mb_s:,.0f} MB/s written"
        figures["write_mb_s"] = round(speed.write_mb_s, 1)
    if speed.read_mb_s < min_mb_s:
        advice = f"slower than {min_mb_s:g} MB/s (--min-mb-s): the ranks may wait for data"
        return Check(name=name, state="warning", measured=rates, advice=advice, is_shared=True, figures=figures)
    return Check(name=name, state="ok", measured=rates, is_shared=True, figures=figures)


def check_packages() -> Check:
    """Versions of Python and of what a rank imports, from what is installed; nothing is imported."""
    versions: dict[str, str | float] = {"python": platform.python_version()}
    missing = []
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            missing.append(package)
    measured = ", ".join(f"{name} {version}" for name, version in versions.items())
    if missing:
        advice = f"install them on this node, or choose its Python with FUSMAE_PYTHON (it is {sys.executable})"
        measured = f"not installed: {', '.join(missing)}"
        return Check(
            name="packages", state="failed", measured=measured, advice=advice, is_shared=True, figures=versions
        )
    return Check(name="packages", state="ok", measured=measured, is_shared=True, figures=versions)


def check_imports(names: tuple[str, ...] = IMPORTED) -> Check:
    """Import what a rank imports, in a process of its own, and how long that took."""
    began = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-c", _IMPORTS, *names],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    took_s = time.perf_counter() - began
    if ran.returncode:
        last = (ran.stderr.strip() or "no word").splitlines()[-1]
        measured = f"a rank's imports end with {ran.returncode}: {last}"
        advice = f"try it on this node: {sys.executable} -c 'import {', '.join(names)}'"
        return Check(name="imports", state="failed", measured=measured, advice=advice, is_shared=True)
    seconds: dict[str, str | float] = json.loads(ran.stdout.splitlines()[-1])
    slowest = max(seconds, key=lambda name: float(seconds[name]))
    measured = f"{took_s:.1f} s, of which {slowest} {seconds[slowest]} s"
    return Check(name="imports", state="ok", measured=measured, is_shared=True, figures=seconds)
