import json
import zipfile

import numcodecs
import numpy as np
import pytest
import zarr

from sharding.errors import StorageError
from sharding.sources.base import PairError
from sharding.sources.blosc_part import decode_part
from sharding.sources.tree import Tree
from sharding.sources.zarr_zip_part import GroupFile, GroupFiles
from tests.unit.sharding.zarr_zips import BLOSC, write_group

SERIES = np.random.default_rng(0).integers(0, 900, (6, 4, 3, 40, 44)).astype(np.int16)


def opened(root, name="a.zarr.zip"):
    tree = Tree(str(root))
    return GroupFile(tree, tree.file(name))


@pytest.fixture
def bytes_read(monkeypatch):
    """Bytes of each read from a store."""
    from sharding.store import Store

    counts, read_range = [], Store.read_range

    def counted(self, path, start, end):
        counts.append(end - start)
        return read_range(self, path, start, end)

    monkeypatch.setattr(Store, "read_range", counted)
    return counts


@pytest.mark.parametrize("shuffle", [0, 1, 2])
@pytest.mark.parametrize("codec", ["lz4", "lz4hc", "blosclz", "zstd", "zlib"])
def test_any_part_of_a_blosc_buffer_is_what_the_whole_has_there(codec, shuffle):
    rng = np.random.default_rng(1)
    for dtype, size in (("u1", 10), ("<i2", 1000), ("<f2", 200_003), ("<f8", 50_001), ("<U7", 20_000)):
        values = (np.arange(size) // 7 % 900 + rng.integers(0, 3, size)).astype(dtype)
        raw = values.tobytes()
        for level in (0, 5):
            buffer = bytes(numcodecs.Blosc(codec, level, shuffle).encode(values))
            total = len(raw)
            for start, stop in ((0, total), (0, 1), (total - 1, total), (total // 3, total // 2), (total // 2, total)):
                part = decode_part(lambda at, count: buffer[at : at + count], len(buffer), total, start, stop)  # noqa: B023
                assert part == raw[start:stop], (dtype, level, start, stop)


def test_a_broken_blosc_buffer_is_an_error():
    buffer = bytearray(BLOSC.encode(SERIES))

    def decode(content):
        return decode_part(lambda at, count: bytes(content[at : at + count]), len(content), SERIES.nbytes, 0, 100)

    with pytest.raises(ValueError, match="shorter than its header"):
        decode(buffer[:9])
    with pytest.raises(ValueError, match="a Blosc buffer of"):
        decode(buffer[:-1])
    buffer[16:20] = (2**31).to_bytes(4, "little")
    with pytest.raises(ValueError, match="outside"):
        decode(buffer)


def test_no_broken_blosc_buffer_ends_the_process():
    rng = np.random.default_rng(2)
    raw = SERIES.tobytes()
    buffer = bytes(numcodecs.Blosc("lz4", 5, 1, blocksize=8192).encode(SERIES))
    failed = 0
    for _ in range(3000):
        content = bytearray(buffer)
        for place in rng.integers(0, 140 if rng.random() < 0.7 else len(content), rng.integers(1, 6)):
            content[place] = rng.integers(0, 256)
        whole = bytes(content)
        try:
            part = decode_part(lambda at, count: whole[at : at + count], len(whole), len(raw), 40_000, 60_000)  # noqa: B023
        except (ValueError, RuntimeError):
            failed += 1
        else:
            assert len(part) == 20_000
    assert failed > 500


@pytest.mark.parametrize("compressor", [BLOSC, None, numcodecs.Zlib(1), numcodecs.Zstd(1)], ids=str)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    "chunks", [(1, 1, 3, 40, 44), (6, 1, 3, 40, 44), (6, 4, 3, 40, 44), (4, 3, 2, 40, 20), (1, 1, 1, 21, 40)]
)
def test_a_part_is_what_zarr_reads_there_however_the_array_is_chunked(tmp_path, compressor, compression, chunks):
    path = tmp_path / "a.zarr.zip"
    write_group(path, {"bands": SERIES}, {"bands": chunks}, compressor, compression=compression)
    group = opened(tmp_path)
    with zarr.storage.ZipStore(path, mode="r") as store:
        expected = zarr.open_group(store, mode="r")["bands"]
        for place in ((0, 0), (5, 3), (3, 1), (4, 2, 1), (2,), ()):
            part = group.part("bands", *place)
            assert part.dtype == np.int16
            assert np.array_equal(part, expected[place] if place else expected[:]), place


def test_a_chunk_that_is_not_stored_is_the_fill_value(tmp_path):
    write_group(tmp_path / "a.zarr.zip", {"mask": np.zeros((2, 3, 4), np.uint8), "name": np.array(["a", ""])})
    group = opened(tmp_path)
    assert not group.part("mask", 1).any()
    assert group.part("mask", 1).shape == (3, 4)
    assert [str(group.part("name", row)) for row in (0, 1)] == ["a", ""]


def test_one_sample_of_many_in_a_chunk_is_read_alone(tmp_path, bytes_read):
    series = np.random.default_rng(0).integers(0, 9000, (32, 1, 12, 64, 64)).astype(np.int16)
    path = tmp_path / "a.zarr.zip"
    write_group(path, {"bands": series})
    group = opened(tmp_path)
    bytes_read.clear()
    assert np.array_equal(group.part("bands", 17, 0), series[17, 0])
    assert sum(bytes_read) < path.stat().st_size / 5


def test_opening_and_small_arrays_do_not_read_the_pixels(tmp_path, bytes_read):
    path = tmp_path / "a.zarr.zip"
    write_group(
        path,
        {
            "sample": np.array(["a", "b"]),
            "bands": np.random.default_rng(0).integers(0, 9000, (2, 1_000_000), np.int16),
            "z": [1],
        },
    )
    group = opened(tmp_path)
    assert group.array("sample").tolist() == ["a", "b"]
    assert group.array("z").tolist() == [1]
    assert sum(bytes_read) < 500_000


def test_a_flipped_bit_in_a_whole_chunk_is_found(tmp_path):
    path = tmp_path / "a.zarr.zip"
    write_group(path, {"bands": SERIES}, {"bands": (1, 1, 3, 40, 44)})
    with zipfile.ZipFile(path) as file:
        middle = file.getinfo("bands/2.1.0.0.0").header_offset + 2000
    content = bytearray(path.read_bytes())
    content[middle] ^= 1
    path.write_bytes(content)
    group = opened(tmp_path)
    assert np.array_equal(group.part("bands", 2, 0), SERIES[2, 0])
    with pytest.raises(PairError, match=r"'bands' cannot be decoded at \[2, 1\]") as caught:
        group.part("bands", 2, 1)
    assert (caught.value.reason, caught.value.file) == ("corrupt file", "a.zarr.zip")


def test_what_is_no_zip_no_group_or_cut_short_is_a_corrupt_file(tmp_path):
    path = tmp_path / "a.zarr.zip"
    for content, message in ((b"", "no whole ZIP"), (b"PK\x03\x04" * 100, "no whole ZIP")):
        path.write_bytes(content)
        with pytest.raises(PairError, match=message):
            opened(tmp_path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("zarr.json", "{}")
    with pytest.raises(PairError, match="no Zarr group of version 2"):
        opened(tmp_path)
    write_group(path, {"bands": SERIES})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(PairError, match="no whole ZIP"):
        opened(tmp_path)


def test_an_entry_that_lies_outside_of_the_file_is_a_corrupt_file(tmp_path):
    path = tmp_path / "a.zarr.zip"
    write_group(path, {"bands": SERIES})
    content = bytearray(path.read_bytes())
    at = content.rindex(b"bands/0.0.0.0.0") - 4  # of the directory's entry, where the bytes begin
    content[at : at + 4] = (2**30).to_bytes(4, "little")
    path.write_bytes(content)
    group = opened(tmp_path)
    with pytest.raises(PairError, match="so none from 1073741824") as caught:
        group.part("bands", 0, 0)
    assert caught.value.reason == "corrupt file"


def test_broken_metadata_missing_arrays_and_foreign_codecs_name_the_array(tmp_path):
    path = tmp_path / "a.zarr.zip"
    write_group(path, {"bands": SERIES})
    group = opened(tmp_path)
    with pytest.raises(PairError, match="no array 'x_'"):
        group.part("x_", 0)
    with pytest.raises(PairError, match=r"its shape is \(6, 4, 3, 40, 44\)"):
        group.part("bands", 6, 0)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("y/.zarray", "{")
        config = {"zarr_format": 2, "shape": [2], "chunks": [2], "dtype": "<i2", "order": "C", "filters": None}
        file.writestr("p/.zarray", json.dumps({**config, "compressor": {"id": "pickle"}}))
        file.writestr("p/0", b"cos\nsystem\n")
    group = opened(tmp_path)
    with pytest.raises(PairError, match="the metadata of 'y' cannot be read"):
        group.part("y", 0)
    with pytest.raises(PairError, match="codec 'pickle'"):
        group.part("p", 0)


def test_an_error_of_the_disk_is_not_taken_for_a_broken_file(tmp_path, monkeypatch):
    write_group(tmp_path / "a.zarr.zip", {"bands": SERIES})
    group = opened(tmp_path)

    def fail(self, path, start, end):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("sharding.store.Store.read_range", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        group.part("bands", 0, 0)


def test_the_latest_used_groups_are_kept_until_their_files_change(tmp_path):
    for name in "abc":
        write_group(tmp_path / name, {"sample": [1]})
    groups = GroupFiles(Tree(str(tmp_path)), 2)
    first = groups.open("a")
    assert groups.open("a") is first
    groups.open("b")
    assert groups.open("a") is first
    groups.open("c")
    assert groups.open("a") is first
    groups.open("b"), groups.open("c")
    assert groups.open("a") is not first
    write_group(tmp_path / "a", {"sample": [1, 2]})
    assert groups.open("a").shape("sample") == (2,)
    with pytest.raises(PairError) as caught:
        groups.open("d")
    assert caught.value.reason == "missing half"
