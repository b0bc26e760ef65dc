"""`python -m sharding.index` on SSL4EO-S12 v1.1: samples of chunks of any kind are what zarr reads."""

import re
import shutil

import fsspec
import numpy as np
import pytest

from sharding.store import Store
from tests.unit.sharding.conftest import SHARED
from tests.unit.sharding.foreign_reading import assert_planes, decode_all, lines_of, manifest_of
from tests.unit.sharding.test_index_command import run_index
from tests.unit.sharding.test_source_ssl4eo_v11 import IDS, NAME, stored, write_s1, write_s2

CONSTRUCTED = SHARED.parent / "layouts" / "constructed_ssl4eos12_v1.1"
S1_TIMES = (0, 2, 3, 1)
"""The timestamps of S1 that are nearest to those of S2."""


def run(root, out, *arguments, **options):
    return run_index(root, out, *arguments, source="ssl4eo-s12-v1.1", **options)


def write(root, s1_chunks=(1, 1), s2_chunks=(1, 1), ids=IDS[:2]):
    """The samples of S1 in another order than those of S2."""
    write_s1(root, ids=ids[::-1], chunks=s1_chunks)
    write_s2(root, ids=ids, chunks=s2_chunks)
    return root


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write(tmp_path_factory.mktemp("ssl4eo"))


def assert_as_zarr_reads(out, root, ids=IDS[:2]):
    found = decode_all(out)
    assert list(found) == [f"{name}_{time}" for name in ids for time in range(4)]
    files = {half: root / "train" / folder / NAME for half, folder in (("s1", "S1GRD"), ("s2", "S2L2A"))}
    for row, name in enumerate(ids):
        for time, s1_time in enumerate(S1_TIMES):
            for half, at in (("s1", (len(ids) - 1 - row, s1_time)), ("s2", (row, time))):
                bands = [band.upper() for band in stored(files[half], "band").tolist()]
                planes = dict(zip(bands, stored(files[half], "bands")[at], strict=True))
                assert_planes(found[f"{name}_{time}"], planes)
            assert found[f"{name}_{time}"]["offset"] == -1000
    return found


@pytest.mark.parametrize(
    ("s1_chunks", "s2_chunks"),
    [((1, 1), (1, 1)), ((2, 4), (1, 4)), ((2, 1), (2, 4))],
    ids=["one each", "by location", "all in one"],
)
def test_samples_are_what_zarr_reads_however_many_a_chunk_holds(tmp_path, s1_chunks, s2_chunks):
    root = write(tmp_path / "archive", s1_chunks, s2_chunks)
    ended = run(root, tmp_path / "out", "--json")
    assert ended.code == 0, ended.err
    assert_as_zarr_reads(tmp_path / "out", root)
    assert ended.figures["samples"] == 8
    assert ended.figures["arrays"].keys() == {"s1", "s2"}
    (shard,) = manifest_of(tmp_path / "out").shards
    assert [part.path for part in shard.parts] == [f"train/S2L2A/{NAME}", f"train/S1GRD/{NAME}"]
    line = lines_of(tmp_path / "out")[1]
    assert line["dates"]["s2"][:10] == "2020-06-04"
    assert line["dates"]["s1"][:10] == "2020-06-07"


def test_the_mask_of_clouds_rides_along_where_it_is_asked_for(archive, tmp_path):
    ended = run(archive, tmp_path / "out", "--riders", "--json")
    assert ended.code == 0, ended.err
    found = decode_all(tmp_path / "out")
    mask = stored(archive / "train" / "S2L2A" / NAME, "cloud_mask")
    assert_planes(found[f"{IDS[0]}_1"], {"CLOUD": mask[0, 1]})
    assert any("7 samples store no chunk of cloud_mask" in note for note in ended.figures["notes"])


def test_headers_only_is_the_same_index_with_the_checksums_of_the_zip(archive, tmp_path):
    ended = run(archive, tmp_path / "out", "--headers-only", "--statistics-from", "2", "--json")
    assert ended.code == 0, ended.err
    assert ended.figures["statistics_from"] == 2
    assert_as_zarr_reads(tmp_path / "out", archive)
    assert manifest_of(tmp_path / "out").statistics["train"]["B02"].count == 2 * 264 * 264
    assert run(archive, tmp_path / "full").code == 0
    dull = [{**line, "attributes": None} for line in lines_of(tmp_path / "out")]
    assert dull == [{**line, "attributes": None} for line in lines_of(tmp_path / "full")]


def test_a_file_without_its_other_half_is_told_and_left_out(archive, tmp_path):
    root = shutil.copytree(archive, tmp_path / "archive")
    other = NAME.replace("000001", "000002")
    shutil.copy(root / "train" / "S1GRD" / NAME, root / "train" / "S1GRD" / other)
    ended = run(root, tmp_path / "out", "--json")
    assert ended.code == 0, ended.err
    assert ended.figures["refused_by_reason"] == {"missing half": 1}
    assert other in (tmp_path / "out" / "bad.jsonl").read_text()
    assert_as_zarr_reads(tmp_path / "out", root)


