"""`python -m slurm.preflight [CONFIG.yaml key.sub=value ...]`: is this node fit to train, and what is wrong with it?

Exit code 0: fit; 1: not. `slurm.preflight_report` judges the answers of all nodes (`--json-file`).
"""

import argparse
import json
import os
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline.command import run_rank_command
from pipeline.config import load_settings
from pipeline.errors import ConfigError
from pipeline.metrics import write_whole
from pipeline.settings import Settings
from pipeline.store_speed import checkpoint_speed, data_set_speed
from slurm.check import Check, Look, passed, run_checks
from slurm.gpu_checks import check_gpus, gpus_given
from slurm.node_checks import Space, check_clock, check_folder, check_imports, check_packages, check_store

GPUS_HELP = "GPUs that must be there (default: as many as SLURM gave; 0: none is looked at)"
FILE_HELP = "write the answer into FILE too, whole or not at all; %%N in it is the node's name"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m slurm.preflight", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("config", nargs="?", metavar="CONFIG.yaml", help="settings of the run; without them only the node is looked at")
    add("overrides", nargs="*", metavar="key.sub=value", help="settings that go before those of the file")
    add("--quick", action="store_true", help="import no packages, only ask for their versions")
    add("--gpus", type=int, metavar="N", help=GPUS_HELP)
    add("--max-gpu-memory", type=float, default=0.05, metavar="SHARE", help="of an idle GPU in use (default 0.05)")
    add("--min-free-gib", type=float, default=2.0, metavar="G", help="left in each folder (default 2)")
    add("--min-free-inodes", type=int, default=10_000, metavar="N", help="left in each folder (default 10000)")
    add("--min-mb-s", type=float, default=20.0, metavar="R", help="a slower store is warned of (default 20)")
    add("--limit-s", type=float, default=120.0, metavar="S", help="a check that takes longer failed (default 120)")
    add("--json", action="store_true", help="print JSON")
    add("--json-file", metavar="FILE", help=FILE_HELP)
    return parser


def node_name(environ: Mapping[str, str]) -> str:
    """As SLURM calls the node; outside of it, as it calls itself."""
    return environ.get("SLURMD_NODENAME") or platform.node()


def looks(options: argparse.Namespace, settings: Settings | None, environ: Mapping[str, str]) -> dict[str, Look]:
    """The checks by name, none of them begun."""
    node = node_name(environ)
    gpus = options.gpus if options.gpus is not None else gpus_given(environ)
    if settings is not None and settings.engine.device == "cpu":
        gpus = 0
    space = Space(free_gib=options.min_free_gib, free_inodes=options.min_free_inodes)
    folder = partial(check_folder, owner=node)
    found: dict[str, Look] = {
        "gpus": partial(check_gpus, gpus, environ, options.max_gpu_memory),
        "TMPDIR": partial(folder, "TMPDIR", Path(tempfile.gettempdir()), space, is_shared=False),
        "packages": check_packages,
    }
    if settings is not None:
        found |= _looks_of_run(settings, options, space, environ)
    if not options.quick:
        found["imports"] = check_imports
    return found


def _looks_of_run(
    settings: Settings, options: argparse.Namespace, space: Space, environ: Mapping[str, str]
) -> dict[str, Look]:
    data, checkpoint, node = settings.data, settings.checkpoint, node_name(environ)
    folder, run_dir = partial(check_folder, owner=node), Path(settings.run.dir)
    found: dict[str, Look] = {"run.dir": partial(folder, "run.dir", run_dir, space, is_shared=True)}
    if run_dir.is_dir():
        found["clock"] = partial(check_clock, run_dir, node)
    if data.cache_dir:
        wished = Space(
            free_gib=space.free_gib, free_inodes=space.free_inodes, wished_gib=space.free_gib + data.cache_dir_gib
        )
        found["data.cache_dir"] = partial(folder, "data.cache_dir", Path(data.cache_dir), wished, is_shared=False)
    if checkpoint.staging:
        staging = Path(checkpoint.staging)
        found["checkpoint.staging"] = partial(folder, "checkpoint.staging", staging, space, is_shared=False)
    # Each node reads another shard: of one shard, all but the first would be served from the store's memory.
    nth = int(environ.get("SLURM_NODEID", "0"))
    for number, url in enumerate(dict.fromkeys([data.url, *(member.url for member in data.mixture)])):
        name = f"data.mixture.{number}" if number else "data.url"
        found[name] = partial(check_store, name, partial(data_set_speed, url, nth), options.min_mb_s)
    if "://" in checkpoint.url:
        measure = partial(checkpoint_speed, checkpoint.url, node)
        found["checkpoint.url"] = partial(check_store, "checkpoint.url", measure, options.min_mb_s)
    elif checkpoint.url:
        found["checkpoint.url"] = partial(folder, "checkpoint.url", Path(checkpoint.url), space, is_shared=True)
    return found


def describe(node: str, checks: Sequence[Check]) -> str:
    """The answer for a person: a line a check."""
    width = max(len(check.name) for check in checks)
    lines = [f"{node}: {'fit' if passed(checks) else 'not fit'}"]
    for check in checks:
        lines.append(f"  {check.name.ljust(width)}  {check.state.ljust(7)}  {check.measured}")
        if check.advice:
            lines.append(f"  {' ' * width}           {check.advice}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Look, and say what was found."""
    options = build_parser().parse_intermixed_args(argv)
    stop = threading.Event()

    def ask_to_stop(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    # A job that is to save and stop tells all of its steps so: that is no fault of the node.
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, ask_to_stop)
    if options.config is not None and "=" in options.config:
        raise ConfigError(f"'{options.config}' is no config file; give CONFIG.yaml before key.sub=value")
    settings = None if options.config is None else load_settings(options.config, options.overrides)
    began, node = time.monotonic(), node_name(os.environ)
    checks = run_checks(looks(options, settings, os.environ), options.limit_s, stop)
    answer: dict[str, Any] = {
        "node": node,
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "took_s": round(time.monotonic() - began, 2),
        "is_stopped": stop.is_set(),
        "is_fit": passed(checks),
        "checks": [asdict(check) for check in checks],
    }
    if options.json_file:
        path = Path(options.json_file.replace("%N", node))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(answer, indent=1) + "\n")
    if options.json:
        print(json.dumps(answer, indent=1))
    elif options.json_file and answer["is_fit"] and not stop.is_set():
        print(f"{node}: fit, after {answer['took_s']} s")  # the rest is in the file: jobs have many nodes
    elif checks:
        print(describe(node, checks))
    return 0 if answer["is_fit"] and not stop.is_set() else 1


if __name__ == "__main__":
    run_rank_command(main)  # which ends the process beside a check that hangs
