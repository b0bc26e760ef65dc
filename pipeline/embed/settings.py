"""What is computed of each sample, and what a store says of the model, the data and the settings it is of."""

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from pipeline.config import to_dict
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.frozen import FrozenModel

FORMAT: Final = "fusmae-embeddings/1"
POOLS: Final = ("mean", "cls", "tokens")
DTYPES: Final = ("float32", "float16")

Pool = Literal["mean", "cls", "tokens"]
Dtype = Literal["float32", "float16"]


@dataclass(frozen=True, kw_only=True)
class EmbedSettings:
    """What a user may choose."""

    modalities: str = ""
    """Such as `s1+s2`; empty: all of the model that the data set has."""
    split: str = ""
    """Empty: all splits of the data set."""
    pool: Pool = "mean"
    """mean: of the patch tokens, as evaluations take it. cls: the global token. tokens: each patch token."""
    dtype: Dtype = "float32"
    batch_size: int = 64
    """Samples of one forward pass. The last bits of an embedding may depend on it, so a store has one."""
    shard_samples: int = 0
    """Samples of a Zarr shard, a multiple of the batch size; 0: about 32 MiB of embeddings, 4,096 at most."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"--batch-size {self.batch_size} must be at least 1")
        if self.shard_samples < 0 or self.shard_samples % self.batch_size:
            near = max(round(self.shard_samples / self.batch_size), 1) * self.batch_size
            raise ConfigError(
                f"--shard-samples {self.shard_samples} is no multiple of --batch-size {self.batch_size}; write {near}"
            )


def choose_modalities(frozen: "FrozenModel", asked: str) -> tuple[str, ...]:
    """The modalities asked for, in the model's order; ConfigError when model or data set lacks one."""
    names = asked.split("+") if asked else list(frozen.given)
    if unknown := [name for name in names if name not in frozen.given]:
        have = ", ".join(frozen.given) or "none"
        raise ConfigError(
            f"--modalities {asked}: there is no '{unknown[0]}' that both the model and the data set have, only {have}"
        )
    return tuple(name for name in frozen.given if name in names)


def choose_splits(frozen: "FrozenModel", asked: str) -> dict[str, int]:
    """Samples of the split asked for, or of each; DataError naming the splits there are."""
    if asked:
        return {asked: sum(shard.samples for shard in frozen.manifest.shards_of(asked))}
    return frozen.manifest.splits


def identity(
    frozen: "FrozenModel", settings: EmbedSettings, *, modalities: tuple[str, ...], shard_rows: int
) -> dict[str, Any]:
    """All that determines the arrays; two stores with the same are the same."""
    return {
        "format": FORMAT,
        "weights_sha256": weights_digest(frozen.model),
        "model": to_dict(frozen.model.config),
        "step": frozen.step,
        "data_fingerprint": frozen.manifest.fingerprint,
        "splits": list(choose_splits(frozen, settings.split)),
        "modalities": list(modalities),
        "pool": settings.pool,
        "dtype": settings.dtype,
        "batch_size": settings.batch_size,
        "shard_samples": shard_rows,
        "upsample": frozen.data.upsample,
        "device": frozen.device.type,
    }


def weights_digest(model: Any) -> str:
    """SHA-256 (hex) over the names and bytes of the model's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        array = value.detach().cpu().contiguous()
        digest.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(array.numpy().tobytes())
    return digest.hexdigest()
