"""A Zarr group of version 2 in a ZIP in memory, as TerraMesh keeps one for each modality of a sample.

Decoded straight from the ZIP's entries: zarr takes 4.5 to 6 ms for a tile of 224 pixels, this 0.8 to 2.7 ms (tests
compare both bit for bit). Codecs are those that only move bytes; `pickle` and what else
numcodecs knows beyond them is refused, for a file must not say what code runs.
"""

import io
import itertools
import json
import lzma
import math
import zipfile
import zlib
from typing import Any, Final

import numcodecs
import numpy as np
import numpy.typing as npt

from sharding.sources.base import CORRUPT, PairError

_CODECS: Final = ("blosc", "zstd", "lz4", "zlib", "gzip", "bz2", "lzma", "shuffle", "delta", "vlen-utf8")
_LARGEST: Final = 1 << 28
"""Bytes of an array, decoded; the metadata of a broken file may say anything."""
_BROKEN: Final = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    KeyError,
    TypeError,
    ValueError,
    RuntimeError,
    NotImplementedError,
    EOFError,
    OSError,
)
"""What zipfile, json, numpy and the codecs raise of content that is not what it says it is; no file is open here."""


class ZippedGroup:
    """The group in `content`; every failure is a PairError (CORRUPT) that names `path`."""

    def __init__(self, content: bytes, path: str) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(content))
            self._names = frozenset(self._zip.namelist())
        except _BROKEN as error:
            raise self._broken("it is no ZIP", error) from error
        if ".zgroup" not in self._names:
            raise PairError(CORRUPT, path, "it holds no Zarr group of version 2; fetch it again")

    def __contains__(self, name: str) -> bool:
        return f"{name}/.zarray" in self._names

    def attributes(self, name: str) -> dict[str, Any]:
        """The attributes of an array; empty when it has none."""
        if f"{name}/.zattrs" not in self._names:
            return {}
        try:
            return dict(json.loads(self._zip.read(f"{name}/.zattrs")))
        except _BROKEN as error:
            raise self._broken(f"the attributes of '{name}' cannot be read", error) from error

    def array(self, name: str) -> npt.NDArray[Any]:
        """An array of the group, whole."""
        if name not in self:
            raise PairError(CORRUPT, self.path, f"it has no array '{name}'; fetch it again")
        try:
            return self._decode(name, json.loads(self._zip.read(f"{name}/.zarray")))
        except _BROKEN as error:
            raise self._broken(f"its array '{name}' cannot be decoded", error) from error

    def value(self, name: str) -> Any:
        """The one number or text of an array of one element."""
        array = self.array(name)
        if array.size != 1:
            raise PairError(CORRUPT, self.path, f"'{name}' has the shape {array.shape}, one number was expected")
        return array.reshape(-1)[0].item()

    def _decode(self, name: str, metadata: dict[str, Any]) -> npt.NDArray[Any]:
        if metadata["zarr_format"] != 2:
            raise ValueError(f"zarr_format {metadata['zarr_format']}")
        shape, chunks = tuple(metadata["shape"]), tuple(metadata["chunks"])
        dtype = np.dtype(str(metadata["dtype"]))
        filters = [_codec(config) for config in metadata.get("filters") or []]
        compressor = metadata.get("compressor")
        steps = [*filters, *([_codec(compressor)] if compressor else [])]
        if dtype.hasobject and not any(step.codec_id == "vlen-utf8" for step in filters):
            raise ValueError("it holds objects")
        if math.prod(shape) * dtype.itemsize > _LARGEST or math.prod(chunks) * dtype.itemsize > _LARGEST:
            raise ValueError(f"its shape is {shape}")
        if len(shape) != len(chunks) or any(step < 1 for step in chunks):
            raise ValueError(f"its chunks are {chunks}")
        counts = [range(-(-length // step)) for length, step in zip(shape, chunks, strict=True)]
        separator = metadata.get("dimension_separator", ".")
        array = np.full(shape, _fill(metadata.get("fill_value"), dtype), dtype)
        for place in itertools.product(*counts):
            entry = f"{name}/{separator.join(map(str, place)) or '0'}"
            if entry not in self._names:
                continue  # a chunk that is all fill value is not stored
            content: Any = self._zip.read(entry)
            for step in reversed(steps):
                if step.codec_id == "blosc":
                    _check_blosc(content)
                content = step.decode(content)
            flat = content.astype(dtype) if dtype.hasobject else np.frombuffer(content, dtype)
            chunk = flat.reshape(chunks, order=metadata["order"])
            spans = [
                (number * step, min(step, length - number * step))
                for number, step, length in zip(place, chunks, shape, strict=True)
            ]
            # Chunks at the far edges are stored whole.
            array[tuple(slice(start, start + size) for start, size in spans)] = chunk[
                tuple(slice(size) for _, size in spans)
            ]
        return array

    def _broken(self, what: str, error: Exception) -> PairError:
        return PairError(CORRUPT, self.path, f"{what} ({error or type(error).__name__}); fetch it again")


def _codec(config: dict[str, Any]) -> Any:
    if config["id"] not in _CODECS:
        raise ValueError(f"the codec '{config['id']}' is not one of {', '.join(_CODECS)}")
    return numcodecs.get_codec(config)


def _check_blosc(content: bytes) -> None:
    """Blosc believes its header, and reads beyond the end of what was cut short."""
    stored = int.from_bytes(content[12:16], "little")
    if stored != len(content) or int.from_bytes(content[4:8], "little") > _LARGEST:
        raise ValueError(f"a chunk has {len(content)} bytes, its header says {stored}")


def _fill(value: Any, dtype: np.dtype[Any]) -> Any:
    if value is None:
        return dtype.type()
    if dtype.kind == "f":
        return float(value)  # NaN and infinities are words
    return str(value or "") if dtype.kind in "UO" else value