def test_a_location_without_its_other_half_is_told_and_left_out(tmp_path):
    root = tmp_path / "archive"
    write_s1(root, ids=IDS[:1])
    write_s2(root, ids=IDS[:2])
    ended = run(root, tmp_path / "out", "--json")
    assert ended.code == 0, ended.err
    assert ended.figures["refused_by_reason"] == {"missing half": 1}
    assert ended.figures["samples"] == 4


def test_files_of_no_list_are_in_no_split(archive, tmp_path):
    root = shutil.copytree(archive, tmp_path / "archive")
    (root / "splits").mkdir()
    (root / "splits" / "ssl4eos12_train.txt").write_text("another.zarr.zip\n")
    ended = run(root, tmp_path / "out", "--json")
    assert ended.code == 0, ended.err
    assert ended.figures["splits"].keys() == {"unlisted"}
    assert any("in no list of splits" in note for note in ended.figures["notes"])


@pytest.mark.parametrize("damage", ["a flipped bit", "a cut"])
def test_a_damaged_file_is_named(archive, tmp_path, damage):
    root = shutil.copytree(archive, tmp_path / "archive")
    path = root / "train" / "S2L2A" / NAME
    content = bytearray(path.read_bytes())
    if damage == "a flipped bit":
        content[content.index(b"bands/1.2.0.0.0") + 1000] ^= 1
    else:
        del content[-5000:]
    path.write_bytes(content)
    ended = run(root, tmp_path / "out")
    assert ended.code == 1
    assert f"train/S2L2A/{NAME}" in ended.err
    assert "fetch" in ended.err
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_location_that_lost_its_pixels_is_refused(tmp_path):
    root = tmp_path / "archive"
    write_s1(root, ids=IDS[:2])
    pixels = np.full((2, 4, 12, 264, 264), 1500, np.int16)
    pixels[1, 2] = 0
    write_s2(root, ids=IDS[:2], bands=pixels)
    for options in ((), ("--headers-only", "--statistics-from", "1")):
        ended = run(root, tmp_path / f"out{len(options)}", *options, "--max-bad", "1", "--json")
        assert ended.code == 0, ended.err
        assert ended.figures["refused_by_reason"] == {"all nodata": 1}
        assert f"{IDS[1]}_2" not in decode_all(tmp_path / f"out{len(options)}")


def test_an_option_that_means_nothing_here_is_refused(archive, tmp_path):
    ended = run(archive, tmp_path / "out", "--unproven-offset", "0")
    assert ended.code == 2
    assert "option of terramesh" in ended.err


def test_an_object_store_is_indexed_by_ranges_and_asked_for_each_chunk_once(archive, tmp_path, monkeypatch):
    memory = fsspec.filesystem("memory")
    url = f"memory://{re.sub('[^a-z0-9]', '', str(tmp_path).lower())}"
    memory.put(f"{archive}/", f"{url}/data", recursive=True)
    asked = []
    real = Store.read_range
    monkeypatch.setattr(
        Store, "read_range", lambda self, path, start, end: asked.append(end - start) or real(self, path, start, end)
    )
    ended = run(f"{url}/data", f"{url}/index", "--json")
    assert ended.code == 0, ended.err
    pixels = sum(size for size in asked if size > 100_000)
    total = sum(file.stat().st_size for file in archive.rglob("*.zip"))
    assert pixels < 2.3 * total  # the first samples are also read to learn what they look like
    memory.get(f"{url}/index/", str(tmp_path / "copy"), recursive=True)
    assert manifest_of(tmp_path / "copy").data_url == f"{url}/data"
    assert run(archive, tmp_path / "local").code == 0
    assert manifest_of(tmp_path / "copy").fingerprint == manifest_of(tmp_path / "local").fingerprint
    assert run(f"{url}/data", f"{url}/index", "--json").figures["finished_before"]


@pytest.mark.skipif(not CONSTRUCTED.exists(), reason="needs ../shared/layouts, a real location of SSL4EO-S12")
def test_a_real_location_is_what_zarr_reads(tmp_path):
    ended = run(CONSTRUCTED, tmp_path / "out", "--json")
    assert ended.code == 0, ended.err
    found = decode_all(tmp_path / "out")
    assert len(found) == 2
    for half in ("S1GRD", "S2L2A"):
        (path,) = (CONSTRUCTED / "val" / half).iterdir()
        bands = [band.upper() for band in stored(path, "band").tolist()]
        for time, planes in enumerate(found.values()):
            assert_planes(planes, dict(zip(bands, stored(path, "bands")[0, time], strict=True)))
