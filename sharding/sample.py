"""A sample as the bytes of `KEY.zarr.zip`: a standard Zarr v3 group in a ZIP whose entries are stored, not deflated.

Entries: first the one chunk of each array (`s1/c/0/0/0` …), behind them the `zarr.json` of each array and of the group.
So the gaps between the payloads of an uncompressed sample are the same in all samples, whatever the metadata's length.
"""

import io
import json
import zipfile
from dataclasses import dataclass
from typing import Any, Final

import google_crc32c
import numpy as np

from sharding.bands import ARRAY_GSD_M
from sharding.codec import encode, zarr_codecs
from sharding.sources.base import Sample, StoredArray

EXTENSION: Final = "zarr.zip"
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_LOCAL_HEADER: Final = 30
_FILE_MODE: Final = 0o100444 << 16


@dataclass(frozen=True, kw_only=True)
class Payload:
    """Where an array's chunk lies in the member."""

    offset: int
    length: int
    crc32c: int


def chunk_name(array: str) -> str:
    """The entry of an array's only chunk."""
    return f"{array}/c/0/0/0"


def pack_sample(sample: Sample, codec: str) -> tuple[bytes, dict[str, Payload]]:
    """The member's bytes and the payload of each array; the same sample always gives the same bytes."""
    chunks = {name: encode(_little_endian(array.data), codec) for name, array in sample.arrays.items()}
    entries = [(chunk_name(name), content) for name, content in chunks.items()]
    for name, array in sample.arrays.items():
        entries.append((f"{name}/zarr.json", _dump(array_metadata(name, array, codec))))
    group = {"zarr_format": 3, "node_type": "group", "attributes": group_attributes(sample)}
    entries.append(("zarr.json", _dump(group)))
    content, offsets = pack_entries(entries)
    payloads = {
        name: Payload(offset=offsets[chunk_name(name)], length=len(chunk), crc32c=google_crc32c.value(chunk))
        for name, chunk in chunks.items()
    }
    return content, payloads


def pack_entries(entries: list[tuple[str, bytes]]) -> tuple[bytes, dict[str, int]]:
    """A ZIP of stored entries in this order, and where the bytes of each begin; the same entries, the same bytes."""
    buffer = io.BytesIO()
    offsets = {}
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries:
            entry = _entry(name)
            archive.writestr(entry, content)
            offsets[name] = entry.header_offset + _LOCAL_HEADER + len(entry.filename) + len(entry.extra)
    return buffer.getvalue(), offsets


def array_metadata(name: str, array: StoredArray, codec: str) -> dict[str, Any]:
    """An array's `zarr.json`: one chunk, payload as `sharding.codec.encode` made it."""
    data = array.data
    side = f"{array.gsd_m:g}m"
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(data.shape),
        "data_type": data.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(data.shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": zarr_codecs(codec, data.dtype),
        "dimension_names": [f"band_{'_'.join(array.bands)}", f"y_{side}", f"x_{side}"],
        "attributes": {
            "bands": list(array.bands),
            "units": array.units,
            "scale": array.scale,
            "offset": array.radiometric_offset,
            "nodata": array.nodata,
            "gsd_m": array.gsd_m,
            "native_gsd_m": ARRAY_GSD_M[name],
            "transform": None if array.transform is None else list(array.transform),
        },
    }


def group_attributes(sample: Sample) -> dict[str, Any]:
    """The group's attributes; what else the source knows lies under its own names."""
    first = next(iter(sample.arrays.values()))
    return {
        **sample.attributes,
        "key": sample.key,
        "source": sample.source,
        "crs": sample.crs or None,
        "transform": None if first.transform is None else list(first.transform),
        "level": sample.level,
        "dates": sample.dates,
        "labels": list(sample.labels),
    }


def _little_endian(data: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(data, dtype=data.dtype.newbyteorder("<"))


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.create_system = 3  # else the operating system's number would be in the bytes
    entry.external_attr = _FILE_MODE
    return entry


def _dump(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
