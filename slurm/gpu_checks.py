"""The GPUs of a node, as `nvidia-smi` tells of them: how many, how idle, how healthy."""

import csv
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from slurm.check import Check

_CORE: Final[tuple[str, ...]] = ("index", "uuid", "memory.used", "memory.total", "utilization.gpu", "temperature.gpu")
_MORE: Final[tuple[str, ...]] = ("ecc.errors.uncorrected.volatile.total", "retired_pages.pending", "mig.mode.current")
"""Fields that an old driver, or that of a small GPU, may refuse."""
_ABSENT: Final = re.compile(r"\[?(N/A|Not Supported|Not Found|Insufficient Permissions)\]?", re.IGNORECASE)
_LOST: Final = re.compile(
    r"Unknown Error|ERR!|requires reset|is lost|Unable to determine the device handle", re.IGNORECASE
)
"""What stands in place of a figure, or before the table, when a GPU does not answer."""
_ANSWER_S: Final = 30
_HOT_C: Final = 85
_BUSY_PERCENT: Final = 20


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One line of `nvidia-smi --query-gpu`; None where the GPU does not know."""

    index: str
    uuid: str
    memory_used_mib: float | None
    memory_total_mib: float | None
    utilization_percent: float | None
    temperature_c: float | None
    ecc_uncorrected: float | None
    retirement_pending: bool | None
    has_mig: bool
    is_lost: bool
    """A figure reads `[Unknown Error]`, `ERR!` or `[GPU requires reset]`."""


class NvidiaSmiError(Exception):
    """`nvidia-smi` could not say; the message is its own."""


def gpus_given(environ: Mapping[str, str]) -> int:
    """GPUs that SLURM gave to this step on this node."""
    counted = environ.get("SLURM_GPUS_ON_NODE", "")
    return int(counted) if counted.isdecimal() else 0


def check_gpus(expected: int, environ: Mapping[str, str], max_used: float) -> list[Check]:
    """All checks of the node's `expected` GPUs, of which each may have the share `max_used` of its memory in use."""
    if not expected:
        return [Check(name="gpus", state="skipped", measured="none were asked for")]
    if shutil.which("nvidia-smi", path=environ.get("PATH")) is None:
        if Path("/dev/kfd").exists():
            return [Check(name="gpus", state="skipped", measured="they are AMD's, which nvidia-smi does not know")]
        advice = "the node has no NVIDIA driver, or the container none of its tools"
        return [Check(name="gpus", state="failed", measured="there is no nvidia-smi", advice=advice)]
    try:
        gpus = visible(query(environ), environ.get("CUDA_VISIBLE_DEVICES", ""))
        has_mig = any(gpu.has_mig for gpu in gpus)
        num_visible = _mig_devices(environ) if has_mig else len(gpus)
    except NvidiaSmiError as error:
        return [Check(name="gpus", state="failed", measured=str(error), advice="drain the node: its driver fails")]
    return [
        _count(gpus, num_visible, expected),
        _memory(gpus, max_used),
        _health(gpus, _remapping(environ)),
        _heat(gpus),
    ]


def query(environ: Mapping[str, str]) -> list[Gpu]:
    """All GPUs that `nvidia-smi` sees.

    Raises:
        NvidiaSmiError: it fails, finds none, or answers something else.
    """
    code, said = _nvidia_smi(environ, f"--query-gpu={','.join(_CORE + _MORE)}", "--format=csv,noheader,nounits")
    fields = _CORE + _MORE
    if code and "not a valid field" in said:
        fields = _CORE
        code, said = _nvidia_smi(environ, f"--query-gpu={','.join(_CORE)}", "--format=csv,noheader,nounits")
    if "No devices were found" in said:
        raise NvidiaSmiError("nvidia-smi: No devices were found")
    return parse(said, fields, code)


def parse(said: str, fields: tuple[str, ...] = _CORE + _MORE, code: int = 0) -> list[Gpu]:
    """The GPUs in a CSV answer without header and units.

    Raises:
        NvidiaSmiError: a line is none of a table, or the exit code is not 0.
    """
    gpus = []
    for cells in csv.reader(said.splitlines(), skipinitialspace=True):
        if len(cells) != len(fields) or not cells[0].isdecimal():
            raise NvidiaSmiError(f"nvidia-smi: {', '.join(cells).strip() or 'an empty line'}")
        row = dict(zip(fields, (cell.strip() for cell in cells), strict=True))
        pending = row.get("retired_pages.pending", "[N/A]")
        gpus.append(
            Gpu(
                index=row["index"],
                uuid=row["uuid"],
                memory_used_mib=_number(row["memory.used"]),
                memory_total_mib=_number(row["memory.total"]),
                utilization_percent=_number(row["utilization.gpu"]),
                temperature_c=_number(row["temperature.gpu"]),
                ecc_uncorrected=_number(row.get("ecc.errors.uncorrected.volatile.total", "[N/A]")),
                retirement_pending=None if _ABSENT.fullmatch(pending) else pending.lower() in ("yes", "1"),
                has_mig=row.get("mig.mode.current") == "Enabled",
                is_lost=any(_LOST.search(cell) for cell in cells),
            )
        )
    if code or not gpus:
        raise NvidiaSmiError(f"nvidia-smi ended with {code} and no word of a GPU")
    return gpus


def visible(gpus: list[Gpu], devices: str) -> list[Gpu]:
    """Those of CUDA_VISIBLE_DEVICES; all of them where it is not set, or names what is not there (MIG devices)."""
    names = [name.strip() for name in devices.split(",") if name.strip()]
    own = [gpu for gpu in gpus if any(name == gpu.index or _is_uuid(name, gpu.uuid) for name in names)]
    return own if names and len(own) == len(names) else gpus


