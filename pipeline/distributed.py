"""Which rank this process is, and how ranks find and trust each other.

torchrun, DeepSpeed's launcher and `slurm/` all speak through RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
"""

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pipeline.errors import ConfigError, RankError

_LOST_SIGNS = (
    *("Connection closed by peer", "Connection reset by peer", "Timed out waiting"),
    *("remote process exited", "communicator was aborted"),
)
"""What gloo and NCCL say when another rank has gone or is silent; any other error of theirs is shown whole."""
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among all."""

    rank: int
    world_size: int
    local_rank: int

    @property
    def is_first(self) -> bool:
        """True on rank 0, which writes what all share."""
        return self.rank == 0


def ranks_from(environment: Mapping[str, str]) -> Ranks | None:
    """The ranks that a launcher described, or None when nobody did.

    Raises ConfigError when the description is incomplete.
    """
    if "RANK" not in environment and "WORLD_SIZE" not in environment:
        return None
    missing = [name for name in _VARIABLES if not environment.get(name)]
    if missing:
        raise ConfigError(
            f"the launcher set some of {', '.join(_VARIABLES)} but not {', '.join(missing)}; "
            "start with torchrun, with slurm/, or with none of them set"
        )
    return Ranks(
        rank=int(environment["RANK"]),
        world_size=int(environment["WORLD_SIZE"]),
        local_rank=int(environment["LOCAL_RANK"]),
    )


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def choose_device(setting: str, local_rank: int) -> Any:
    """The torch device of this rank for `engine.device`."""
    import torch

    if setting == "cuda" and not torch.cuda.is_available():
        raise ConfigError("engine.device=cuda, but torch sees no GPU; write engine.device=auto or cpu")
    if setting == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    num_gpus = torch.cuda.device_count()
    index = 0 if num_gpus == 1 else local_rank  # a cluster may show a task its own GPU only
    if index >= num_gpus:
        raise ConfigError(f"local rank {local_rank} has no GPU of its own: there are {num_gpus}")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def join(device: Any, timeout_s: float) -> Any:
    """Join the process group; returns a second, CPU-side group for flags and objects.

    A rank that is silent for `timeout_s` ends the job instead of stalling it for ever.
    """
    import torch.distributed as dist

    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout_s))
    return cpu_group(timeout_s)


def cpu_group(timeout_s: float) -> Any:
    """One more group of all ranks, CPU-side, for a thread of its own. A collective."""
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))


def all_agree(ok: bool, group: Any) -> bool:
    """True when `ok` holds on every rank. A collective."""
    import torch
    import torch.distributed as dist

    flag = torch.tensor([int(ok)])
    dist.all_reduce(flag, op=dist.ReduceOp.MIN, group=group)
    return bool(flag.item())


@contextlib.contextmanager
def say_lost_ranks(rank: int) -> Iterator[None]:
    """Turn a collective's failure into RankError: the traceback that matters is the other rank's."""
    try:
        yield
    except RuntimeError as error:
        words = str(error)
        if not any(sign in words for sign in _LOST_SIGNS):
            raise
        reason = words.splitlines()[0].split("] ", 1)[-1]
        raise RankError(f"rank {rank} lost another rank, which says why, or was silent too long ({reason})") from error


def leave() -> None:
    """Leave the process group."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def use_accelerator(device: Any) -> None:
    """Tell DeepSpeed which accelerator to use, before its first import."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if device.type == "cuda" else "cpu")


def cpu_multiplies_bf16() -> bool:
    """Whether bf16 is not slower than float32 on this CPU: with AVX2 alone it is emulated, at a sixth of the speed."""
    import torch

    return torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "NO AVX", "AVX2")
