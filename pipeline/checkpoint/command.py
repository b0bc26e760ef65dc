"""python -m pipeline.checkpoint: look at, verify, pin, prune and convert the checkpoints of a run."""

import argparse
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.checkpoint import retention
from pipeline.checkpoint.files import (
    MANIFEST_NAME,
    STATE_NAME,
    STEP_PREFIX,
    WEIGHTS_NAME,
    committed,
    defect,
    num_bytes,
    read_manifest,
)
from pipeline.checkpoint.loading import Found
from pipeline.errors import CheckpointError, ConfigError, StorageError

_EPILOG = """\
RUN is a run folder, CHECKPOINT one of its checkpoints/step-*; where both may stand, a run is its newest or all of them.
Exit code: 0 all is well, 1 a checkpoint is damaged or missing, 2 wrong usage."""


def list_checkpoints(arguments: argparse.Namespace) -> int:
    """A line for each checkpoint, oldest first. Reads manifests alone; `verify` reads everything."""
    rows = [_summary(path) for path in reversed(_of_run(arguments.run))]
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return 0
    print(f"{'step':>8}  {'saved':<19}  {'GB':>8}  {'ranks':>5}  engine")
    for row in rows:
        pinned = "  pinned" if row["pinned"] else ""
        print(
            f"{row['step']:>8}  {row['saved']:<19}  {row['bytes'] / 1e9:>8.3f}  {row['world_size']:>5}  "
            f"{row['engine']}{pinned}"
        )
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Read every byte and compare size and CRC-32C."""
    problems = 0
    for given in arguments.paths:
        for path in reversed(_of_run(given)) if _is_run(Path(given)) else [_checkpoint(given)]:
            problem = defect(path)
            problems += problem is not None
            print(f"{path}: whole" if problem is None else f"{path}: {problem}")
    if problems:
        raise CheckpointError(
            f"{problems} damaged; a run resumes from the newest that is whole, and evaluation uses that too"
        )
    return 0


def show(arguments: argparse.Namespace) -> int:
    """All that a checkpoint says of itself: its run, its place in the data, its files."""
    path = _checkpoint(arguments.path)
    manifest = read_manifest(path)
    try:
        state = json.loads((path / STATE_NAME).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path / STATE_NAME} cannot be read ({error}); see python -m pipeline.checkpoint verify"
        ) from error
    files = manifest.pop("files")
    about = _summary(path) | manifest | {"state": state, "files": {name: size for name, (size, _) in files.items()}}
    if arguments.json:
        print(json.dumps(about, indent=1))
        return 0
    import yaml

    print(yaml.safe_dump(about, sort_keys=False, default_flow_style=None, width=120), end="")
    return 0


def pin(arguments: argparse.Namespace) -> int:
    """Keep a checkpoint for good, whatever checkpoint.keep says."""
    path = _checkpoint(arguments.path)
    retention.pin(path, True)
    print(f"pinned: {path}")
    return 0


def unpin(arguments: argparse.Namespace) -> int:
    """Let a pinned checkpoint go when its time has come."""
    path = _checkpoint(arguments.path)
    retention.pin(path, False)
    print(f"no longer pinned: {path}")
    return 0


def prune(arguments: argparse.Namespace) -> int:
    """Delete all but the newest, the milestones and the pinned, and what killed saves left."""
    if arguments.keep < 1 or arguments.keep_every < 0:
        raise ConfigError("--keep must be at least 1 and --keep-every at least 0")
    before = len(_of_run(arguments.run))
    lock = _hold(Path(arguments.run))
    try:
        gone = retention.prune(
            Path(arguments.run) / "checkpoints", arguments.keep, arguments.keep_every, arguments.dry_run
        )
    finally:
        if lock is not None:
            lock.close()
    for path in gone:
        print(f"would delete {path}" if arguments.dry_run else f"deleted {path}")
    print(f"{before - sum(path.name.startswith(STEP_PREFIX) for path in gone)} of {before} stay")
    return 0


def convert(arguments: argparse.Namespace) -> int:
    """Write DeepSpeed's universal form, which loads on any number of ranks, or fp32 weights by torch.save."""
    from pipeline import universal

    path, out = _checkpoint(arguments.path), Path(arguments.out)
    if out.exists():
        raise ConfigError(f"--out {out} exists; name another place")
    if (problem := defect(path)) is not None:
        raise CheckpointError(f"{problem}; choose another checkpoint")
    partial = out.with_name(f".{out.name}.partial")
    if arguments.to == "torch":
        import torch
        from safetensors.torch import load_file

        torch.save({"model": load_file(path / WEIGHTS_NAME)}, partial)
    else:
        manifest = read_manifest(path)
        if manifest.get("engine") != "deepspeed":
            raise ConfigError(
                f"{path} was saved by engine.name={manifest.get('engine')}, which loads on any number of ranks as it is"
            )
        found = Found(path=path, step=manifest["step"], world_size=manifest["world_size"], state={}, rejected=())
        universal.convert(found, partial)
    partial.rename(out)
    print(f"written: {out}")
    return 0


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
    pruning.add_argument("--keep", type=int, default=2, metavar="N", help="newest that stay (default: 2)")
    pruning.add_argument(
        "--keep-every", type=int, default=0, metavar="K", help="multiples of K steps stay (default: none)"
    )
    pruning.add_argument("--dry-run", action="store_true", help="say what would be deleted, delete nothing")
    converting = command(convert, "convert")
    converting.add_argument("path", metavar="RUN_OR_CHECKPOINT")
    converting.add_argument(
        "--to", choices=("universal", "torch"), required=True, help="a folder, or one file of torch.save"
    )
    converting.add_argument("--out", metavar="PATH", required=True, help="folder or file to make")
    arguments = parser.parse_args(sys.argv[1:] if argv is None else argv)
    return int(arguments.does(arguments))


def _is_run(path: Path) -> bool:
    return (path / "checkpoints").is_dir() or (path / "config.yaml").is_file()


def _of_run(run: str) -> list[Path]:
    """The checkpoints of a run, newest first; CheckpointError when there are none."""
    folder = Path(run)
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}; give the run.dir of python -m pipeline.pretrain")
    found = committed(folder / "checkpoints")
    if not found:
        raise CheckpointError(f"{folder} holds no checkpoint; give the run.dir of a run that has saved")
    return found


def _checkpoint(given: str) -> Path:
    """A checkpoint, or the newest of a run."""
    path = Path(given)
    if (path / MANIFEST_NAME).is_file():
        return path
    if path.is_dir() and not _is_run(path):
        raise CheckpointError(
            f"{path} is neither a run folder nor a checkpoint of one; give one of its checkpoints/step-*"
        )
    return _of_run(given)[0]


def _summary(path: Path) -> dict[str, Any]:
    manifest = read_manifest(path)
    saved = datetime.fromtimestamp((path / MANIFEST_NAME).stat().st_mtime, UTC)
    stage = f" ZeRO-{manifest['zero_stage']}" if manifest.get("engine") == "deepspeed" else ""
    return {
        "step": manifest["step"],
        "path": str(path),
        "saved": saved.isoformat(timespec="seconds").removesuffix("+00:00"),
        "bytes": num_bytes(manifest),
        "world_size": manifest["world_size"],
        "engine": f"{manifest.get('engine', '?')}{stage} {manifest.get('precision', '')}".strip(),
        "pinned": retention.is_pinned(path),
    }


def _hold(run: Path) -> Any:
    from sharding.lock import hold

    try:
        return hold(run / "lock", "python -m pipeline.checkpoint prune")
    except BlockingIOError as error:
        raise StorageError(
            f"{run} is in use by {error.strerror}, which deletes by its own checkpoint.keep; prune when it has ended"
        ) from error
