"""What a job asks the cluster for."""

import argparse
import re
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import ConfigError
from slurm.site import Site, fill, load_site, names, settings_of

HANDED_THROUGH = ("partition", "account", "qos", "constraint", "exclude", "mem")
"""Options that sbatch gets as they are."""
CHAINS = ("requeue", "chain", "none")
_DAY = "1-00:00:00"
_RESTARTS_HELP = "how often the run may go on after an attempt that ended early (default 20)"
_CHAIN_HELP = "how it goes on: the job goes back into the queue (default), another takes over, or a person decides"
_PREFLIGHT_HELP = "FUSMAE_PREFLIGHT of the job (default: that of this shell, else 1 for two nodes and more)"
_SITE_HELP = f"a site's values for what is not given here: {', '.join(names())}, or a YAML file"


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
    preflight: str
    """0, 1 or full; empty: what the environment says."""
    job_name: str
    options: dict[str, str]
    """Those of `HANDED_THROUGH` that were given."""
    chain: str = "requeue"
    """How the run goes on after an attempt that ended early: requeue, chain or none; see slurm/chain.sh."""
    chain_options: str = ""
    """More options of sbatch for the jobs of a chain."""
    setup: Path | None = None
    """File that the batch script sources before it looks for Python."""
    container: str = ""
    """pyxis:IMAGE or apptainer:IMAGE, in which the ranks run."""
    container_mounts: str = ""
    """More folders for the container."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of the job."""
    settings: tuple[str, ...] = ()
    """Overrides of the run's settings that the site asks for; the user's come after them."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of which `allocation` makes an Allocation."""
    add = parser.add_argument
    add("--site", metavar="NAME", help=_SITE_HELP)
    add("--nodes", type=int, default=1, metavar="N", help="default 1")
    add("--gpus-per-node", type=int, metavar="G", help="one rank a GPU; 0 to run on CPUs")
    add("--ranks-per-node", type=int, metavar="R", help="default: one a GPU; 1 when there is none")
    add("--cpus-per-gpu", type=int, metavar="C", help="CPUs of each rank")
    add("--time", metavar="T", help="limit, as sbatch takes it (default: a day)")
    for option in HANDED_THROUGH:
        add(f"--{option}", metavar=option.upper(), help="as sbatch takes it")
    add("--job-name", metavar="NAME", help="default: fusmae-CONFIG")
    add("--max-restarts", type=int, default=20, metavar="N", help=_RESTARTS_HELP)
    add("--preflight", choices=("0", "1", "full"), help=_PREFLIGHT_HELP)
    add("--chain", choices=CHAINS, help=_CHAIN_HELP)
    add("--chain-options", metavar="WORDS", help="more options of sbatch for the jobs of a chain")
    add("--setup", metavar="FILE", help="what the batch script sources before it looks for Python")
    add("--container", metavar="KIND:IMAGE", help="pyxis:IMAGE or apptainer:IMAGE for the ranks")
    add("--container-mounts", metavar="A[:B],...", help="more folders for the container")


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


def allocation(options: argparse.Namespace, name: str) -> Allocation:
    """What the command line and the site ask for; `name` is the job's, where none is given.

    Raises:
        ConfigError: it cannot work.
    """
    site = load_site(options.site) if options.site else Site()
    fill(options, site)
    if options.gpus_per_node is None:
        raise ConfigError("give --gpus-per-node G, one rank a GPU (0: CPUs), or a --site that says it")
    ranks = options.ranks_per_node if options.ranks_per_node is not None else max(1, options.gpus_per_node)
    for option, value, least in (
        ("--nodes", options.nodes, 1),
        ("--gpus-per-node", options.gpus_per_node, 0),
        ("--ranks-per-node", ranks, 1),
        ("--cpus-per-gpu", options.cpus_per_gpu, 1),
        ("--max-restarts", options.max_restarts, 0),
    ):
        if value is not None and value < least:
            raise ConfigError(f"{option} is {value}; give at least {least}")
    if options.gpus_per_node and ranks > options.gpus_per_node:
        raise ConfigError(f"--ranks-per-node is {ranks}, but --gpus-per-node is {options.gpus_per_node}")
    if options.cluster == "local" and options.nodes > 1:
        raise ConfigError(f"--cluster local is one machine, not {options.nodes} nodes; give --nodes 1")
    setup = Path(options.setup).absolute() if options.setup else None
    if setup is not None and not setup.is_file():
        raise ConfigError(f"--setup is {setup}, and there is no such file")
    return Allocation(
        nodes=options.nodes,
        gpus_per_node=options.gpus_per_node,
        ranks_per_node=ranks,
        cpus_per_rank=options.cpus_per_gpu,
        time_min=minutes(options.time or _DAY),
        max_restarts=options.max_restarts,
        preflight=options.preflight or "",
        job_name=options.job_name or name,
        options={known: value for known in HANDED_THROUGH if (value := getattr(options, known)) is not None},
        chain=options.chain or "requeue",
        chain_options=options.chain_options or "",
        setup=setup,
        container=options.container or "",
        container_mounts=options.container_mounts or "",
        environment=site.environment,
        settings=tuple(settings_of(site)),
    )
