"""The command line of `python -m pipeline.restore`."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.config import to_dict
from pipeline.errors import ConfigError
from pipeline.metrics import write_whole
from pipeline.restore.settings import GROUPS, resolve
from pipeline.restore.tables import cloud_table, speckle_table

_TABLES: dict[str, Callable[[dict[str, Any]], list[str]]] = {"clouds": cloud_table, "speckle": speckle_table}
_EPILOG = """\
examples:
  python -m pipeline.restore clouds runs/xae --split test clouds.cover=0.3
  python -m pipeline.restore speckle runs/xae data.url=/data/other speckle.looks=1 --json

Leaves restore-clouds.json and .png (or restore-speckle) in RUN/evaluation, or in --out."""


def restore(
    name: str, run_dir_or_checkpoint: str, overrides: list[str], split: str = "", out: Path | None = None
) -> tuple[dict[str, Any], Path]:
    """Run the restoration `name` and store figures and pictures; returns the figures and their file."""
    settings = resolve(name, run_dir_or_checkpoint, overrides)
    if out is not None and out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; give a folder")
    from pipeline.frozen import open_frozen

    frozen = open_frozen(run_dir_or_checkpoint, settings.data, settings.device)
    splits = frozen.manifest.splits
    split = split or ("test" if "test" in splits else list(splits)[-1])
    frozen.manifest.shards_of(split)
    if name == "clouds":
        from pipeline.restore.clouds import measure_clouds

        measured, pictures = measure_clouds(frozen, settings.clouds, split)
    else:
        from pipeline.restore.speckle import measure_speckle

        measured, pictures = measure_speckle(frozen, settings.speckle, split)
    result = {
        "step": frozen.step,
        "data_url": settings.data.url,
        "data_fingerprint": frozen.manifest.fingerprint,
        "settings": to_dict(getattr(settings, name)),
        **measured,
    }
    folder = frozen.run_dir / "evaluation" if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"restore-{name}.json"
    write_whole(path, json.dumps(result, indent=1) + "\n")
    if pictures:
        from pipeline.restore.pictures import draw

        draw(pictures, f"{name}: step {frozen.step}, split '{split}'", path.with_suffix(".png"))
    return result, path


def main(argv: list[str] | None = None) -> int:
    """Fill Sentinel-2 under drawn clouds, or take drawn speckle out of Sentinel-1, and score it beside baselines."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.restore",
        description=main.__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "restoration",
        choices=list(GROUPS),
        help="clouds: patches of S2 are hidden and filled from S1 and what is visible. speckle: S1 is multiplied with "
        "speckle, and each patch predicted from the others",
    )
    parser.add_argument("run", metavar="RUN_DIR_OR_CHECKPOINT", help="run folder, or its checkpoints/step-*")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="such as clouds.cover=0.3, data.url=URL")
    parser.add_argument("--split", default="", metavar="NAME", help="split to restore (default: test, or the last one)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for figures (default: RUN/evaluation)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_intermixed_args(sys.argv[1:] if argv is None else argv)
    name = arguments.restoration
    result, path = restore(name, arguments.run, arguments.overrides, arguments.split, arguments.out)
    if arguments.json:
        print(json.dumps(result, indent=1))
    else:
        print("\n".join([*_TABLES[name](result), f"written to {path}"]))
    return 0
