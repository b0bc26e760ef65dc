"""Exact nearest neighbours: the store is read from the first row to the last, a block of chunks at a time.

Memory is that of two blocks and of the neighbours, whatever the number of samples.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from pipeline.embed.store import EmbeddingStore
from pipeline.errors import ConfigError, DataError
from sharding.near_keys import NearKeys
from sharding.store import Store

Metric = Literal["cosine", "euclidean"]
BLOCK_BYTES: Final = 8 << 20
"""Of embeddings that are compared at a time; they are float64 then, for sums that do not depend on the blocks."""
_KEY_ROWS: Final = 65_536


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A sample and how near it is."""

    row: int
    key: str
    value: float
    """Cosine, from -1 to 1, or Euclidean distance."""
    split: str
    lon: float | None
    lat: float | None
    labels: tuple[str, ...]


class EmbeddingReader:
    """The arrays of a complete store, at any URL; DataError when it is not complete, or a shard's files are lost."""

    def __init__(self, url: str) -> None:
        self.url = url
        store = EmbeddingStore(url)
        attributes = store.attributes()
        if attributes is None:
            raise DataError(f"there is no store of embeddings at {url}; make one with python -m pipeline.embed")
        if not attributes["complete"]:
            raise DataError(f"{url} is not complete; give the command of python -m pipeline.embed that makes it again")
        if lacking := store.records(attributes)[1]:  # which zarr would read as NaN, as samples without an embedding
            path, why = next(iter(lacking.items()))
            raise DataError(
                f"{url} has lost {len(lacking)} of its {attributes['shards']} shards: {path}: {why}; give the command "
                "of python -m pipeline.embed that made it again"
            )
        self.attributes = attributes
        self._group = _opened(store.store)
        self._embedding = self._group["embedding"]
        self._words = list(self._group["label"][:]) if "label" in self._group else []

    def __len__(self) -> int:
        return int(self._embedding.shape[0])

    def find(self, key: str) -> int:
        """The row of a sample; DataError that names the nearest keys when there is none."""
        near = NearKeys(key)
        keys = self._group["key"]
        rows = max(_KEY_ROWS // keys.shards[0], 1) * keys.shards[0]
        for first in range(0, len(self), rows):
            block = [str(word) for word in keys[first : first + rows]]
            if key in block:
                return first + block.index(key)
            near.show(block)
        raise DataError(f"{self.url} has no sample '{key}'; the nearest keys are {near}")

    def vector(self, row: int) -> npt.NDArray[np.float64]:
        """(D,): the embedding of a sample, the mean of its tokens where tokens are stored."""
        vector: npt.NDArray[np.float64] = _vectors(self._embedding[row : row + 1])[0]
        return vector

    def blocks(self) -> Iterator[tuple[int, npt.NDArray[np.float64]]]:
        """The first row of each block, and its embeddings (rows, D)."""
        row_bytes = int(np.prod(self._embedding.shape[1:])) * 8
        chunk = self._embedding.chunks[0]
        rows = max(BLOCK_BYTES // (row_bytes * chunk), 1) * chunk
        for first in range(0, len(self), rows):
            yield first, _vectors(self._embedding[first : first + rows])

    def describe(self, row: int, value: float) -> Neighbour:
        """What the store knows of a sample."""
        lon, lat = (float(self._group[name][row]) for name in ("lon", "lat"))
        has = self._group["labels"][row] if self._words else []
        return Neighbour(
            row=row,
            key=str(self._group["key"][row]),
            value=value,
            split=str(self._group["split"][row]),
            lon=None if np.isnan(lon) else lon,
            lat=None if np.isnan(lat) else lat,
            labels=tuple(str(word) for word, there in zip(self._words, has, strict=True) if there),
        )


def nearest(reader: EmbeddingReader, row: int, count: int, metric: Metric) -> list[Neighbour]:
    """The `count` samples nearest to that of `row`, the nearest first, without itself; of equals the first row.

    Samples without an embedding are passed over. ConfigError when the sample has none, or there are not so many.
    """
    query = reader.vector(row)
    if not np.isfinite(query).all():
        name = reader.describe(row, 0.0).key
        raise ConfigError(f"sample '{name}' lacks a modality and has no embedding; take another one")
    best = np.empty(0)
    rows = np.empty(0, np.int64)
    for first, block in reader.blocks():
        nearness = _nearness(block, query, metric)
        if first <= row < first + len(block):
            nearness[row - first] = np.nan
        here = np.flatnonzero(np.isfinite(nearness))
        best, rows = np.concatenate([best, nearness[here]]), np.concatenate([rows, here + first])
        order = np.argsort(-best, kind="stable")[:count]
        best, rows = best[order], rows[order]
    if len(best) < count:
        raise ConfigError(f"--neighbours {count} is more than the {len(best)} other samples of {reader.url}")
    signs = -1.0 if metric == "euclidean" else 1.0
    return [reader.describe(int(r), signs * float(value)) for r, value in zip(rows, best, strict=True)]


def _opened(store: Store) -> Any:
    import zarr

    from pipeline.search.zarr_store import ReadOnlyStore

    return zarr.open_group(ReadOnlyStore(store), mode="r")


def _nearness(block: npt.NDArray[np.float64], query: npt.NDArray[np.float64], metric: Metric) -> Any:
    """(rows,): larger is nearer; NaN where there is no embedding."""
    if metric == "euclidean":
        return -np.sqrt(np.square(block - query).sum(1))
    lengths = np.linalg.norm(block, axis=1) * np.linalg.norm(query)
    # Not by a matrix product, whose sums depend on how many rows it has.
    products = np.einsum("nd,d->n", block, query, optimize=False)
    return products / np.where(lengths > 0, lengths, 1.0)


def _vectors(block: Any) -> npt.NDArray[np.float64]:
    """(rows, D) float64 of stored rows, (rows, D) or (rows, tokens, D)."""
    vectors: npt.NDArray[np.float64] = np.asarray(block).astype(np.float64)
    return vectors.mean(axis=1) if vectors.ndim == 3 else vectors
