"""Which checkpoints stay, and how the others go."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipeline.checkpoint.files import STEP_PREFIX
from pipeline.checkpoint.shelf import Shelf
from pipeline.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What stays: pinned checkpoints always, and these."""

    keep: int
    """The newest."""
    keep_every: int = 0
    """Those whose step is a multiple of this; 0: none."""
    keep_best: int = 0
    """Those of the highest score; 0: none."""
    scores: Callable[[], Mapping[int, float]] = dict
    """By step, asked when checkpoints are chosen; one without a score is never among the best."""

    def best(self, names: list[str]) -> list[str]:
        """Of these checkpoints, the `keep_best` of the highest score, best first; of equal ones the newer."""
        if not self.keep_best:
            return []
        scores = self.scores()
        scored = [name for name in names if step_of(name) in scores]
        return sorted(scored, key=lambda name: (scores[step_of(name)], step_of(name)), reverse=True)[: self.keep_best]


def superfluous(shelf: Shelf, wanted: Retention) -> list[str]:
    """Checkpoints that are none of the newest, no milestone, none of the best, and not pinned."""
    names = shelf.names()
    best = wanted.best(names)
    return [
        name
        for name in names[wanted.keep :]
        if not (is_milestone(name, wanted.keep_every) or name in best or shelf.is_pinned(name))
    ]


def retain(shelf: Shelf, wanted: Retention) -> None:
    """Delete what is `superfluous`."""
    for name in superfluous(shelf, wanted):
        shelf.delete(name)


def prune(shelf: Shelf, wanted: Retention, is_rehearsal: bool) -> tuple[list[str], list[str]]:
    """Delete what is `superfluous`, and what killed saves left; returns both. With `is_rehearsal`, deletes nothing.

    Raises CheckpointError, before anything is deleted, when a checkpoint would go and none that stays is whole.
    """
    leaving = superfluous(shelf, wanted)
    staying = [name for name in shelf.names() if name not in leaving]
    if leaving and all((problem := shelf.defect(name)) is not None for name in staying):
        raise CheckpointError(
            f"none of the {len(staying)} checkpoints of {shelf.url} that would stay is whole ({problem}), so nothing "
            "is deleted; keep more with --keep"
        )
    remains = shelf.remains()
    if not is_rehearsal:
        for name in leaving:
            shelf.delete(name)
        shelf.remove_remains()
    return leaving, remains


def is_milestone(name: str, keep_every: int) -> bool:
    """Whether a checkpoint's step is a multiple of `keep_every`; 0 has none."""
    return keep_every > 0 and step_of(name) % keep_every == 0


def step_of(name: str) -> int:
    """The step of a checkpoint's name."""
    return int(name.removeprefix(STEP_PREFIX))
