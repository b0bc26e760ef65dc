"""python -m pipeline.checkpoint: look at, verify, pin, prune and convert the checkpoints of a run."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.checkpoint import retention
from pipeline.checkpoint.best import retention_of
from pipeline.checkpoint.files import STATE_NAME, WEIGHTS_NAME, num_bytes, read_manifest
from pipeline.checkpoint.loading import Found
from pipeline.checkpoint.named import Named, named
from pipeline.checkpoint.shelf import Shelf
from pipeline.errors import CheckpointError, ConfigError, DataError, StorageError
from pipeline.settings import CheckpointSettings

_EPILOG = """\
RUN is a run folder, CHECKPOINT one of its checkpoints/step-*, or the URL of either in a bucket; where both may stand, a
run is its newest or all of them.
Exit code: 0 all is well, 1 a checkpoint is damaged or missing, 2 wrong usage."""


def list_checkpoints(arguments: argparse.Namespace) -> int:
    """A line for each checkpoint, oldest first. Reads manifests alone; `verify` reads everything."""
    given = _run(arguments.run)
    names = given.names()
    best = [] if "://" in arguments.run else _retention(given).best(names)
    rows = [_summary(given.shelf, name) | {"best": name in best} for name in reversed(names)]
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return 0
    print(f"{'step':>8}  {'saved':<19}  {'GB':>8}  {'ranks':>5}  engine")
    for row in rows:
        marks = "".join(f"  {mark}" for mark in ("best", "pinned") if row[mark])
        print(
            f"{row['step']:>8}  {row['saved']:<19}  {row['bytes'] / 1e9:>8.3f}  {row['world_size']:>5}  "
            f"{row['engine']}{marks}"
        )
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Read every byte and compare size and CRC-32C."""
    problems = 0
    for path in arguments.paths:
        given = named(path)
        for name in reversed(given.names()):
            problem = given.shelf.defect(name)
            problems += problem is not None
            print(f"{given.shelf.title(name)}: {'whole' if problem is None else problem}")
    if problems:
        raise CheckpointError(
            f"{problems} damaged; a run resumes from the newest that is whole, and evaluation uses that too"
        )
    return 0


def show(arguments: argparse.Namespace) -> int:
    """All that a checkpoint says of itself: its run, its place in the data, its files."""
    given = named(arguments.path)
    shelf, name = given.shelf, given.names()[0]
    manifest = shelf.manifest(name)
    try:
        state = json.loads(shelf.read(name, STATE_NAME))
    except (OSError, ValueError, DataError) as error:
        raise CheckpointError(
            f"{shelf.title(name)}/{STATE_NAME} cannot be read ({error}); see python -m pipeline.checkpoint verify"
        ) from error
    files = manifest.pop("files")
    about = _summary(shelf, name) | manifest | {"state": state, "files": {f: size for f, (size, _) in files.items()}}
    if arguments.json:
        print(json.dumps(about, indent=1))
        return 0
    import yaml

    print(yaml.safe_dump(about, sort_keys=False, default_flow_style=None, width=120), end="")
    return 0


def pin(arguments: argparse.Namespace) -> int:
    """Keep a checkpoint for good, whatever checkpoint.keep says."""
    print(f"pinned: {_pin(arguments.path, True)}")
    return 0


def unpin(arguments: argparse.Namespace) -> int:
    """Let a pinned checkpoint go when its time has come."""
    print(f"no longer pinned: {_pin(arguments.path, False)}")
    return 0


def prune(arguments: argparse.Namespace) -> int:
    """Delete all but the newest, the milestones, the best and the pinned, and what killed saves left."""
    asked = {"keep": arguments.keep, "keep_every": arguments.keep_every, "keep_best": arguments.keep_best}
    asked = {key: value for key, value in asked.items() if value is not None}
    if asked.get("keep", 1) < 1 or min(asked.values(), default=0) < 0:
        raise ConfigError("--keep must be at least 1, --keep-every and --keep-best at least 0")
    given = _run(arguments.run)
    wanted = replace(_retention(given), **asked)
    if wanted.keep_best and "://" in arguments.run:
        raise ConfigError(f"{arguments.run} does not say which checkpoints are the best; give the run's run.dir")
    before = len(given.names())
    if "://" in arguments.run and not arguments.dry_run:
        raise ConfigError(
            f"{arguments.run} says nothing of whether a run is saving there; give its run.dir, which is locked"
        )
    lock = None if arguments.dry_run else _hold(given.run_dir)
    try:
        gone, remains = retention.prune(given.shelf, wanted, arguments.dry_run)
    finally:
        if lock is not None:
            lock.close()
    for title in [given.shelf.title(name) for name in gone] + remains:
        print(f"would delete {title}" if arguments.dry_run else f"deleted {title}")
    print(f"{before - len(gone)} of {before} stay")
    return 0


