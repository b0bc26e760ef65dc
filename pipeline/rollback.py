"""Going back to a checkpoint from before the trouble and on from there without the samples that came since.

A run decides at a log line, on all ranks together. What it decides is written into `rollbacks.json` of the run folder
before anything else, and each checkpoint names the skips that led to it: whatever kills the run afterwards, the same
command goes on with the same samples. Steps keep their numbers, so that rates and lengths stay those of the settings.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline import checkpoint
from pipeline.checkpoint.files import STATE_NAME, STEP_PREFIX
from pipeline.distributed import Ranks, all_agree
from pipeline.errors import CheckpointError, DataError
from pipeline.hang import Phase
from pipeline.loss_watch import Finding, LossWatch
from pipeline.metrics import write_whole

if TYPE_CHECKING:
    from pipeline.session import Session

RECORD_NAME: Final = "rollbacks.json"
_SHOWN_KEYS: Final = 8


@dataclass(frozen=True, kw_only=True)
class Skip:
    """Samples that are left out behind a step."""

    step: int
    begin: int
    """Position of the stream behind that step (`samples_seen`)."""
    end: int
    """Where the next step begins instead."""


class Rollbacks:
    """What a run has decided so far, the same on every rank, and whether it may go back once more."""

    def __init__(
        self, run_dir: Path, checkpoints: checkpoint.Checkpoints, limit: int, ranks: Ranks, group: Any
    ) -> None:
        """Read the record, and take away the checkpoints that were undone. A collective."""
        import torch.distributed as dist

        self._path, self._checkpoints = run_dir / RECORD_NAME, checkpoints
        self.limit, self._ranks, self._group = limit, ranks, group
        told: list[Any] = [_read(self._path) if ranks.is_first else None]
        dist.broadcast_object_list(told, src=0, group=group)
        self.done: int = told[0]["done"]
        """Rollbacks of the run so far."""
        self.skips = [Skip(**skip) for skip in told[0]["skips"]]
        self._clean_step = 0
        self._keys: list[str] = []
        self._take_undone_away()

    def before(self, step: int) -> list[dict[str, int]]:
        """The skips that led to `step`, as a checkpoint of it names them."""
        return [asdict(skip) for skip in self.skips if skip.step < step]

    def batches(self, stream: Any, step: int) -> Iterator[Any]:
        """The stream's batches for the steps behind `step`, without what is left out."""
        iterator = iter(stream)
        while True:
            for skip in self.skips:
                if skip.step == step:
                    stream.load_state_dict(stream.state_dict() | {"samples_seen": skip.end})
                    iterator = iter(stream)
            yield next(iterator)
            step += 1

    def begin(self, step: int) -> None:
        """The run goes on from behind `step`, where nothing is known to be wrong."""
        self._clean_step, self._keys = step, []

    def note(self, step: int, findings: Sequence[Finding], skipped_lately: int) -> None:
        """What was found at the log line of `step`."""
        if not findings and not skipped_lately:
            self.begin(step)
        self._keys += [key for finding in findings for key in finding.keys]

    def go_back(self, session: "Session", step: int, problem: DataError | None) -> dict[str, Any] | None:
        """Load the newest good checkpoint that is not behind the last log line without trouble; its state.

        `problem` is what would end the run otherwise, None for a loss that leapt. None when it goes on as it is: it may
        not go back, or has nowhere to go, and nothing would end it. A collective.
        """
        if not self.limit:
            if problem is not None:
                raise problem
            return None
        if self.done >= self.limit:
            raise DataError(
                f"trouble again at step {step} after {self.done} rollbacks (guard.rollback={self.limit})"
                f"{self._named()}; look at the samples that events-rank*.jsonl name, or lower optim.lr"
            ) from problem
        session.watchdog.enter(Phase.CHECKPOINT, step)
        there = self._checkpoints
        found = checkpoint.find(there.shelf, self._group, there.fetched, self._ranks.local_rank, self._clean_step)
        if found is None:
            session.progress.say(f"warning: no checkpoint up to step {self._clean_step} to go back to")
            if problem is not None:
                raise problem
            return None
        skip = Skip(step=found.step, begin=int(found.state["stream"]["samples_seen"]), end=session.stream.samples_seen)
        self.skips = [other for other in self.skips if other.step < found.step] + [skip]
        self.done += 1
        if self._ranks.is_first:
            record = {"done": self.done, "skips": [asdict(skip) for skip in self.skips]}
            write_whole(self._path, json.dumps(record) + "\n")
        all_agree(True, self._group)
        num_batches = (skip.end - skip.begin) // session.settings.train.global_batch
        told = {"from_step": step, "to_step": found.step, "skipped_batches": num_batches, "keys": self._keys}
        session.log.event("rollback", step, **told)
        session.progress.say(
            f"rolled back from step {step} to step {found.step}, rollback {self.done} of {self.limit}; the "
            f"{num_batches} global batches since are left out"
        )
        self._take_undone_away()
        self._load(session, found)
        return found.state

    def _load(self, session: "Session", found: checkpoint.Found) -> None:
        if session.settings.engine.name == "deepspeed" and found.world_size != self._ranks.world_size:
            raise CheckpointError(
                f"{found.title} was saved by {found.world_size} ranks and is read at the start of an attempt only; run "
                "the same command again"
            )
        checkpoint.load(found, session.engine)
        all_agree(True, self._group)
        if self._ranks.local_rank == 0:
            self._checkpoints.forget_fetched()
        session.stream.load_state_dict(found.state["stream"])
        session.log.go_back(found.step)
        session.progress.go_back(session.engine.skipped_steps)
        session.losses = LossWatch(session.settings.guard, self._ranks.world_size, self._group)
        session.watchdog.begin_anew()
        self.begin(found.step)

    def _named(self) -> str:
        keys = list(dict.fromkeys(self._keys))
        more = f" and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
        return f", of rank {self._ranks.rank} with samples {', '.join(keys[:_SHOWN_KEYS])}{more}" if keys else ""

    def _take_undone_away(self) -> None:
        """Delete checkpoints that other samples led to than those that count; a pinned one is only renamed."""
        if self._ranks.is_first and self.skips:
            shelf = self._checkpoints.shelf
            for name in shelf.names():
                skips = _skips_of(shelf, name)
                if skips is None or skips == self.before(int(name.removeprefix(STEP_PREFIX))):
                    continue  # what cannot be read is passed over aloud by `checkpoint.find`
                if shelf.is_pinned(name):
                    shelf.set_aside(name, f"undone-{self.done}-{name}")
                else:
                    shelf.delete(name)
        all_agree(True, self._group)


def _skips_of(shelf: checkpoint.Shelf, name: str) -> list[dict[str, int]] | None:
    """Those that a checkpoint names, None when it cannot be read."""
    try:
        skipped: list[dict[str, int]] = json.loads(shelf.read(name, STATE_NAME)).get("skipped", [])
        return skipped
    except (OSError, ValueError, DataError, CheckpointError):
        return None


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"done": 0, "skips": []}
    try:
        record = json.loads(path.read_text())
        return {"done": int(record["done"]), "skips": [asdict(Skip(**skip)) for skip in record["skips"]]}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore it: it says which samples are left out") from error
