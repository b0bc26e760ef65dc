"""The indexes of a split as one table: where each sample's payloads lie and what it is called."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sharding.bands import ALL_BANDS, RIDERS
from sharding.errors import DataError
from sharding.manifest import Manifest, ShardSpec
from sharding.shard_index import ShardIndex, parse_index
from sharding.store import Store

_FAR: Final = 1 << 62
ReadFiles = Callable[[Callable[[str], bytes], list[str]], list[bytes]]


@dataclass(frozen=True, kw_only=True)
class SampleTable:
    """N samples of a split in the order of shards and records, with A arrays in the manifest's order."""

    shards: tuple[ShardSpec, ...]
    first_sample: npt.NDArray[np.int64]
    """(shards + 1,): the number of each shard's first sample, and N."""
    key: npt.NDArray[np.bytes_]
    presence: npt.NDArray[np.uint64]
    labels: npt.NDArray[np.bool_]
    """(N, labels)"""
    offset: npt.NDArray[np.int64]
    """(N, A): of the payload in its shard."""
    length: npt.NDArray[np.int64]
    """(N, A): of the payload; 0 when the sample lacks the array."""
    crc32c: npt.NDArray[np.uint32]
    codec: npt.NDArray[np.uint8]
    radiometric_offset: npt.NDArray[np.float32]
    start: npt.NDArray[np.int64]
    """(N,): of the sample's first payload."""
    end: npt.NDArray[np.int64]
    """(N,): of its last payload."""

    @classmethod
    def load(cls, store: Store, manifest: Manifest, split: str, read_files: ReadFiles) -> "SampleTable":
        """The table of `split`; DataError naming the index that is missing or not the one that was written.

        `read_files(read, paths)` is `map`, or something that reads many files at a time.
        """
        shards = manifest.shards_of(split)
        contents = read_files(store.read, [shard.index_path for shard in shards])
        indexes = [_checked_index(store, *pair) for pair in zip(shards, contents, strict=True)]
        names = [array.name for array in manifest.arrays]
        payloads = [_payloads(index, names, store.name(s.path)) for index, s in zip(indexes, shards, strict=True)]
        labels = np.concatenate([index.records["labels"] for index in indexes])
        bits = np.arange(len(manifest.labels), dtype=np.uint64)
        offset, length = _column(payloads, "offset", np.int64), _column(payloads, "length", np.int64)
        table = cls(
            shards=shards,
            first_sample=np.cumsum([0] + [shard.samples for shard in shards]),
            key=np.concatenate([index.records["key"] for index in indexes]),
            presence=np.concatenate([index.records["presence"] for index in indexes]),
            labels=(labels[:, None] >> bits & np.uint64(1)).astype(np.bool_),
            offset=offset,
            length=length,
            crc32c=_column(payloads, "crc32c", np.uint32),
            codec=_column(payloads, "codec", np.uint8),
            radiometric_offset=_column(payloads, "radiometric_offset", np.float32),
            start=np.where(length > 0, offset, _FAR).min(axis=1, initial=_FAR),
            end=np.where(length > 0, offset + length, 0).max(axis=1, initial=0),
        )
        table._refuse_payloads_outside(store)
        return table

    def __len__(self) -> int:
        return int(self.first_sample[-1])

    @property
    def shard_sizes(self) -> list[int]:
        """Samples of each shard."""
        return [shard.samples for shard in self.shards]

    def shard_of(self, sample: int) -> int:
        """The number of the shard that holds a sample."""
        return int(np.searchsorted(self.first_sample, sample, side="right")) - 1

    def keys_of(self, samples: npt.NDArray[np.int64]) -> list[str]:
        """The keys of samples, in order."""
        return [key.decode() for key in self.key[samples].tolist()]

    def present(self, samples: npt.NDArray[np.int64], bands: tuple[str, ...]) -> npt.NDArray[np.bool_]:
        """Which samples have which bands: (samples, bands)."""
        bits = np.array([ALL_BANDS.index(band) for band in bands], np.uint64)
        return (self.presence[samples][:, None] >> bits & np.uint64(1)).astype(np.bool_)

    def span(self, first: int, last: int) -> tuple[int, int]:
        """The bytes of the shard from the first payload to the last one of samples [first, last)."""
        start, end = int(self.start[first:last].min()), int(self.end[first:last].max())
        return (start, end) if end else (0, 0)

    def _refuse_payloads_outside(self, store: Store) -> None:
        for number, shard in enumerate(self.shards):
            part = self.end[self.first_sample[number] : self.first_sample[number + 1]]
            if part.max(initial=0) > shard.num_bytes:
                raise DataError(
                    f"{store.name(shard.index_path)} points behind the end of {shard.path}; "
                    "the two do not belong together, fetch both again"
                )


def _checked_index(store: Store, shard: ShardSpec, content: bytes) -> ShardIndex:
    name = store.name(shard.index_path)
    index = parse_index(content, name)
    if hashlib.sha256(content).hexdigest() != shard.index_sha256:
        raise DataError(f"{name} is not the index that the manifest names: its SHA-256 differs; fetch it again")
    if len(index.records) != shard.samples:
        raise DataError(f"{name} lists {len(index.records)} samples, the manifest {shard.samples}; fetch it again")
    return index


def _payloads(index: ShardIndex, names: list[str], shard: str) -> npt.NDArray[np.void]:
    """The records' `arrays` in the manifest's order; arrays that the shard does not know have length 0."""
    unknown = set(index.arrays) - set(names) - set(RIDERS)
    if unknown:
        raise DataError(f"shard {shard} has the array '{min(unknown)}', which its manifest does not know")
    stored = index.records["arrays"]
    payloads = np.zeros((len(stored), len(names)), stored.dtype)
    for place, name in enumerate(index.arrays):
        if name in names:
            payloads[:, names.index(name)] = stored[:, place]
    return payloads


def _column(payloads: list[npt.NDArray[np.void]], name: str, dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate([part[name].astype(dtype) for part in payloads])
