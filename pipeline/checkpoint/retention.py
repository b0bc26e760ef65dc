"""Which checkpoints stay, and how the others go."""

import shutil
from pathlib import Path

from pipeline.checkpoint.files import MANIFEST_NAME, PIN_NAME, STEP_PREFIX, TEMPORARY_PREFIX, committed, defect
from pipeline.errors import CheckpointError


def superfluous(folder: Path, keep: int, keep_every: int) -> list[Path]:
    """Committed checkpoints that are none of the newest `keep`, no multiple of `keep_every` steps, and not pinned."""
    return [path for path in committed(folder)[keep:] if not (is_pinned(path) or is_milestone(path, keep_every))]


def retain(folder: Path, keep: int, keep_every: int = 0) -> None:
    """Delete what is `superfluous`."""
    for path in superfluous(folder, keep, keep_every):
        delete(path)


def prune(folder: Path, keep: int, keep_every: int, is_rehearsal: bool) -> list[Path]:
    """Delete what is `superfluous` and what killed saves left; returns it. With `is_rehearsal`, deletes nothing.

    Raises CheckpointError, before anything is deleted, when a checkpoint would go and none that stays is whole.
    """
    leaving = superfluous(folder, keep, keep_every)
    staying = [path for path in committed(folder) if path not in leaving]
    if leaving and all((problem := defect(path)) is not None for path in staying):
        raise CheckpointError(
            f"none of the {len(staying)} checkpoints of {folder} that would stay is whole ({problem}), so nothing is "
            "deleted; keep more with --keep"
        )
    remains = sorted(path for prefix in (TEMPORARY_PREFIX, ".universal-") for path in folder.glob(f"{prefix}*"))
    if not is_rehearsal:
        for path in leaving:
            delete(path)
        for path in remains:
            shutil.rmtree(path)
    return leaving + remains


def delete(path: Path) -> None:
    """Delete a checkpoint; the manifest goes first, so that what a kill leaves of it does not look whole."""
    (path / MANIFEST_NAME).unlink()
    shutil.rmtree(path)


def is_pinned(path: Path) -> bool:
    """Whether a checkpoint was pinned, so that nothing deletes it."""
    return (path / PIN_NAME).exists()


def pin(path: Path, is_pinned: bool) -> None:
    """Pin a checkpoint, or let it go again."""
    if is_pinned:
        (path / PIN_NAME).touch()
    else:
        (path / PIN_NAME).unlink(missing_ok=True)


def is_milestone(path: Path, keep_every: int) -> bool:
    """Whether a checkpoint's step is a multiple of `keep_every`; 0 has none."""
    return keep_every > 0 and int(path.name.removeprefix(STEP_PREFIX)) % keep_every == 0
