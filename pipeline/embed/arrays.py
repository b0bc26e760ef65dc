"""The arrays of the store, and the bytes of their metadata and shards: zarr-python writes them into memory.

So a shard goes to a disk or a bucket as whole files, with a checksum of each, through `sharding.store`.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Columns = dict[str, npt.NDArray[Any]]
"""By array: the rows of one shard."""
_LEVEL: Final = 1
"""Of zstd; embeddings hardly compress, and higher levels gain nothing."""
_SINCE_1970: Final = {"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian"}
"""As the CF conventions write a time: xarray reads it as datetime64."""


@dataclass(frozen=True, kw_only=True)
class ArrayForm:
    """One array over all samples."""

    name: str
    dtype: Any
    dims: tuple[str, ...] = ()
    """Of what a sample has; empty: one number or word."""
    shape: tuple[int, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)


def forms_of(
    embedding: tuple[int, ...], dtype: str, labels: Sequence[str], tokens: Mapping[str, int]
) -> list[ArrayForm]:
    """All arrays of a store. `embedding`: shape of a sample's; `tokens`: of each modality, where tokens are kept."""
    about: dict[str, Any] = {"coordinates": "key split lon lat crs date_s1 date_s2 complete"}
    if tokens:
        about["tokens_of"] = dict(tokens)
    forms = [
        ArrayForm(
            name="embedding",
            dtype=dtype,
            dims=("token", "feature")[-len(embedding) :],
            shape=embedding,
            attributes=about,
        ),
        ArrayForm(name="key", dtype=str),
        ArrayForm(name="split", dtype=str),
        ArrayForm(name="lon", dtype="float64", attributes={"units": "degrees_east", "long_name": "of the centre"}),
        ArrayForm(name="lat", dtype="float64", attributes={"units": "degrees_north", "long_name": "of the centre"}),
        ArrayForm(name="crs", dtype=str, attributes={"long_name": "of the sample's pixels"}),
        ArrayForm(name="date_s1", dtype="float64", attributes={**_SINCE_1970, "long_name": "acquisition of S1"}),
        ArrayForm(name="date_s2", dtype="float64", attributes={**_SINCE_1970, "long_name": "acquisition of S2"}),
        ArrayForm(
            name="complete",
            dtype="bool",
            attributes={"long_name": "has a band of each modality; the embedding of another sample is NaN"},
        ),
    ]
    if labels:
        forms.append(ArrayForm(name="labels", dtype="bool", dims=("label",), shape=(len(labels),)))
    return forms


class ShardEncoder:
    """Makes the files of a store, as bytes by path; nothing is kept but the metadata."""

    def __init__(
        self, forms: Sequence[ArrayForm], labels: Sequence[str], num_rows: int, shard_rows: int, chunk_rows: int
    ) -> None:
        import zarr
        from zarr.codecs import ZstdCodec
        from zarr.storage import MemoryStore

        self._content: dict[str, Any] = {}
        self._store = MemoryStore(self._content)
        self._shard_rows = shard_rows
        self._num_rows = num_rows
        group = zarr.create_group(self._store, zarr_format=3)
        self._arrays = {}
        for form in forms:
            is_number = form.dtype is not str and np.dtype(form.dtype).kind == "f"
            self._arrays[form.name] = group.create_array(
                form.name,
                shape=(num_rows, *form.shape),
                chunks=(chunk_rows if form.name == "embedding" else shard_rows, *form.shape),
                shards=(shard_rows, *form.shape),
                dtype=form.dtype,
                dimension_names=("sample", *form.dims),
                fill_value=float("nan") if is_number else None,
                compressors=[ZstdCodec(level=_LEVEL, checksum=True)],
                attributes=form.attributes,
                config={"write_empty_chunks": True},
            )
        if labels:
            words = group.create_array("label", shape=(len(labels),), dtype=str, dimension_names=("label",))
            words[:] = np.array(labels, dtype=object)
        self._fixed = {path: value.to_bytes() for path, value in self._content.items() if path != "zarr.json"}

    def fixed(self) -> dict[str, bytes]:
        """What is the same whatever the samples: each array's metadata, and the words of the labels."""
        return dict(self._fixed)

    def shard(self, shard: int, columns: Columns) -> dict[str, bytes]:
        """The files of one shard, one of each array."""
        first = shard * self._shard_rows
        last = min(first + self._shard_rows, self._num_rows)
        for name, array in self._arrays.items():
            array[first:last] = columns[name]
        made = [path for path in self._content if path not in self._fixed and path != "zarr.json"]
        return {path: self._content.pop(path).to_bytes() for path in sorted(made)}

    def root(self, attributes: dict[str, Any], *, consolidated: bool) -> bytes:
        """The group's `zarr.json`; `consolidated`: with the metadata of all arrays, so that readers ask once."""
        import zarr

        group = zarr.open_group(self._store, mode="r+", use_consolidated=False)
        group.attrs.put(attributes)
        if consolidated:
            with warnings.catch_warnings():
                # It is no part of the specification of Zarr v3 yet; zarr-python and xarray read it.
                warnings.simplefilter("ignore")
                zarr.consolidate_metadata(self._store)
        content: bytes = self._content["zarr.json"].to_bytes()
        return content
