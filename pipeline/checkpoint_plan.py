"""Disk and time that the checkpoints of a run will take, said before it starts."""

import math
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint.opening import open_shelf
from pipeline.checkpoint.shelf import FolderShelf
from pipeline.errors import ConfigError
from pipeline.settings import CheckpointSettings, Settings


@dataclass(frozen=True, kw_only=True)
class CheckpointPlan:
    """Disk and time that checkpoints take."""

    each_bytes: int
    saves: int
    kept: int
    """When the run is done."""
    needed_bytes: int
    """At the most: those kept, and one being written."""
    place: str
    """Folder or URL."""
    present_bytes: int
    """Of them, there already; not looked for in a bucket."""
    local: str
    """Folder on whose disk they are written: the place itself, or that from which they are uploaded."""
    local_bytes: int
    """Needed there."""
    free_bytes: int
    """In its file system; quotas are not seen."""
    write_gbps: float
    """Assumed: GB/s of all ranks together."""
    save_s: float
    time_share: float | None
    """Time of a save by the time between two; None without a GPU."""


def plan_checkpoints(settings: Settings, each_bytes: int, step_s: float | None, write_gbps: float) -> CheckpointPlan:
    """The plan for checkpoints of `each_bytes`; `step_s` is a step's time, None when it is not known.

    ConfigError when they will not fit.
    """
    steps, wanted = settings.train.steps, settings.checkpoint
    saves = -(-steps // wanted.every)
    most = _num_kept(saves - 1, wanted) + 1  # what is superfluous goes when the new one is committed
    save_s = each_bytes / (write_gbps * 1e9)
    shelf = open_shelf(Path(settings.run.dir).absolute(), wanted)
    is_folder = isinstance(shelf, FolderShelf)
    local = Path(shelf.url if is_folder else wanted.staging or tempfile.gettempdir()).absolute()
    existing = next(place for place in (local, *local.parents) if place.exists())
    plan = CheckpointPlan(
        each_bytes=each_bytes,
        saves=saves,
        kept=_num_kept(saves, wanted),
        needed_bytes=most * each_bytes,
        place=shelf.url,
        present_bytes=_present_bytes(local) if is_folder else 0,
        local=str(local),
        local_bytes=most * each_bytes if is_folder else each_bytes,
        free_bytes=shutil.disk_usage(existing).free,
        write_gbps=write_gbps,
        save_s=save_s,
        time_share=None if step_s is None else save_s / (min(wanted.every, steps) * step_s),
    )
    if plan.local_bytes - plan.present_bytes > plan.free_bytes:
        milestones = ", write a larger checkpoint.keep_every" if wanted.keep_every else ""
        fewer = ", write checkpoint.keep=2" if wanted.keep > 2 else ""
        fewer += ", write checkpoint.keep_best=0" if wanted.keep_best else ""
        if is_folder:
            key = f"checkpoint.url={wanted.url}" if wanted.url else f"run.dir={settings.run.dir}"
            raise ConfigError(
                f"the checkpoints of this run need {plan.needed_bytes / 1e9:.1f} GB ({most} of {each_bytes / 1e9:.2f} "
                f"GB, one being written), {plan.present_bytes / 1e9:.1f} GB of them are there, and the file system of "
                f"{key} has {plan.free_bytes / 1e9:.1f} GB free; free space{fewer}{milestones}, or choose another place"
            )
        raise ConfigError(
            f"a checkpoint of {each_bytes / 1e9:.2f} GB is written to checkpoint.staging={local} before it is "
            f"uploaded, and {plan.free_bytes / 1e9:.1f} GB are free there; free space, or choose another folder"
        )
    return plan


def _num_kept(saves: int, wanted: CheckpointSettings) -> int:
    """Checkpoints that stay at most after so many saves: the newest, and of the older the milestones and the best."""
    older = max(saves - wanted.keep, 0)  # never the last save, whose step need not be a multiple of `every`
    between = math.lcm(wanted.every, wanted.keep_every) if wanted.keep_every else 0
    milestones = older * wanted.every // between if between else 0
    return saves - older + min(milestones + wanted.keep_best, older)


def _present_bytes(folder: Path) -> int:
    """Bytes of a run's checkpoints, those apart that are pinned and stay besides."""
    from pipeline.checkpoint.files import PIN_NAME

    places = [place for place in folder.glob("*") if not (place / PIN_NAME).exists()]
    return sum(file.stat().st_size for place in places for file in place.rglob("*") if file.is_file())
