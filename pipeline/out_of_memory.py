"""Memory that is out in the middle of a run: written down with what was tried, and what to write instead.

Before the first step `pipeline.dry_batch` finds out; later it is rare, as when another program takes of the GPU.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.dry_batch import is_out_of_memory, largest_micro_batch, memory_of
from pipeline.errors import DeviceMemoryError
from pipeline.metrics import RunLog


@contextlib.contextmanager
def told(
    log: RunLog, rank: int, device: Any, own_samples: int, micro_batch: int, step: Callable[[], int]
) -> Iterator[None]:
    """Turn an error of memory into DeviceMemoryError, with an event `out_of_memory` of this rank at `step()`.

    A rank has `own_samples` of a step. The others lose this rank, and end too.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        memory, now = memory_of(device), step()
        reason = str(error).splitlines()[0]
        figures = {"total_gib": round(memory.total / 2**30, 2), "free_gib": round(memory.free / 2**30, 2)}
        log.event("out_of_memory", now, rank=rank, micro_batch=micro_batch, **figures, reason=reason)
        smaller = largest_micro_batch(own_samples, lambda size: size < micro_batch)
        advice = f"write train.micro_batch={smaller}" if smaller else "take a higher engine.zero_stage or a larger GPU"
        raise DeviceMemoryError(
            f"rank {rank} ran out of memory at step {now} in a micro-batch of {micro_batch} samples: "
            f"{figures['total_gib']:.1f} GiB, of which {figures['free_gib']:.1f} GiB are free ({reason}); {advice}, "
            "or see what else uses it; the same command goes on from the newest checkpoint"
        ) from error