def convert(arguments: argparse.Namespace) -> int:
    """Write DeepSpeed's universal form, which loads on any number of ranks, or fp32 weights by torch.save."""
    from pipeline import universal

    out = Path(arguments.out)
    if out.exists():
        raise ConfigError(f"--out {out} exists; name another place")
    given = named(arguments.path)
    name = given.names()[0]
    partial = out.with_name(f".{out.name}.partial")
    with tempfile.TemporaryDirectory(prefix="fusmae-convert-") as folder:
        try:
            path = given.shelf.fetch(name, Path(folder), [WEIGHTS_NAME] if arguments.to == "torch" else None)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; choose another checkpoint") from error
        if arguments.to == "torch":
            import torch
            from safetensors.torch import load_file

            torch.save({"model": load_file(path / WEIGHTS_NAME)}, partial)
        else:
            _convert_to_universal(path, given.shelf.title(name), partial, universal.convert)
    partial.rename(out)
    print(f"written: {out}")
    return 0


def _convert_to_universal(path: Path, title: str, out: Path, converter: Callable[..., Path]) -> None:
    manifest = read_manifest(path)
    if manifest.get("engine") != "deepspeed":
        raise ConfigError(
            f"{title} was saved by engine.name={manifest.get('engine')}, which loads on any number of ranks as it is"
        )
    found = Found(
        path=path,
        title=title,
        step=manifest["step"],
        world_size=manifest["world_size"],
        state={},
        rejected=(),
        rejected_names=(),
    )
    converter(found, out)


def main(argv: list[str] | None = None) -> int:
    """List, verify, show, pin, unpin, prune or convert."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.checkpoint",
        description="Look at, verify, pin, prune and convert the checkpoints of a run.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(does: Callable[[argparse.Namespace], int], name: str) -> argparse.ArgumentParser:
        says = (does.__doc__ or "").splitlines()[0]
        added = commands.add_parser(name, help=says, description=says)
        added.set_defaults(does=does)
        return added

    listing = command(list_checkpoints, "list")
    listing.add_argument("run", metavar="RUN")
    listing.add_argument("--json", action="store_true", help="print JSON")
    command(verify, "verify").add_argument("paths", metavar="RUN_OR_CHECKPOINT", nargs="+")
    showing = command(show, "show")
    showing.add_argument("path", metavar="RUN_OR_CHECKPOINT")
    showing.add_argument("--json", action="store_true", help="print JSON")
    command(pin, "pin").add_argument("path", metavar="CHECKPOINT")
    command(unpin, "unpin").add_argument("path", metavar="CHECKPOINT")
    pruning = command(prune, "prune")
    pruning.add_argument("run", metavar="RUN")
    for option, metavar, says in (
        ("--keep", "N", "newest that stay"),
        ("--keep-every", "K", "multiples of K steps stay"),
        ("--keep-best", "N", "best by checkpoint.best_by that stay"),
    ):
        pruning.add_argument(option, type=int, metavar=metavar, help=f"{says} (default: as the run was told)")
    pruning.add_argument("--dry-run", action="store_true", help="say what would be deleted, delete nothing")
    converting = command(convert, "convert")
    converting.add_argument("path", metavar="RUN_OR_CHECKPOINT")
    converting.add_argument(
        "--to", choices=("universal", "torch"), required=True, help="a folder, or one file of torch.save"
    )
    converting.add_argument("--out", metavar="PATH", required=True, help="folder or file to make")
    arguments = parser.parse_args(sys.argv[1:] if argv is None else argv)
    return int(arguments.does(arguments))


def _run(given: str) -> Named:
    found = named(given)
    if found.name is not None:
        raise CheckpointError(f"{given} is a checkpoint; give the run that it belongs to")
    return found


def _retention(given: Named) -> retention.Retention:
    """What the run keeps by its settings; where there are none, the newest as usual."""
    try:
        settings = given.settings().checkpoint
    except (CheckpointError, ConfigError):
        settings = CheckpointSettings()
    return retention_of(settings, given.run_dir)


def _pin(given: str, is_pinned: bool) -> str:
    found = named(given)
    if found.name is None:
        raise CheckpointError(f"{given} is a run; give one of its checkpoints, such as {found.names()[0]}")
    found.shelf.pin(found.name, is_pinned)
    return found.shelf.title(found.name)


def _summary(shelf: Shelf, name: str) -> dict[str, Any]:
    manifest = shelf.manifest(name)
    stage = f" ZeRO-{manifest['zero_stage']}" if manifest.get("engine") == "deepspeed" else ""
    return {
        "step": manifest["step"],
        "path": shelf.title(name),
        "saved": shelf.saved(name).isoformat(timespec="seconds").removesuffix("+00:00"),
        "bytes": num_bytes(manifest),
        "world_size": manifest["world_size"],
        "engine": f"{manifest.get('engine', '?')}{stage} {manifest.get('precision', '')}".strip(),
        "pinned": shelf.is_pinned(name),
    }


def _hold(run: Path) -> Any:
    from sharding.lock import hold

    try:
        return hold(run / "lock", "python -m pipeline.checkpoint prune")
    except BlockingIOError as error:
        raise StorageError(
            f"{run} is in use by {error.strerror}, which deletes by its own checkpoint.keep; prune when it has ended"
        ) from error
