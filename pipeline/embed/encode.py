"""The forward passes: from images to rows, shard by shard."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.embed.arrays import Columns
from pipeline.embed.facts import SampleFacts
from pipeline.embed.rows import Rows
from pipeline.embed.settings import Pool
from pipeline.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.frozen import FrozenModel


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What is made of each sample."""

    frozen: "FrozenModel"
    modalities: tuple[str, ...]
    pool: Pool
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample's embedding: (D,), or (tokens, D)."""
        config = self.frozen.model.config
        if self.pool != "tokens":
            return (config.width,)
        return (len(self.modalities) * config.num_patches, config.width)

    @property
    def tokens(self) -> dict[str, int]:
        """Where tokens are kept, how many of each modality, in order: patches row by row."""
        count = self.frozen.model.config.num_patches
        return dict.fromkeys(self.modalities, count) if self.pool == "tokens" else {}

    @property
    def row_bytes(self) -> int:
        """Of an embedding."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def check(self) -> None:
        """ConfigError when the model has no token to take."""
        if self.pool == "cls" and not self.frozen.model.config.global_token:
            raise ConfigError("--pool cls: the model has no global token (model.global_token=false); take --pool mean")

    def shards(self, rows: Rows, shards: list[int]) -> Iterator[tuple[int, Columns]]:
        """Each shard with its columns. DataError naming a sample whose embedding is no finite number."""
        facts = SampleFacts(self.frozen.data.url)
        parts: list[Columns] = []
        for split, group in itertools.groupby(rows.passes(shards), key=lambda one: one.split):
            planned, numbers = itertools.tee(group)
            batches = self.frozen.batches(
                split, rows.batch_size, batches=(np.arange(one.first, one.last) for one in numbers)
            )
            for one, (batch, images, valid) in zip(planned, batches, strict=True):
                columns = facts.columns(split, one.first, one.last)
                if list(columns["key"]) != batch.keys:
                    raise DataError(
                        f"the metadata of split '{split}' of {self.frozen.data.url} and its index list other samples "
                        f"at {one.first}; fetch both again"
                    )
                embedding, complete = self._embed(images, valid)
                if (bad := np.flatnonzero(complete & ~np.isfinite(embedding).reshape(len(batch), -1).all(1))).size:
                    advice = "; write --dtype float32" if self.dtype == "float16" else ""
                    raise DataError(f"the embedding of sample {batch.keys[bad[0]]} is no finite {self.dtype}{advice}")
                split_names = np.full(len(batch), split, object)
                columns |= {"embedding": embedding, "complete": complete, "split": split_names}
                columns["labels"] = batch.labels.cpu().numpy()
                parts.append(columns)
                if one.ends_shard:
                    yield one.shard, {name: np.concatenate([part[name] for part in parts]) for name in columns}
                    parts = []

    def _embed(self, images: dict[str, Any], valid: dict[str, Any]) -> tuple[Any, Any]:
        """Embeddings (b, ...) and which samples have a band of each modality; NaN where one has not."""
        import torch

        complete = torch.stack([valid[name].any(dim=1) for name in self.modalities]).all(dim=0)
        found = np.full((len(complete), *self.shape), np.nan, self.dtype)
        if complete.any():
            with torch.inference_mode():
                pooled = pool(self.frozen.model, {name: images[name][complete] for name in self.modalities}, self.pool)
            with np.errstate(over="ignore"):  # what does not fit is told by the sample's name
                found[complete.cpu().numpy()] = pooled.float().cpu().numpy().astype(self.dtype)
        return found, complete.cpu().numpy()


def pool(model: Any, images: dict[str, "Tensor"], how: Pool) -> "Tensor":
    """Of normalised images (B, C, H, W) by modality: (B, D), or (B, tokens, D), modality after modality."""
    import torch

    if how == "mean":
        features: Tensor = model.features(images)
        return features
    output = model.encode(images)
    if how == "cls":
        cls: Tensor = output.global_token_BD
        return cls
    return torch.cat(list(output.tokens.values()), dim=1)
