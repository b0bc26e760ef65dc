"""Saving while training goes on: all ranks copy their state at once, and write it together in the background.

The copy holds up the training, the writing does not. What the ranks tell each other while they write goes over a
process group of its own, in one thread of each rank, so that it never meets a collective of the training.
"""

import json
import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.checkpoint.files import STATE_NAME, WEIGHTS_NAME, checksum
from pipeline.checkpoint.place import Place
from pipeline.checkpoint.retention import Retention
from pipeline.distributed import all_agree
from pipeline.engine import Engine
from pipeline.errors import CheckpointError, StorageError
from pipeline.fp32_weights import WeightShare, put_together
from pipeline.host_copy import HostCopies


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint that is committed."""

    step: int
    name: str
    """Where it lies."""
    seconds: float
    """From the beginning of the save to its commit."""
    stall_s: float
    """Time in which this rank's training stood still for it."""
    remark: str
    """What went wrong with the deletion of older ones; empty: nothing."""


@dataclass(frozen=True, kw_only=True)
class _Snapshot:
    """What this rank writes."""

    step: int
    files: dict[str, Any]
    """By path, what `torch.save` writes."""
    weights: WeightShare
    state: dict[str, Any]
    about: dict[str, Any]


class Saver:
    """The saves of a run, one at a time.

    `group` is a CPU-side process group that nobody else uses. `retention` says what stays after a save. With
    `is_background` a save is written while training goes on, for which the host holds a copy of this rank's state.
    """

    def __init__(self, place: Place, group: Any, retention: Retention, is_background: bool = True) -> None:
        self._place = place
        self._group = group
        self._retention = retention
        self._copies = HostCopies() if is_background else None
        self._thread: threading.Thread | None = None
        self._began = self._stall_s = 0.0
        self._saved: Saved | None = None
        self._error: Exception | None = None

    def begin(self, step: int, engine: Engine, state: dict[str, Any], about: dict[str, Any]) -> None:
        """Copy the state of all ranks and start to write it; a collective, after `finish` of the save before.

        `state` is what a resumed run needs on every rank, `about` describes the run in the manifest.
        """
        assert self._thread is None, "the save before is not finished"
        self._began = time.perf_counter()
        if self._copies is not None:
            self._copies.begin()
        files = engine.snapshot(self._copies or (lambda held: held))
        weights = engine.weights(self._copies or (lambda held: held.to("cpu", copy=True)))
        files[_rank_name()] = _random_states()
        if self._copies is not None:
            self._copies.wait()
        snapshot = _Snapshot(step=step, files=files, weights=weights, state=state, about=about)
        self._saved = self._error = None
        # A daemon: a process that is to end does not wait for it longer than `close` does.
        self._thread = threading.Thread(target=self._write, args=(snapshot,), name="checkpoint", daemon=True)
        self._thread.start()
        self._stall_s = time.perf_counter() - self._began

    def finish(self) -> Saved | None:
        """Wait for the save that was begun; None when there is none.

        On all ranks, raises StorageError when one of them could not write, CheckpointError when the weights are not
        finite or another attempt has taken over; the earlier checkpoints stay as they are, and after a StorageError
        the run may go on.
        """
        if self._thread is None:
            return None
        began = time.perf_counter()
        self._thread.join()
        self._thread = None
        self._stall_s += time.perf_counter() - began
        if self._error is not None:
            raise self._error
        return self._told()

    def poll(self) -> Saved | None:
        """The save that was begun, once it is committed; no wait. `finish` then has nothing to tell, or its error."""
        if self._thread is None or self._thread.is_alive() or self._error is not None:
            return None
        self._thread = None
        return self._told()

    @property
    def stall_s(self) -> float:
        """Time in which this rank's training has stood still for the last save."""
        return self._stall_s

    def close(self, timeout_s: float = 60.0) -> None:
        """Give a save that is under way its time, whatever ended the run."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _told(self) -> Saved | None:
        saved, self._saved = self._saved, None
        if saved is None:
            return None
        return replace(saved, seconds=max(saved.seconds, self._stall_s), stall_s=self._stall_s)

    def _write(self, snapshot: _Snapshot) -> None:
        try:
            name, remark = _write_together(self._place, snapshot, self._group, self._retention)
            seconds = time.perf_counter() - self._began
            self._saved = Saved(step=snapshot.step, name=name, seconds=seconds, stall_s=0.0, remark=remark)
        except Exception as error:  # told by `finish`, on the thread that trains
            self._error = error


def _write_together(place: Place, snapshot: _Snapshot, group: Any, retention: Retention) -> tuple[str, str]:
    """Write, publish and commit; returns the checkpoint's name and a remark on every rank. A collective."""
    import torch.distributed as dist

    rank, world_size = dist.get_rank(), dist.get_world_size()
    step, folder = snapshot.step, place.folder(snapshot.step)
    saving = _Saving(place, step, group)
    sums: dict[str, tuple[int, int]] = {}

    def write_own() -> None:
        for name, content in _writers(snapshot, weights, rank).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            content(folder / name)
            sums[name] = checksum(folder / name, sync=True)
        place.publish(step, list(sums))

    saving.together(lambda: place.begin(step), rank == 0)
    weights = put_together(snapshot.weights, group)
    saving.together(write_own, True)
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, sums, group=group)
    all_sums = {name: value for part in gathered for name, value in part.items()}
    manifest = snapshot.about | {"step": step, "world_size": world_size, "files": all_sums}
    told = ["", ""]

    def commit() -> None:
        told[0] = place.commit(step, manifest)

    saving.together(commit, rank == 0)
    if rank == 0:
        try:
            place.retain(retention)
        except (OSError, StorageError) as error:
            told[1] = f"older checkpoints could not be deleted: {error}"
    dist.broadcast_object_list(told, src=0, group=group)
    place.settle(step)
    return told[0], told[1]