def _is_uuid(name: str, uuid: str) -> bool:
    return name.startswith("GPU-") and uuid.startswith(name)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _nvidia_smi(environ: Mapping[str, str], *options: str) -> tuple[int, str]:
    try:
        ran = subprocess.run(
            ["nvidia-smi", *options],
            env=dict(environ),
            capture_output=True,
            text=True,
            timeout=_ANSWER_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NvidiaSmiError(f"nvidia-smi gave no answer in {_ANSWER_S} s") from None
    except OSError as error:
        raise NvidiaSmiError(f"nvidia-smi cannot be run: {error.strerror}") from None
    said = ran.stdout.strip() or ran.stderr.strip()
    if ran.returncode and "not a valid field" not in said:
        lines = [line.strip() for line in f"{ran.stdout}\n{ran.stderr}".splitlines() if line.strip()]
        told = next((line for line in lines if _LOST.search(line)), lines[0] if lines else "no word")
        raise NvidiaSmiError(f"nvidia-smi ended with {ran.returncode}: {told.removeprefix('NVIDIA-SMI ')}")
    return ran.returncode, said


def _mig_devices(environ: Mapping[str, str]) -> int:
    _, said = _nvidia_smi(environ, "-L")
    return sum(line.lstrip().startswith("MIG ") for line in said.splitlines())


def _remapping(environ: Mapping[str, str]) -> dict[str, str]:
    """By UUID what is wrong with the spare rows of a GPU's memory (A100 and later, which retire no pages)."""
    asked = "gpu_uuid,remapped_rows.pending,remapped_rows.failure"
    try:
        code, said = _nvidia_smi(environ, f"--query-remapped-rows={asked}", "--format=csv,noheader")
    except NvidiaSmiError:
        return {}  # an old driver, or a GPU without spare rows
    wrong = {}
    for cells in csv.reader(said.splitlines() if not code else (), skipinitialspace=True):
        if len(cells) == 3:
            pending, failed = (cell.strip().lower() in ("yes", "1") for cell in cells[1:])
            if pending or failed:
                wrong[cells[0]] = "no spare rows left in its memory" if failed else "a memory row to be remapped"
    return wrong


def _count(gpus: list[Gpu], num_visible: int, expected: int) -> Check:
    lost = [gpu.index for gpu in gpus if gpu.is_lost]
    figures: dict[str, str | float] = {"visible": num_visible, "expected": expected}
    if lost:
        measured, advice = f"GPU {', '.join(lost)} does not answer", "drain the node: the GPU must be reset"
        return Check(name="gpus", state="failed", measured=measured, advice=advice, figures=figures)
    measured = f"{num_visible} visible, {expected} given by SLURM"
    if num_visible < expected:
        advice = "drain the node: a GPU has gone"
        return Check(name="gpus", state="failed", measured=measured, advice=advice, figures=figures)
    return Check(name="gpus", state="ok", measured=measured, figures=figures)


def _memory(gpus: list[Gpu], max_used: float) -> Check:
    if any(gpu.has_mig for gpu in gpus):
        return Check(name="gpu memory", state="skipped", measured="MIG: the GPU has other users")
    shares = {
        gpu.index: gpu.memory_used_mib / gpu.memory_total_mib
        for gpu in gpus
        if gpu.memory_used_mib is not None and gpu.memory_total_mib
    }
    if not shares:
        return Check(name="gpu memory", state="skipped", measured="not told by nvidia-smi")
    worst = max(shares, key=shares.__getitem__)
    measured = f"GPU {worst}: {shares[worst]:.1%} in use, of all the most"
    figures: dict[str, str | float] = {"most_used_share": round(shares[worst], 4)}
    if shares[worst] > max_used:
        advice = f"a process of an earlier job holds it (nvidia-smi names it); at most {max_used:.0%} may be in use"
        return Check(name="gpu memory", state="failed", measured=measured, advice=advice, figures=figures)
    return Check(name="gpu memory", state="ok", measured=measured, figures=figures)


def _health(gpus: list[Gpu], remapping: Mapping[str, str]) -> Check:
    wrong = []
    for gpu in gpus:
        if gpu.ecc_uncorrected:
            wrong.append(f"GPU {gpu.index}: {gpu.ecc_uncorrected:.0f} uncorrected ECC errors")
        if gpu.retirement_pending:
            wrong.append(f"GPU {gpu.index}: pages to be retired")
        if gpu.uuid in remapping:
            wrong.append(f"GPU {gpu.index}: {remapping[gpu.uuid]}")
    if wrong:
        advice = "drain the node: the GPU must be reset, or changed"
        return Check(name="gpu ecc", state="failed", measured="; ".join(wrong), advice=advice)
    if all(gpu.ecc_uncorrected is None for gpu in gpus):
        return Check(name="gpu ecc", state="skipped", measured="not told by nvidia-smi")
    return Check(name="gpu ecc", state="ok", measured="no uncorrected errors")


def _heat(gpus: list[Gpu]) -> Check:
    hottest = max((gpu.temperature_c for gpu in gpus if gpu.temperature_c is not None), default=None)
    busiest = max((gpu.utilization_percent for gpu in gpus if gpu.utilization_percent is not None), default=None)
    if hottest is None:
        return Check(name="gpu heat", state="skipped", measured="not told by nvidia-smi")
    measured = f"{hottest:.0f} °C at most" + ("" if busiest is None else f", {busiest:.0f} % busy at most")
    if hottest >= _HOT_C or (busiest or 0) > _BUSY_PERCENT:
        advice = "idle GPUs are cool: look for another process, then at the cooling"
        return Check(name="gpu heat", state="warning", measured=measured, advice=advice)
    return Check(name="gpu heat", state="ok", measured=measured)
