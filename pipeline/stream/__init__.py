"""Shards to batches: the exact order, reader threads, the cache of a node, and the batch that goes to the device."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.stream.batch import Batch
    from pipeline.stream.exact import Stream, StreamConfig, evaluation_batches

__all__ = ["Batch", "Stream", "StreamConfig", "evaluation_batches"]


def __getattr__(name: str) -> Any:
    # On demand, so that `python -m pipeline.stream --help` and the order alone need not wait for torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipeline.stream import batch, exact

    return batch.Batch if name == "Batch" else getattr(exact, name)