class _Saving:
    """The parts of a save, after each of which all ranks know whether all could do it, and if not, of which kind."""

    def __init__(self, place: Place, step: int, group: Any) -> None:
        self._place, self._step, self._group = place, step, group

    def together(self, part: Callable[[], None], is_mine: bool) -> None:
        """Do `part` where it is this rank's; the same kind of error everywhere when one failed. A collective."""
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
        self._place.abandon(self._step)
        if isinstance(problem, kind):
            raise problem
        free = self._place.free_bytes()
        raise kind(
            f"the checkpoint of step {self._step} could not be written to {self._place.name} ({free / 2**20:.0f} MiB "
            f"free there): {_reason(problem)}; free space"
        ) from problem


def _reason(problem: Exception | None) -> str:
    if problem is None:
        return "another rank failed and says why"
    if "inline_container" in str(problem):  # torch's words for it
        return "a file did not take all bytes, as on a full disk or at the end of a quota"
    return str(problem)


def _writers(snapshot: _Snapshot, weights: dict[str, Any], rank: int) -> dict[str, Callable[[Path], None]]:
    """How each file of this rank is written."""

    def written(content: Any) -> Callable[[Path], None]:
        return lambda path: _save_content(path, content)

    writers = {name: written(content) for name, content in snapshot.files.items()}
    if rank == 0:
        writers[WEIGHTS_NAME] = lambda path: _save_weights(path, weights)
        writers[STATE_NAME] = lambda path: _write_text(path, json.dumps(snapshot.state))
    return writers


def _save_content(path: Path, content: Any) -> None:
    """`torch.save` without its CRC-32 of each record, which takes four times as long as the rest.

    The manifest has a CRC-32C of the whole file; `torch.load` reads no other.
    """
    import torch

    usual = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(content, path)
    finally:
        torch.serialization.set_crc32_options(usual)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)


def _save_weights(path: Path, weights: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    # One pass, where isfinite writes a mask and reads it: a NaN is the smallest and the largest.
    broken = [name for name, weight in weights.items() if not all(math.isfinite(end) for end in weight.aminmax())]
    if broken:
        raise CheckpointError(
            f"the run has diverged: {len(broken)} of {len(weights)} weights are not finite, such as {broken[0]}; "
            "nothing was saved and the earlier checkpoints stay; lower optim.lr or set optim.clip=1"
        )
    # One key of metadata, no more: safetensors writes several in an order of chance, and equal weights equal files.
    save_file(weights, path, metadata={"format": "pt"})


def _rank_name() -> str:
    import torch.distributed as dist

    return f"rank{dist.get_rank():05d}.pt"


def _random_states() -> dict[str, Any]:
    import numpy as np
    import torch

    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }
