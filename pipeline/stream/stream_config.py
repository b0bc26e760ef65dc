"""What a stream is told: which data set, and how it is read."""

from dataclasses import dataclass
from typing import Any, ClassVar, get_args

from pipeline.stream.fetching import Client
from pipeline.stream.reader import OnCorrupt
from sharding.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ReadingConfig:
    """How samples are ordered and read, of one data set or of a mixture, which shares windows and caches out."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    global_batch: int
    """Samples of one step over all ranks and micro-batches."""
    seed: int = 0
    """Seed of the order."""
    threads: int = 2
    """Reader threads of this rank; a mixture shares them among its data sets by what it reads of them, rounded up."""
    slots: int = 3
    """Batches read ahead."""
    hold: int = 1
    """Batches in the consumer's hands: a batch is valid until so many others have been asked for."""
    window_gib: float = 2.0
    """Shuffle window of a group of streams, by default a node's: more mixes better, and is held when data is remote."""
    groups: int = 0
    """Groups of streams; 0: one for each 512 samples of the global batch. Take the number of nodes, or of ranks where
    each fetches for itself into memory; more nodes than groups fetch runs more than once."""
    cache_gib: float = 2.0
    """Memory of this rank for runs fetched from an object store; unused for local data."""
    cache_dir: str = ""
    """Folder on a local disk where the ranks of a node share what they fetch; empty: each keeps it in memory."""
    cache_dir_gib: float = 100.0
    """Size that `cache_dir` may have, over all data sets."""
    client: Client = "fsspec"
    """What talks to an object store: fsspec (s3fs, gcsfs, adlfs), or obstore, which takes less CPU."""
    verify_checksums: bool = True
    """Check the CRC-32C of every payload."""
    on_corrupt: OnCorrupt = "raise"
    """When a sample stays damaged: `raise` stops; `skip` puts another one in its place, counted and reported."""

    def __post_init__(self) -> None:
        for name in ("global_batch", "threads", "slots", "hold"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.groups < 0:
            raise ConfigError(f"groups is {self.groups}; it must be 0 (choose for me) or more")
        for name in ("window_gib", "cache_gib", "cache_dir_gib"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name, kind in (("client", Client), ("on_corrupt", OnCorrupt)):
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(f"{name} is '{getattr(self, name)}'; it is one of {', '.join(get_args(kind))}")


@dataclass(frozen=True, kw_only=True)
class StreamConfig(ReadingConfig):
    """What to stream and how."""

    url: str
    """Data set of sharding.build or sharding.index: a folder, s3://..., or any other store of fsspec."""
    split: str = "train"
    """Split to read."""
