"""A member of a shard is a standard Zarr v3 group, the same bytes for the same sample."""

import io
import struct
import zipfile

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from sharding.bands import ARRAY_GSD_M
from sharding.codec import CODECS, decode_into
from sharding.sample import chunk_name, pack_entries, pack_sample
from sharding.sources import open_source
from sharding.sources.base import Sample, StoredArray


@pytest.fixture(scope="module")
def samples(v1):
    source = open_source(v1.source, str(v1.root))
    return [source.read(pair) for pair in source.list().pairs]


@pytest.mark.parametrize("codec", CODECS)
def test_zarr_itself_opens_it(samples, codec, tmp_path):
    sample = samples[0]
    content, _ = pack_sample(sample, codec)
    path = tmp_path / "sample.zarr.zip"
    path.write_bytes(content)
    group = zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r")
    assert set(group.array_keys()) == set(sample.arrays)
    for name, array in sample.arrays.items():
        assert group[name].dtype == array.data.dtype
        assert np.array_equal(group[name][:], array.data)
        assert group[name].nchunks == 1
        assert dict(group[name].attrs) == {
            "bands": list(array.bands),
            "units": array.units,
            "scale": 1.0,
            "offset": 0.0,
            "nodata": None,
            "gsd_m": array.gsd_m,
            "native_gsd_m": ARRAY_GSD_M[name],
            "transform": list(array.transform),
        }
    attributes = dict(group.attrs)
    assert attributes["key"] == sample.key
    assert attributes["crs"] == "EPSG:32633"
    assert attributes["transform"] == list(sample.arrays["s1"].transform)
    assert attributes["level"] == "L2A"
    assert attributes["dates"] == sample.dates
    assert attributes["labels"] == list(sample.labels)
    assert attributes["source"] == "bigearthnet-v1"


@pytest.mark.parametrize("codec", CODECS)
def test_payloads_lie_where_they_are_said_to(samples, codec):
    sample = samples[1]
    content, payloads = pack_sample(sample, codec)
    for name, array in sample.arrays.items():
        payload = payloads[name]
        stored = content[payload.offset : payload.offset + payload.length]
        assert google_crc32c.value(stored) == payload.crc32c
        out = np.empty_like(array.data)
        decode_into(stored, out, codec)
        assert np.array_equal(out, array.data)


def test_the_same_sample_gives_the_same_bytes(samples):
    assert pack_sample(samples[0], "lz4") == pack_sample(samples[0], "lz4")
    assert pack_sample(samples[0], "lz4") != pack_sample(samples[1], "lz4")


def test_entries_are_stored_and_payloads_come_first(samples):
    content, _ = pack_sample(samples[0], "zstd")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        assert archive.testzip() is None
    names = [entry.filename for entry in entries]
    assert names[:4] == [chunk_name(name) for name in samples[0].arrays]
    assert names[-1] == "zarr.json"
    assert {entry.compress_type for entry in entries} == {zipfile.ZIP_STORED}
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}


def test_uncompressed_payloads_have_constant_gaps_whatever_the_metadata(samples):
    long = Sample(
        **{
            **{name: getattr(samples[1], name) for name in ("source", "arrays", "crs", "level", "dates")},
            "key": "k" * 60,
            "labels": samples[1].labels,
            "attributes": {"note": "x" * 500},
        }
    )
    offsets = [[payload.offset for payload in pack_sample(sample, "none")[1].values()] for sample in (*samples, long)]
    assert len({tuple(row) for row in offsets}) == 1


def test_big_endian_arrays_are_stored_little_endian(samples):
    data = np.arange(18, dtype=">u2").reshape(2, 3, 3)
    array = StoredArray(data=data, bands=("B02", "B03"), units="DN", gsd_m=10)
    sample = Sample(key="k", source="folder", arrays={"s2_10m": array}, crs="", level="L2A", dates={})
    content, payloads = pack_sample(sample, "none")
    offset = payloads["s2_10m"].offset
    assert struct.unpack("<18H", content[offset : offset + 36]) == tuple(range(18))


@given(
    st.lists(st.tuples(st.from_regex(r"[a-z0-9_/.]{1,30}", fullmatch=True), st.binary(max_size=300)), max_size=9),
)
def test_the_zip_is_byte_for_byte_what_zipfile_writes(entries):
    entries = list(dict(entries).items())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries:
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o100444 << 16
            archive.writestr(entry, content)
    packed, offsets = pack_entries(entries)
    assert packed == buffer.getvalue()
    assert all(packed[offsets[name] : offsets[name] + len(content)] == content for name, content in entries)
