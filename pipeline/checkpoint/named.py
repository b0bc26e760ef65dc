"""The checkpoints that a person names: a run or one checkpoint, in a folder or in an object store."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.checkpoint.bucket import BucketShelf
from pipeline.checkpoint.files import MANIFEST_NAME, STEP_PREFIX
from pipeline.checkpoint.opening import CONFIG_NAME, FOLDER_NAME, open_shelf
from pipeline.checkpoint.shelf import FolderShelf, Shelf
from pipeline.config import load_settings, settings_of_text
from pipeline.errors import CheckpointError, DataError
from pipeline.settings import Settings
from sharding.store import Store

_RUN_FILES: Final = (FOLDER_NAME, CONFIG_NAME)


@dataclass(frozen=True, kw_only=True)
class Named:
    """What a person named."""

    shelf: Shelf
    name: str | None
    """The checkpoint; None: a run, so all of them."""
    run_dir: Path
    """The run's folder; for one in an object store the current folder, where results are then written."""
    config: str
    """Path or URL of the run's settings."""

    def names(self) -> list[str]:
        """The checkpoint, or all of the run, newest first; CheckpointError when there is none."""
        if self.name is not None:
            return [self.name]
        found = self.shelf.names()
        if not found:
            raise CheckpointError(f"{self.shelf.url} holds no checkpoint; give the run.dir of a run that has saved")
        return found

    def settings(self) -> Settings:
        """The run's settings; CheckpointError when they are not there."""
        if "://" not in self.config:
            return load_settings(Path(self.config), [])
        url, _, name = self.config.rpartition("/")
        try:
            return settings_of_text(Store(url).read(name).decode(), self.config, [])
        except DataError as error:
            raise CheckpointError(f"{error}, which says of which model its checkpoints are") from error


def named(given: str) -> Named:
    """The run or checkpoint at a path or URL; CheckpointError when it is neither."""
    if "://" in given:
        return _in_store(Store(given))
    path = Path(given)
    if (path / MANIFEST_NAME).is_file() and path.name.startswith(STEP_PREFIX):
        folder = path.parent
        run_dir = folder.parent if folder.name == FOLDER_NAME else folder
        return Named(shelf=FolderShelf(folder), name=path.name, run_dir=run_dir, config=str(run_dir / CONFIG_NAME))
    if not path.is_dir():
        raise CheckpointError(
            f"there is no folder {path}; give the run.dir of python -m pipeline.pretrain, or one of its "
            "checkpoints/step-*"
        )
    if not any((path / file).exists() for file in _RUN_FILES):
        raise CheckpointError(
            f"{path} is neither a run folder nor a checkpoint of one; give one of its checkpoints/step-*"
        )
    config = path / CONFIG_NAME
    shelf = (
        open_shelf(path, load_settings(config, []).checkpoint) if config.exists() else FolderShelf(path / FOLDER_NAME)
    )
    return Named(shelf=shelf, name=None, run_dir=path, config=str(config))


def _in_store(store: Store) -> Named:
    if store.is_local:
        return named(store.root)
    url, _, last = store.url.rpartition("/")
    is_checkpoint = last.startswith(STEP_PREFIX)
    shelf = BucketShelf(Store(url) if is_checkpoint else store)
    if is_checkpoint and last not in shelf.names():
        raise CheckpointError(f"there is no checkpoint {store.url}; {url} has {', '.join(shelf.names()) or 'none'}")
    return Named(shelf=shelf, name=last if is_checkpoint else None, run_dir=Path(), config=f"{shelf.url}/{CONFIG_NAME}")
