"""Where a run's checkpoints lie: `run.dir/checkpoints`, another folder, or an object store."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import google_crc32c

from pipeline.checkpoint.bucket import BucketPlace, BucketShelf
from pipeline.checkpoint.fence import Fence
from pipeline.checkpoint.place import FolderPlace, Place
from pipeline.checkpoint.shelf import FolderShelf, Shelf
from pipeline.settings import CheckpointSettings
from sharding.store import Store

FOLDER_NAME: Final = "checkpoints"
CONFIG_NAME: Final = "config.yaml"


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The checkpoints of a run, for one of its ranks."""

    shelf: Shelf
    place: Place
    fence: Fence
    fetched: Path
    """Folder of this machine into which a checkpoint is fetched; nothing is there for one that lies in a folder."""
    is_shared: bool
    """Whether all ranks see the same files."""
    elsewhere: Store | None
    """Where they lie when that is not the run's folder."""

    def write_config(self, text: str) -> None:
        """Leave the run's settings beside checkpoints that lie elsewhere, so that they can be used without the run."""
        if self.elsewhere is not None:
            self.elsewhere.write(CONFIG_NAME, text.encode())

    def forget_fetched(self) -> None:
        """Delete what was fetched, once all ranks of this machine have read it; on one of them."""
        if not self.is_shared:
            shutil.rmtree(self.fetched, ignore_errors=True)


def open_shelf(run_dir: Path, settings: CheckpointSettings) -> Shelf:
    """What is there to read."""
    if not settings.url:
        return FolderShelf(run_dir / FOLDER_NAME)
    store = Store(settings.url)
    return FolderShelf(Path(store.root)) if store.is_local else BucketShelf(store)


def open_checkpoints(
    run_dir: Path, settings: CheckpointSettings, attempt: str, owner: str, first_of_node: int, is_nodes_first: bool
) -> Checkpoints:
    """What is there to read and to write, for the attempt of which all ranks give the same name.

    Args:
        run_dir: the run's folder.
        settings: where its checkpoints lie.
        attempt: tells it from every other.
        owner: who that is, in words.
        first_of_node: lowest rank on this rank's machine.
        is_nodes_first: whether this is it; it deletes what earlier attempts left on this machine.
    """
    token = f"{google_crc32c.value(attempt.encode()):08x}"
    shelf = open_shelf(run_dir, settings)
    elsewhere = Store(settings.url) if settings.url else None
    # Beside `checkpoints`, not in it: a run that ends before its first save leaves no such folder.
    fence = Fence(store=elsewhere or Store(str(run_dir)), token=token, owner=owner)
    base = Path(settings.staging or tempfile.gettempdir())
    own = base / f"fusmae-{os.getuid()}-{google_crc32c.value(settings.url.encode()):08x}-{first_of_node}"
    place: Place
    if isinstance(shelf, BucketShelf):
        if is_nodes_first:
            shutil.rmtree(own, ignore_errors=True)
        place = BucketPlace(shelf.store, fence, own)
    else:
        place = FolderPlace(Path(shelf.url), fence)
    return Checkpoints(
        shelf=shelf,
        place=place,
        fence=fence,
        fetched=own / "fetched",
        is_shared=isinstance(shelf, FolderShelf),
        elsewhere=elsewhere,
    )
