"""A checkpoint is a folder that appears whole or not at all.

    checkpoints/.tmp-00000040   being written: nobody reads it
    checkpoints/step-00000040   committed: the rename is the commit
        manifest.json           step, world size, engine, and size and CRC-32C of every other file
        state.json              position in the data, the same on every rank
        rank00000.pt ...        each rank's random number generators
        engine/ ...             weights in training precision, fp32 masters and moments, as the engine shards them
        model.safetensors       fp32 weights for everything that comes after training

DeepSpeed's own `latest` file may point at a half-written folder (it is written before a barrier) and a flipped bit
loads silently; so every file is synced to disk, checksummed, and verified before it is loaded.
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c

from pipeline.distributed import all_agree
from pipeline.engine import Engine
from pipeline.errors import CheckpointError
from sharding.store import sync_folder

MANIFEST_NAME = "manifest.json"
STATE_NAME = "state.json"
WEIGHTS_NAME = "model.safetensors"
_PREFIX = "step-"
_TEMPORARY = ".tmp-"
_CHUNK = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Found:
    """A committed, verified checkpoint."""

    path: Path
    step: int
    world_size: int
    state: dict[str, Any]
    rejected: tuple[str, ...]
    """Newer checkpoints that were not good, and why."""


def save(folder: Path, step: int, engine: Engine, state: dict[str, Any], about: dict[str, Any], group: Any) -> Path:
    """Commit `step`; returns its folder. A collective: every rank calls it with the same `step`, `state`, `about`.

    `state` is what a resumed run needs on every rank, `about` describes the run in the manifest. Raises
    CheckpointError on all ranks when one of them could not write or the weights are not finite; the previous
    checkpoints stay as they are.
    """
    import torch.distributed as dist

    rank, world_size = dist.get_rank(), dist.get_world_size()
    temporary, final = folder / f"{_TEMPORARY}{step:08d}", folder / f"{_PREFIX}{step:08d}"
    saving = _Saving(temporary, step, group)

    def begin() -> None:
        for leftover in folder.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(leftover)
        temporary.mkdir(parents=True)

    def write_own() -> None:
        engine.save(temporary)
        _save_rank(temporary / f"rank{rank:05d}.pt")

    def write_shared() -> None:
        _save_weights(temporary / WEIGHTS_NAME, weights)
        (temporary / STATE_NAME).write_text(json.dumps(state))

    saving.together(begin, rank == 0)
    saving.together(write_own, True)
    weights = engine.weights()
    saving.together(write_shared, rank == 0)

    # Rank 0 lists for all: on a shared file system two ranks may see two listings for a while.
    listed: list[Any] = [_files_of(temporary) if rank == 0 else None]
    dist.broadcast_object_list(listed, src=0, group=group)
    files: list[str] = listed[0]
    sums: dict[str, tuple[int, int]] = {}
    saving.together(
        lambda: sums.update({name: _checksum(temporary / name, sync=True) for name in files[rank::world_size]}), True
    )
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, sums, group=group)
    all_sums = {name: value for part in gathered for name, value in part.items()}
    manifest = about | {"step": step, "world_size": world_size, "files": all_sums}
    saving.together(lambda: _commit(temporary, final, manifest), rank == 0)
    return final


class _Saving:
    """The parts of a save, after each of which all ranks know whether all could do it."""

    def __init__(self, temporary: Path, step: int, group: Any) -> None:
        self._temporary, self._step, self._group = temporary, step, group

    def together(self, part: Callable[[], None], is_mine: bool) -> None:
        """Do `part` where it is this rank's; CheckpointError everywhere when one failed. A collective."""
        from safetensors import SafetensorError

        problem: Exception | None = None
        if is_mine:
            try:
                part()
            except (OSError, RuntimeError, SafetensorError, CheckpointError) as error:
                problem = error  # torch reports a full disk as RuntimeError, safetensors as its own
        if all_agree(problem is None, self._group):
            return
        shutil.rmtree(self._temporary, ignore_errors=True)
        if isinstance(problem, CheckpointError):
            raise problem
        place = self._temporary.parent
        free = shutil.disk_usage(place if place.exists() else place.parent).free / 2**20
        raise CheckpointError(
            f"the checkpoint of step {self._step} could not be written to {place} ({free:.0f} MiB free there): "
            f"{_reason(problem)}; free space and run the same command again"
        ) from problem


def _reason(problem: Exception | None) -> str:
    if problem is None:
        return "another rank failed and says why"
    if "inline_container" in str(problem):  # torch's words for it
        return "a file did not take all bytes, as on a full disk or at the end of a quota"
    return str(problem)


