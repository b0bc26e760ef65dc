"""Which checkpoints stay, and how the others go."""

from pipeline.checkpoint.files import STEP_PREFIX
from pipeline.checkpoint.shelf import Shelf
from pipeline.errors import CheckpointError


def superfluous(shelf: Shelf, keep: int, keep_every: int) -> list[str]:
    """Checkpoints that are none of the newest `keep`, no multiple of `keep_every` steps, and not pinned."""
    return [n for n in shelf.names()[keep:] if not (is_milestone(n, keep_every) or shelf.is_pinned(n))]


def retain(shelf: Shelf, keep: int, keep_every: int = 0) -> None:
    """Delete what is `superfluous`."""
    for name in superfluous(shelf, keep, keep_every):
        shelf.delete(name)


def prune(shelf: Shelf, keep: int, keep_every: int, is_rehearsal: bool) -> tuple[list[str], list[str]]:
    """Delete what is `superfluous`, and what killed saves left; returns both. With `is_rehearsal`, deletes nothing.

    Raises CheckpointError, before anything is deleted, when a checkpoint would go and none that stays is whole.
    """
    leaving = superfluous(shelf, keep, keep_every)
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
    return keep_every > 0 and int(name.removeprefix(STEP_PREFIX)) % keep_every == 0
