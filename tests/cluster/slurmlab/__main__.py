"""A SLURM cluster for a person: up, faults, down."""

import argparse
import os
import select
import sys
from dataclasses import fields
from pathlib import Path

from tests.cluster.slurmlab import Lab, LabConfig, LabError, can_make_networks

_FAULTS = ("node-down", "node-up", "net-cut", "net-heal")
_EPILOG = """\
python -m tests.cluster.slurmlab up /tmp/lab --nodes 4      then: export SLURM_CONF=/tmp/lab/etc/slurm.conf
python -m tests.cluster.slurmlab node-down /tmp/lab n2      power off; node-up; net-cut and net-heal with --mode netns
python -m tests.cluster.slurmlab controller-kill /tmp/lab   and controller-start
python -m tests.cluster.slurmlab down /tmp/lab"""


def main(argv: list[str] | None = None) -> int:
    """Do one thing to the lab in a folder."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster.slurmlab",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start what is not running, wait until every node is up")
    up.add_argument("folder", type=Path)
    default = "netns" if can_make_networks() else "ports"
    up.add_argument("--mode", choices=("ports", "netns"), default=default, help=f"default here: {default}")
    for setting in fields(LabConfig):
        if setting.type is int:
            up.add_argument(f"--{setting.name.replace('_', '-')}", type=int, default=setting.default)
    for name in ("down", "controller-kill", "controller-start"):
        commands.add_parser(name).add_argument("folder", type=Path)
    for name in _FAULTS:
        fault = commands.add_parser(name)
        fault.add_argument("folder", type=Path)
        fault.add_argument("node")
    guard = commands.add_parser("guard", help="take the lab down when a process ends")
    guard.add_argument("folder", type=Path)
    guard.add_argument("pid", type=int)
    arguments = parser.parse_args(argv)
    try:
        return _do(arguments)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _do(arguments: argparse.Namespace) -> int:
    folder: Path = arguments.folder.absolute()
    if arguments.command == "up":
        if (folder / "lab.json").exists():
            lab = Lab.open(folder)
        else:
            chosen = {f.name: getattr(arguments, f.name) for f in fields(LabConfig) if hasattr(arguments, f.name)}
            lab = Lab(folder, LabConfig(**chosen))
        lab.up()
        print(lab.run("sinfo", "-N", "-p", "main", "-o", "%N %T %c"))
        print(f"export SLURM_CONF={lab.conf}")
        return 0
    if not (folder / "lab.json").exists():
        raise LabError(f"no lab in {folder}; start one with: python -m tests.cluster.slurmlab up {folder}")
    lab = Lab.open(folder)
    if arguments.command == "guard":
        _wait_for_end(arguments.pid)
        lab.down()
    elif arguments.command in _FAULTS:
        if arguments.node not in lab.config.names:
            raise LabError(f"no node {arguments.node}; there are {', '.join(lab.config.names)}")
        getattr(lab, arguments.command.replace("-", "_"))(arguments.node)
    else:
        getattr(lab, arguments.command.replace("-", "_"))()
    return 0


def _wait_for_end(pid: int) -> None:
    """Until the process has ended, whatever ends it."""
    try:
        end = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    select.select([end], [], [])


if __name__ == "__main__":
    sys.exit(main())
