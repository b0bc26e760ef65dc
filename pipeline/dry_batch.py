"""One micro-batch before the first step: whether it fits into each rank's memory, and which would.

The batch has the shape of the run's, goes forward and backward, and leaves nothing behind: gradients are handed out
instead of accumulated, so that no hook of an engine fires, and no rank waits for another inside, so that one whose
memory is out does not leave the others in a collective. At ZeRO stage 3, whose forward pass is one of collectives, a
copy of the model stands in for it, which takes the memory of the gathered weights.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from pipeline.config import cross_scale_config, micro_batches
from pipeline.distributed import Ranks
from pipeline.engine import Engine
from pipeline.errors import ConfigError
from pipeline.memory_plan import kind_of, model_states
from pipeline.settings import Settings

_LACKS: Final = ("out of memory", "ALLOC_FAILED", "can't allocate memory")
"""Words of a RuntimeError that is one of memory: CUDA's own, its libraries', and the CPU allocator's."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of the memory that a rank computes in."""

    total: int
    free: int


def is_wanted(settings: Settings, device: Any) -> bool:
    """Whether `guard.dry_batch` asks for it on this device."""
    return settings.guard.dry_batch == "always" or (settings.guard.dry_batch == "auto" and device.type == "cuda")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is out, whoever says it."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _LACKS)


def memory_of(device: Any) -> Memory:
    """Of the GPU, with what torch holds and does not use counted as free; of the machine on a CPU."""
    if device.type != "cuda":
        page = os.sysconf("SC_PAGE_SIZE")
        return Memory(total=page * os.sysconf("SC_PHYS_PAGES"), free=page * os.sysconf("SC_AVPHYS_PAGES"))
    import torch

    free, total = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return Memory(total=total, free=free + unused)


def check_memory(
    attempt: Callable[[int], None], micro_batch: int, own_samples: int, ranks: Ranks, group: Any, memory: Memory
) -> None:
    """Try a micro-batch on all ranks; ConfigError on all of them when it does not fit on one. A collective.

    The error names the rank, its `memory` and the largest micro-batch that divides a rank's samples and fits on every
    rank. `attempt` must wait for no other rank.
    """
    lacking = _lacking(attempt, micro_batch, ranks, group, memory)
    if not lacking:
        return
    largest = largest_micro_batch(
        own_samples, lambda size: size < micro_batch and not _lacking(attempt, size, ranks, group, memory)
    )
    rank, there = lacking[0]
    also = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
    advice = (
        f"write train.micro_batch={largest}, the largest that fits: train.global_batch stays as it is"
        if largest
        else "not one sample fits either; take a higher engine.zero_stage, more ranks or a larger GPU "
        "(python -m pipeline.pretrain CONFIG --dry-run --gpu NAME says what is needed)"
    )
    raise ConfigError(
        f"rank {rank}{also} has too little memory for a micro-batch of {micro_batch} samples: "
        f"{there.total / 2**30:.1f} GiB, of which {there.free / 2**30:.1f} GiB were free for it; {advice}"
    )


def largest_micro_batch(own_samples: int, fits: Callable[[int], bool]) -> int:
    """The largest that divides a rank's samples and fits, 0 if none; what is smaller than one that fits, fits."""
    sizes = [size for size in range(own_samples, 0, -1) if own_samples % size == 0]
    low, high = 0, len(sizes)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(sizes[middle]) else (middle + 1, high)
    return sizes[low] if low < len(sizes) else 0


def _lacking(
    attempt: Callable[[int], None], micro_batch: int, ranks: Ranks, group: Any, memory: Memory
) -> list[tuple[int, Memory]]:
    """The ranks on which it does not fit, and their memory. A collective."""
    import torch
    import torch.distributed as dist

    fits = True
    try:
        attempt(micro_batch)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not is_out_of_memory(error):
            raise
        fits = False
    if not fits and torch.cuda.is_available():  # here, where the error no longer holds the frames and their tensors
        torch.cuda.empty_cache()
    told: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(told, None if fits else memory, group=group)
    return [(rank, there) for rank, there in enumerate(told) if there is not None]


class DryBatch:
    """Runs micro-batches of zeros through a run's model, forward and backward, without a trace."""

    def __init__(
        self, settings: Settings, config: Any, engine: Engine, build: Callable[[], Any], world_size: int
    ) -> None:
        """`build` makes a model like the engine's, on its device."""
        self._settings, self._config, self._engine = settings, config, engine
        self._build, self._world_size = build, world_size
        self._device = engine.device
        self._is_copied = settings.engine.name == "deepspeed" and settings.engine.zero_stage == 3

    def __call__(self, micro_batch: int) -> None:
        """Forward and backward; torch.OutOfMemoryError when it does not fit."""
        import torch

        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            model = self._copy() if self._is_copied else self._engine.module
            reserved = self._reserve(micro_batch)
            loss = model(*self._inputs(micro_batch), **self._options()).loss
            weights = [weight for weight in model.parameters() if weight.requires_grad]
            torch.autograd.grad(loss, weights, allow_unused=True)
            del reserved

    def _copy(self) -> Any:
        import torch

        model = self._build()
        return model.to(torch.bfloat16) if self._settings.engine.precision == "bf16" else model

    def _inputs(self, micro_batch: int) -> tuple[Any, Any, Any]:
        import torch

        from fusmae.random import CounterRandom

        size, device = self._config.image_size, self._device
        bands = {modality.name: len(modality.bands) for modality in self._config.modalities}
        images = {name: torch.zeros(micro_batch, num, size, size, device=device) for name, num in bands.items()}
        valid = {name: torch.ones(micro_batch, num, dtype=torch.bool, device=device) for name, num in bands.items()}
        position_B = torch.arange(micro_batch)
        draws = CounterRandom(self._settings.train.seed, torch.zeros_like(position_B), position_B).to(device)
        return images, draws, valid

    def _options(self) -> dict[str, Any]:
        """A cross-scale model sees as many samples as it will, though it asks no other rank for them."""
        if cross_scale_config(self._settings) is None or self._world_size == 1:
            return {}
        import torch

        return {"gather": lambda rows_BD: torch.cat([rows_BD] * self._world_size), "rank": 0}

    def _reserve(self, micro_batch: int) -> Any:
        """Take what the first step will hold and nobody has allocated yet, such as the moments of plain AdamW."""
        if self._device.type != "cuda":
            return None
        import torch

        engine = self._settings.engine
        parameters = sum(getattr(weight, "ds_numel", weight.numel()) for weight in self._engine.module.parameters())
        accumulation = self._settings.train.global_batch // self._world_size // micro_batch
        held = model_states(kind_of(engine), parameters, self._world_size, accumulation).held
        own_gradients = (2 if engine.precision == "bf16" else 4) * parameters
        missing = held - own_gradients - torch.cuda.memory_allocated(self._device)
        return torch.empty(max(0, missing), dtype=torch.uint8, device=self._device)


def check_dry_batch(
    settings: Settings, config: Any, engine: Engine, build: Callable[[], Any], ranks: Ranks, group: Any
) -> None:
    """Where `guard.dry_batch` asks for it, `check_memory` of the run's own micro-batch. A collective."""
    if not is_wanted(settings, engine.device):
        return
    own_samples = settings.train.global_batch // ranks.world_size
    micro_batch = own_samples // micro_batches(settings, ranks.world_size)
    attempt = DryBatch(settings, config, engine, build, ranks.world_size)
    check_memory(attempt, micro_batch, own_samples, ranks, group, memory_of(engine.device))
