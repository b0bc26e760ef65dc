"""Finding the newest good checkpoint, on which all ranks agree, and reading it."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.checkpoint.files import STATE_NAME, STEP_PREFIX, read_manifest
from pipeline.checkpoint.shelf import Shelf
from pipeline.engine import Engine
from pipeline.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Found:
    """A committed, verified checkpoint."""

    path: Path
    """Its folder on this machine."""
    title: str
    """Where it lies, as a message shows it."""
    step: int
    world_size: int
    state: dict[str, Any]
    rejected: tuple[str, ...]
    """Why newer checkpoints were not good."""
    rejected_names: tuple[str, ...]
    """Their names."""


def find(shelf: Shelf, group: Any, into: Path, local_rank: int = 0, last_step: int | None = None) -> Found | None:
    """The newest good checkpoint, on which all ranks agree; None in a fresh run. A collective.

    With `last_step`, those behind that step do not count. Each rank verifies a share of the files. What must be fetched
    from a store is then in `into`, the same folder for the ranks of a machine. Raises CheckpointError when there are
    checkpoints but none is good: a run must not restart from nothing unasked.
    """
    import torch.distributed as dist

    rank, world_size = dist.get_rank(), dist.get_world_size()
    names: list[Any] = [None]
    if rank == 0:
        last = "~" if last_step is None else f"{STEP_PREFIX}{last_step:08d}"
        names = [[name for name in shelf.names() if name <= last]]
    dist.broadcast_object_list(names, src=0, group=group)
    rejected: list[str] = []
    for name in names[0]:
        problems: list[Any] = [None] * world_size
        path, own = shelf.obtain(name, into, rank, world_size, local_rank)
        dist.all_gather_object(problems, own, group=group)
        found = [problem for problem in problems if problem]
        if not found:
            manifest = read_manifest(path)
            state = json.loads((path / STATE_NAME).read_text())
            return Found(
                path=path,
                title=shelf.title(name),
                step=manifest["step"],
                world_size=manifest["world_size"],
                state=state,
                rejected=tuple(rejected),
                rejected_names=tuple(names[0][: len(rejected)]),
            )
        rejected.append(found[0])
    if rejected:
        raise CheckpointError(
            f"none of the {len(rejected)} checkpoints in {shelf.url} is whole ({rejected[0]}); "
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
