"""What a job asks the cluster for."""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError

HANDED_THROUGH = ("partition", "account", "qos", "constraint", "exclude", "mem")
"""Options that sbatch gets as they are."""


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """What a job asks the cluster for."""

    nodes: int
    gpus_per_node: int
    """0: none, the ranks run on CPUs."""
    ranks_per_node: int
    cpus_per_rank: int | None
    time_min: int
    max_restarts: int
    job_name: str
    options: dict[str, str]
    """Those of `HANDED_THROUGH` that were given."""


def minutes(text: str) -> int:
    """A time limit as sbatch takes it, in minutes, rounded up.

    M, M:S, H:M:S, D-H, D-H:M and D-H:M:S.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise ConfigError(f"--time {text} is no time limit; write minutes, H:M:S or D-H:M:S")
    days, first, second, third = (int(part) if part else 0 for part in match.groups())
    if match[1] is not None:
        seconds = ((days * 24 + first) * 60 + second) * 60 + third
    elif match[4] is not None:
        seconds = (first * 60 + second) * 60 + third
    else:
        seconds = first * 60 + second
    if not seconds:
        raise ConfigError(f"--time {text} is no time at all")
    return -(-seconds // 60)


def allocation(options: argparse.Namespace) -> Allocation:
    """What the command line asks for.

    Raises:
        ConfigError: it cannot work.
    """
    ranks = options.ranks_per_node if options.ranks_per_node is not None else max(1, options.gpus_per_node)
    for name, value, least in (
        ("--nodes", options.nodes, 1),
        ("--gpus-per-node", options.gpus_per_node, 0),
        ("--ranks-per-node", ranks, 1),
        ("--cpus-per-gpu", options.cpus_per_gpu, 1),
        ("--max-restarts", options.max_restarts, 0),
    ):
        if value is not None and value < least:
            raise ConfigError(f"{name} is {value}; give at least {least}")
    if options.gpus_per_node and ranks > options.gpus_per_node:
        raise ConfigError(f"--ranks-per-node is {ranks}, but --gpus-per-node is {options.gpus_per_node}")
    if options.cluster == "local" and options.nodes > 1:
        raise ConfigError(f"--cluster local is one machine, not {options.nodes} nodes; give --nodes 1")
    return Allocation(
        nodes=options.nodes,
        gpus_per_node=options.gpus_per_node,
        ranks_per_node=ranks,
        cpus_per_rank=options.cpus_per_gpu,
        time_min=minutes(options.time),
        max_restarts=options.max_restarts,
        job_name=options.job_name or f"fusmae-{Path(options.config).stem}",
        options={name: value for name in HANDED_THROUGH if (value := getattr(options, name)) is not None},
    )
