"""Resuming with another number of ranks: DeepSpeed's checkpoint, converted to its universal form.

Which form will be loaded is fixed when DeepSpeed's engine is built, so the checkpoint is chosen first.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from pipeline.checkpoint import Found
from pipeline.errors import CheckpointError

_TAG = "engine"


def convert(found: Found, out: Path | None = None) -> Path:
    """Convert `found` beside itself, or into `out`, and return the folder; on one rank, while the others wait.

    Raises CheckpointError with the converter's last words.
    """
    target = out or converted(found).path
    shutil.rmtree(target, ignore_errors=True)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"),
            *("--input_folder", str(found.path / _TAG), "--output_folder", str(target / _TAG)),
        ],
        # The child is no rank of this job.
        env={k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        shutil.rmtree(target, ignore_errors=True)
        words = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckpointError(
            f"{found.title}, saved by {found.world_size} ranks, could not be converted for another number: {words}"
        )
    return target


def converted(found: Found) -> Found:
    """`found` as it is loaded after `convert`."""
    return replace(found, path=found.path.parent / f".universal-{found.step:08d}")


def forget(found: Found) -> None:
    """Delete what `convert` made."""
    shutil.rmtree(found.path.parent / f".universal-{found.step:08d}", ignore_errors=True)