def committed(folder: Path) -> list[Path]:
    """Committed checkpoints of a run's `checkpoints` folder, newest first."""
    return sorted((p for p in folder.glob(f"{_PREFIX}*") if (p / MANIFEST_NAME).is_file()), reverse=True)


def read_manifest(path: Path) -> dict[str, Any]:
    """A checkpoint's manifest; CheckpointError when it is not one."""
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST_NAME).read_text())
        return {
            "files": manifest["files"],
            "step": manifest["step"],
            "world_size": manifest["world_size"],
        } | manifest
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no checkpoint of this program: {MANIFEST_NAME}: {error}") from error


def defect(path: Path, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with a checkpoint's files, or None; every `parts`-th file from `part` is read."""
    try:
        files = sorted(read_manifest(path)["files"].items())
    except CheckpointError as error:
        return str(error)
    for name, expected in files[part::parts]:
        file = path / name
        if not file.is_file():
            return f"{file} is missing"
        try:
            size, crc = _checksum(file, sync=False)
        except OSError as error:
            return f"{file} cannot be read: {error.strerror}"
        if size != expected[0]:
            return f"{file} has {size} bytes instead of {expected[0]}"
        if crc != expected[1]:
            return f"{file} is damaged: its CRC-32C does not match"
    return None


def find(folder: Path, group: Any) -> Found | None:
    """The newest good checkpoint, on which all ranks agree; None in a fresh run. A collective.

    Each rank verifies a share of the files. Raises CheckpointError when there are checkpoints but none is good: a
    run must not restart from nothing unasked.
    """
    import torch.distributed as dist

    rank, world_size = dist.get_rank(), dist.get_world_size()
    names: list[Any] = [[p.name for p in committed(folder)] if rank == 0 else None]
    dist.broadcast_object_list(names, src=0, group=group)
    rejected: list[str] = []
    for name in names[0]:
        problems: list[Any] = [None] * world_size
        dist.all_gather_object(problems, defect(folder / name, rank, world_size), group=group)
        found = [problem for problem in problems if problem]
        if not found:
            manifest = read_manifest(folder / name)
            state = json.loads((folder / name / STATE_NAME).read_text())
            return Found(
                path=folder / name,
                step=manifest["step"],
                world_size=manifest["world_size"],
                state=state,
                rejected=tuple(rejected),
            )
        rejected.append(found[0])
    if rejected:
        raise CheckpointError(
            f"none of the {len(rejected)} checkpoints in {folder} is whole ({rejected[0]}); "
            "restore one, or choose another run.dir to start anew"
        )
    return None


def load(found: Found, engine: Engine) -> None:
    """Read `found` into the engine and this rank's random number generators. A collective."""
    import torch.distributed as dist

    engine.load(found.path)
    # With another number of ranks the generators' states have no owner; masks, flips and order do not need them.
    if found.world_size == dist.get_world_size():
        _load_rank(found.path / f"rank{dist.get_rank():05d}.pt")


def retain(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints; the manifest goes first, so that none looks whole."""
    for path in committed(folder)[keep:]:
        (path / MANIFEST_NAME).unlink()
        shutil.rmtree(path)


def _commit(temporary: Path, final: Path, manifest: dict[str, Any]) -> None:
    with (temporary / MANIFEST_NAME).open("w") as file:
        json.dump(manifest, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    for folder in {(temporary / name).parent for name in manifest["files"]} | {temporary}:
        sync_folder(folder)
    if final.exists():  # a damaged one that was rejected and is now replaced
        shutil.rmtree(final)
    temporary.rename(final)
    sync_folder(final.parent)


def _files_of(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def _checksum(path: Path, sync: bool) -> tuple[int, int]:
    size = crc = 0
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        while chunk := file.read(_CHUNK):
            crc = google_crc32c.extend(crc, chunk)
            size += len(chunk)
    return size, crc


def _save_weights(path: Path, weights: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    broken = [name for name, weight in weights.items() if not weight.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"the run has diverged: {len(broken)} of {len(weights)} weights are not finite, such as {broken[0]}; "
            "nothing was saved and the earlier checkpoints stay; lower optim.lr or set optim.clip=1"
        )
    # One key of metadata, no more: safetensors writes several in an order of chance, and equal weights equal files.
    save_file(weights, path, metadata={"format": "pt"})


def _save_rank(path: Path) -> None:
    import numpy as np
    import torch

    torch.save(
        {
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        },
        path,
    )


def _load_rank(path: Path) -> None:
    import numpy as np
    import torch

    # Our own file, verified by its checksum: numpy's and Python's states are no plain tensors.
    states = torch.load(path, weights_only=False)
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
