"""The settings under `data`: where the samples come from and how they are streamed."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pipeline.stream.mixture_config import MixtureMember


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Where the samples come from and how they are streamed."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    url: str
    """Data set made by sharding.build or indexed by sharding.index: a folder or s3://..., with manifest.json."""
    split: str = "train"
    """Split to train on. Of a mixture each data set has its own, and this is the one that evaluations use."""
    mixture: tuple[MixtureMember, ...] = ()
    """Train on several data sets at once, each {url, split, weight, name}; evaluations use url, then, or the first."""
    temperature: float = 1.0
    """Without weights a mixture goes by size ** (1 / temperature): 1 by size, .inf the same for all."""
    reader: Literal["exact", "webdataset"] = "exact"
    """exact: the indexed stream. webdataset: the same batches through webdataset alone, slower, to check the first."""
    threads: int = 2
    """Reader threads of a rank."""
    prefetch: int = 3
    """Batches read ahead."""
    window_gib: float = 2.0
    """Shuffle window of a group of streams, by default a node's; larger mixes better, and is held for remote data."""
    groups: int = 0
    """Groups of streams; 0: one for each 512 samples of the global batch. Take the number of nodes, or of ranks where
    each fetches for itself into memory."""
    cache_gib: float = 2.0
    """Memory of a rank for runs fetched from an object store; unused for local data."""
    cache_dir: str = ""
    """Folder on a local disk in which the ranks of a node share what they fetch; empty: each keeps it in memory."""
    cache_dir_gib: float = 100.0
    """Size that cache_dir may have."""
    client: Literal["fsspec", "obstore"] = "fsspec"
    """What talks to an object store; obstore takes less CPU."""
    verify_checksums: bool = True
    """Check the CRC-32C of every payload read."""
    on_corrupt: Literal["raise", "skip"] = "raise"
    """When a sample stays damaged: stop, or put another one in its place, counted and reported."""
    flips: bool = True
    """Draw one of the eight flips and turns of the square for each sample, the same for S1 and S2."""
    upsample: Literal["nearest", "bilinear"] = "nearest"
    """How 20 m and 60 m bands come to 10 m, on the device."""

    def reading(self) -> dict[str, Any]:
        """How what is stored is fetched and checked: arguments of a stream as of an evaluation's batches."""
        names = ("threads", "cache_gib", "cache_dir", "cache_dir_gib", "client", "verify_checksums")
        return {name: getattr(self, name) for name in names}
