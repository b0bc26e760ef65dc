"""What torch.distributed reads, from what a cluster says to each task. Never CUDA_VISIBLE_DEVICES."""

import re
from collections.abc import Mapping
from typing import Protocol

from pipeline.errors import ConfigError


class Task(Protocol):
    """The part of `submitit.JobEnvironment` that is read here."""

    @property
    def global_rank(self) -> int:
        """Rank in the job."""

    @property
    def local_rank(self) -> int:
        """Rank on the node."""

    @property
    def num_tasks(self) -> int:
        """Ranks of the job."""


def from_slurm(environ: Mapping[str, str]) -> dict[str, str]:
    """The six variables of a rank that srun started.

    MASTER_ADDR and MASTER_PORT come from the batch script, the same for all ranks. A step's own count of
    tasks goes before the job's.

    Raises:
        ConfigError: a variable is missing, or no number where one must be; it is named.
    """
    ranks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    layout = "SLURM_STEP_TASKS_PER_NODE" if "SLURM_STEP_TASKS_PER_NODE" in environ else "SLURM_TASKS_PER_NODE"
    needed = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", ranks, layout, "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if not environ.get(name)]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} not set: a rank is started by srun from slurm/pretrain.sh or slurm.submit"
        )
    for name in set(needed) - {layout, "MASTER_ADDR"}:
        if not environ[name].isdecimal():
            raise ConfigError(f"{name} is '{environ[name]}', which is no whole number")
    ranks_on_node, node = ranks_of_nodes(environ[layout], layout), int(environ["SLURM_NODEID"])
    if node >= len(ranks_on_node):
        raise ConfigError(f"SLURM_NODEID is {node}, but {layout} '{environ[layout]}' has no such node")
    return {
        "RANK": environ["SLURM_PROCID"],
        "WORLD_SIZE": environ[ranks],
        "LOCAL_RANK": environ["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(ranks_on_node[node]),
        "MASTER_ADDR": environ["MASTER_ADDR"],
        "MASTER_PORT": environ["MASTER_PORT"],
    }


def from_local(task: Task, master_port: int) -> dict[str, str]:
    """The six variables of a rank that submitit started on this machine."""
    return {
        "RANK": str(task.global_rank),
        "WORLD_SIZE": str(task.num_tasks),
        "LOCAL_RANK": str(task.local_rank),
        "LOCAL_WORLD_SIZE": str(task.num_tasks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(master_port),
    }


def ranks_of_nodes(layout: str, name: str) -> list[int]:
    """Ranks on each node from SLURM's short form: '2(x3),1' is [2, 2, 2, 1]."""
    counts = []
    for group in layout.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", group)
        if match is None:
            raise ConfigError(f"{name} is '{layout}', which is not of the form 2(x3),1")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts
