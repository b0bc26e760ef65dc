"""Shards to batches: the exact order, reader threads, the cache of a node, and the batch that goes to the device."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.stream.batch import Batch
    from pipeline.stream.exact import Stream, StreamConfig, evaluation_batches
    from pipeline.stream.mixed_batch import MixedBatch
    from pipeline.stream.mixture import MixtureConfig, MixtureStream
    from pipeline.stream.mixture_config import MixtureMember
    from pipeline.stream.torch_dataset import StreamDataset

__all__ = [
    "Batch",
    "MixedBatch",
    "MixtureConfig",
    "MixtureMember",
    "MixtureStream",
    "Stream",
    "StreamConfig",
    "StreamDataset",
    "evaluation_batches",
]

_MODULES = {
    "Batch": "batch",
    "MixedBatch": "mixed_batch",
    "MixtureConfig": "mixture",
    "MixtureMember": "mixture_config",
    "MixtureStream": "mixture",
    "StreamDataset": "torch_dataset",
}


def __getattr__(name: str) -> Any:
    # On demand, so that `python -m pipeline.stream --help` and the order alone need not wait for torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"pipeline.stream.{_MODULES.get(name, 'exact')}"), name)
