"""Writing a checkpoint: all ranks together, whole or not at all."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.checkpoint.files import (
    MANIFEST_NAME,
    STATE_NAME,
    STEP_PREFIX,
    TEMPORARY_PREFIX,
    WEIGHTS_NAME,
    checksum,
    committed,
    num_bytes,
    read_manifest,
)
from pipeline.distributed import all_agree
from pipeline.engine import Engine
from pipeline.errors import CheckpointError, StorageError
from sharding.store import sync_folder


def save(folder: Path, step: int, engine: Engine, state: dict[str, Any], about: dict[str, Any], group: Any) -> Path:
    """Commit `step`; returns its folder. A collective: every rank calls it with the same `step`, `state`, `about`.

    `state` is what a resumed run needs on every rank, `about` describes the run in the manifest. On all ranks, raises
    StorageError when one of them could not write, CheckpointError when the weights are not finite; the previous
    checkpoints stay as they are, and after a StorageError the run may go on.
    """
    import torch.distributed as dist

    rank, world_size = dist.get_rank(), dist.get_world_size()
    temporary, final = folder / f"{TEMPORARY_PREFIX}{step:08d}", folder / f"{STEP_PREFIX}{step:08d}"
    saving = _Saving(temporary, step, group)

    def begin() -> None:
        for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
            shutil.rmtree(leftover)
        temporary.mkdir(parents=True)
        _check_space(folder, step)

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
        lambda: sums.update({name: checksum(temporary / name, sync=True) for name in files[rank::world_size]}), True
    )
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, sums, group=group)
    all_sums = {name: value for part in gathered for name, value in part.items()}
    manifest = about | {"step": step, "world_size": world_size, "files": all_sums}
    saving.together(lambda: _commit(temporary, final, manifest), rank == 0)
    return final


class _Saving:
    """The parts of a save, after each of which all ranks know whether all could do it, and if not, of which kind."""

    def __init__(self, temporary: Path, step: int, group: Any) -> None:
        self._temporary, self._step, self._group = temporary, step, group

    def together(self, part: Callable[[], None], is_mine: bool) -> None:
        """Do `part` where it is this rank's; the same kind of error everywhere when one failed. A collective."""
        import torch.distributed as dist
        from safetensors import SafetensorError

        problem: Exception | None = None
        if is_mine:
            try:
                part()
            except (OSError, RuntimeError, SafetensorError, CheckpointError, StorageError) as error:
                problem = error  # torch reports a full disk as RuntimeError, safetensors as its own
        if all_agree(problem is None, self._group):
            return
        kind = StorageError if all_agree(not isinstance(problem, CheckpointError), self._group) else CheckpointError
        if dist.get_rank() == 0:
            shutil.rmtree(self._temporary, ignore_errors=True)
        if isinstance(problem, kind):
            raise problem
        place = self._temporary.parent
        free = shutil.disk_usage(place if place.exists() else place.parent).free / 2**20
        raise kind(
            f"the checkpoint of step {self._step} could not be written to {place} ({free:.0f} MiB free there): "
            f"{_reason(problem)}; free space"
        ) from problem


def _check_space(folder: Path, step: int) -> None:
    """StorageError when the newest checkpoint, which is about as large, would not fit beside the others."""
    newest = next(iter(committed(folder)), None)
    if newest is None:
        return
    try:
        needed = num_bytes(read_manifest(newest))
    except CheckpointError:
        return  # damaged; what is written then tells
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"the checkpoint of step {step} needs about {needed / 2**20:.0f} MiB, and {folder} has "
            f"{free / 2**20:.0f} MiB free; free space, such as with python -m pipeline.checkpoint prune {folder.parent}"
        )


def _reason(problem: Exception | None) -> str:
    if problem is None:
        return "another rank failed and says why"
    if "inline_container" in str(problem):  # torch's words for it
        return "a file did not take all bytes, as on a full disk or at the end of a quota"
    return str(problem)


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
