"""The decoder of Zarr v2 in a ZIP, against zarr itself."""

import io
import json
import zipfile

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.core.buffer import default_buffer_prototype

from sharding.sources.base import CORRUPT, PairError
from sharding.sources.zarr_zip import ZippedGroup
from tests.unit.sharding.terramesh_archive import zipped_zarr

RNG = np.random.default_rng(3)
BANDS = RNG.integers(-300, 9000, (1, 3, 50, 70)).astype(np.int16)


def by_zarr(content: bytes) -> dict[str, np.ndarray]:
    prototype = default_buffer_prototype()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        store = {name: prototype.buffer.from_bytes(archive.read(name)) for name in archive.namelist()}
    group = zarr.open_group(zarr.storage.MemoryStore(store), mode="r", zarr_format=2)
    return {name: np.asarray(group[name][...]) for name in group.array_keys()}


def changed(content: bytes, name: str, change) -> bytes:
    """The ZIP with one entry changed, or left out where `change` gives None."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for entry in old.namelist():
            data = change(old.read(entry)) if entry == name else old.read(entry)
            if data is not None:
                new.writestr(entry, data)
    return buffer.getvalue()


def with_metadata(content: bytes, **fields) -> bytes:
    return changed(content, "bands/.zarray", lambda text: json.dumps(json.loads(text) | fields).encode())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": (1, 2, 32, 32)},
        {"chunks": (1, 1, 50, 70), "compressors": numcodecs.Zstd(3)},
        {"compressors": numcodecs.Zlib(1), "filters": [numcodecs.Delta("<i2")]},
        {"compressors": None},
        {"order": "F"},
        {"fill_value": 7},
    ],
)
def test_every_array_is_as_zarr_reads_it(options):
    content = zipped_zarr({"bands": BANDS, "time": np.int64(5), "band": np.array(["vv", "vh"])}, **options)
    group = ZippedGroup(content, "tile")
    for name, expected in by_zarr(content).items():
        found = group.array(name)
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "u1", "u2", "i8", "b1"])
def test_every_type_is_as_zarr_reads_it(dtype):
    content = zipped_zarr({"bands": (RNG.random((4, 9)) * 200).astype(dtype)}, chunks=(3, 4))
    assert ZippedGroup(content, "tile").array("bands").tobytes() == by_zarr(content)["bands"].tobytes()


@pytest.mark.parametrize("fill_value", [0, float("nan"), float("-inf")])
def test_a_chunk_that_is_not_there_is_fill_value(fill_value):
    data = np.full((4, 6), fill_value, np.float32)
    data[0, 0] = 1
    content = zipped_zarr({"bands": data}, chunks=(2, 3), fill_value=fill_value)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert "bands/1.1" not in archive.namelist()
    assert np.array_equal(ZippedGroup(content, "tile").array("bands"), data, equal_nan=True)


def test_attributes_and_single_values_are_read():
    content = zipped_zarr({"bands": BANDS, "time": np.array([12])}, {"time": {"units": "days since 2020-01-01"}})
    group = ZippedGroup(content, "tile")
    assert group.value("time") == 12
    assert group.attributes("time") == {"units": "days since 2020-01-01"}
    assert group.attributes("bands") == {}
    with pytest.raises(PairError, match=r"tile: 'bands' has the shape \(1, 3, 50, 70\), one number was expected"):
        group.value("bands")


def test_a_codec_that_could_run_code_is_refused(tmp_path):
    content = zipped_zarr({"bands": BANDS})
    with pytest.raises(PairError, match="the codec 'pickle' is not one of blosc") as caught:
        ZippedGroup(with_metadata(content, compressor={"id": "pickle"}), "tile").array("bands")
    assert caught.value.reason == CORRUPT


@pytest.mark.parametrize(
    "broken",
    [
        lambda content: b"",
        lambda content: content[:-30],
        lambda content: changed(content, ".zgroup", lambda data: None),
        lambda content: changed(content, "bands/.zarray", lambda data: None),
        lambda content: changed(content, "bands/.zarray", lambda data: data[:-2]),
        lambda content: changed(content, "bands/0.0.0.0", lambda data: data[:50]),
        lambda content: changed(content, "bands/0.0.0.0", lambda data: b"no blosc at all, but as long as one"),
        lambda content: with_metadata(content, dtype="|O"),
        lambda content: with_metadata(content, shape=[1 << 20, 1 << 20, 1, 1]),
        lambda content: with_metadata(content, chunks=[1, 3, 0, 70]),
        lambda content: with_metadata(content, chunks=[1, 3, 50, 71]),
        lambda content: with_metadata(content, zarr_format=3),
        lambda content: with_metadata(content, compressor={"id": "lz5"}),
    ],
)
def test_what_is_broken_is_refused_by_name(broken):
    content = zipped_zarr({"bands": BANDS})
    with pytest.raises(PairError, match=r"^tile: .*; fetch it again$") as caught:
        ZippedGroup(broken(content), "tile").array("bands")
    assert caught.value.reason == CORRUPT
