"""What is the same for all runs at a computing centre: slurm/sites/NAME.yaml, or a file of one's own."""

import argparse
import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from pipeline.config import load_typed
from pipeline.errors import ConfigError

FOLDER = Path(__file__).parent / "sites"


@dataclass(frozen=True, kw_only=True)
class Site:
    """A site's profile. Options of the command line go before it, and what neither says is as without a site."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    partition: str = ""
    """As sbatch takes it, like the next ones."""
    account: str = ""
    """Project that pays."""
    qos: str = ""
    """Quality of service."""
    constraint: str = ""
    """Features that the nodes must have."""
    exclude: str = ""
    """Nodes to keep away from."""
    mem: str = ""
    """Memory of a node."""
    time: str = ""
    """Time limit of a job."""
    gpus_per_node: int | None = None
    """GPUs of a node, each of which gets a rank."""
    cpus_per_gpu: int | None = None
    """CPUs of a node divided by its GPUs."""
    cache_dir: str = ""
    """Local disk of a node for data.cache_dir. $NAME is taken from the environment when the job is submitted."""
    setup: str = ""
    """File that the batch script sources before it looks for Python: modules, conda. A profile's own folder counts."""
    container: str = ""
    """pyxis:IMAGE or apptainer:IMAGE, in which the ranks run."""
    container_mounts: str = ""
    """More folders for the container, SOURCE[:TARGET[:FLAGS]] with commas."""
    chain: Literal["", "requeue", "chain", "none"] = ""
    """How a run goes on after an attempt that ended early: chain where users may not requeue."""
    chain_options: str = ""
    """More options of sbatch for the jobs of a chain."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of the job, such as NCCL_SOCKET_IFNAME."""
    needs: tuple[str, ...] = ()
    """Options without which this site refuses a job, such as account."""


_OF_THE_PROFILE = ("cache_dir", "environment", "needs")
"""What is no option of the command line."""


def names() -> list[str]:
    """Sites that come with the code."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_site(name: str) -> Site:
    """The profile of that name, or in that file.

    Raises:
        ConfigError: there is none, or it has a key or value that cannot be.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"no site '{name}'; write one of {', '.join(names())}, or the path of a YAML file")
    site: Site = load_typed(path, Site)
    options = {known.name for known in fields(Site)} - set(_OF_THE_PROFILE)
    if wrong := [need for need in site.needs if need not in options]:
        raise ConfigError(f"{path}: needs: {wrong[0]} is no option; known are {', '.join(sorted(options))}")
    if site.setup and not Path(site.setup).is_absolute():
        beside = (path.parent / site.setup).absolute()
        return Site(**{known.name: getattr(site, known.name) for known in fields(Site)} | {"setup": str(beside)})
    return site


def fill(options: argparse.Namespace, site: Site) -> None:
    """Give the options that the command line left out (None) the site's values.

    Raises:
        ConfigError: the site needs an option that neither gives.
    """
    for known in fields(Site):
        value = getattr(site, known.name)
        if known.name not in _OF_THE_PROFILE and value not in ("", None) and getattr(options, known.name) is None:
            setattr(options, known.name, value)
    for need in site.needs:
        if getattr(options, need) is None:
            raise ConfigError(f"site '{options.site}' needs --{need.replace('_', '-')}")


def settings_of(site: Site) -> list[str]:
    """Overrides of the run's settings; those of the command line come after them.

    Raises:
        ConfigError: a variable in them is not set.
    """
    if not site.cache_dir:
        return []
    folder = os.path.expandvars(site.cache_dir)
    if missing := re.search(r"\$\{?(\w+)", folder):
        raise ConfigError(f"cache_dir is {site.cache_dir}, but {missing[1]} is not set; give data.cache_dir=FOLDER")
    return [f"data.cache_dir={folder}"]
