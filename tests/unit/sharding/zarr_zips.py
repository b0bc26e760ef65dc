"""Zarr groups of version 2 in ZIPs, as archives have them."""

import itertools
import json
import zipfile

import numcodecs
import numpy as np

BLOSC = numcodecs.Blosc("lz4", 5, numcodecs.Blosc.SHUFFLE)


def write_group(path, arrays, chunks=None, compressor=BLOSC, attributes=None, compression=zipfile.ZIP_STORED):
    """The arrays by name; `chunks` by name, whole arrays otherwise. Chunks that are all zero are not stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr(".zgroup", json.dumps({"zarr_format": 2}))
        for name, array in arrays.items():
            array = np.asarray(array)
            steps = (chunks or {}).get(name, array.shape)
            metadata = {
                "zarr_format": 2,
                "shape": array.shape,
                "chunks": steps,
                "dtype": array.dtype.str,
                "fill_value": "" if array.dtype.kind == "U" else 0,
                "order": "C",
                "filters": None,
                "compressor": compressor.get_config() if compressor else None,
            }
            file.writestr(f"{name}/.zarray", json.dumps(metadata))
            file.writestr(f"{name}/.zattrs", json.dumps((attributes or {}).get(name, {})))
            counts = [range(-(-length // step)) for length, step in zip(array.shape, steps, strict=True)]
            for place in itertools.product(*counts):
                chunk = np.zeros(steps, array.dtype)
                inner = array[tuple(slice(i * step, (i + 1) * step) for i, step in zip(place, steps, strict=True))]
                chunk[tuple(map(slice, inner.shape))] = inner
                if array.dtype.kind == "U" or chunk.any():
                    content = compressor.encode(np.ascontiguousarray(chunk)) if compressor else chunk.tobytes()
                    file.writestr(f"{name}/{'.'.join(map(str, place))}", bytes(content))
