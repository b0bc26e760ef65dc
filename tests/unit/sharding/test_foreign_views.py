"""An index over an archive is a data set like any other to `inspect`, `verify` and `subset`."""

import json
import os
import shutil

import numpy as np
import pytest

from sharding import extend, inspect, subset, verify
from sharding.dataset import open_dataset
from sharding.foreign_store import data_url, output_url, relative_data_url
from sharding.read_sample import find_sample, read_sample
from tests.unit.sharding.conftest import run, run_build
from tests.unit.sharding.foreign_reading import decode_all, lines_of
from tests.unit.sharding.terramesh_archive import L2A, SIDE, write_archive
from tests.unit.sharding.test_index_command import flip, make_tiles, run_index, tar


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """Four tiles with what rides along; not to be changed."""
    root = tmp_path_factory.mktemp("views")
    write_archive(root / "archive", make_tiles())
    ended = run_index(root / "archive", root / "index", "--riders")
    assert ended.code == 0, ended.err
    return root / "index"


@pytest.fixture
def copy(indexed, tmp_path):
    """Archive and index, to be changed."""
    root = shutil.copytree(indexed.parent / "archive", tmp_path / "archive")
    assert run_index(root, tmp_path / "index").code == 0
    return tmp_path


def test_the_summary_has_the_figures_of_the_archive(indexed):
    ended = run(inspect.main, "summary", indexed, "--json")
    assert ended.code == 0, ended.err
    figures = ended.figures
    assert (figures["samples"], figures["codec"]) == (4, "as stored")
    assert [array["name"] for array in figures["arrays"]] == ["s1", "s2", "dem", "ndvi", "lulc", "cloud_mask"]
    assert {band["samples"] for band in figures["bands"].values()} == {4}
    assert figures["mib"] > 0
    assert figures["kb_per_pair"] > 0
    assert run(inspect.main, "summary", indexed).code == 0


def test_a_sample_is_drawn_and_told(indexed, tmp_path):
    assert run(inspect.main, "sample", indexed, "tile_b", "--out", tmp_path / "b.png").code == 0
    assert (tmp_path / "b.png").read_bytes()[:4] == b"\x89PNG"
    ended = run(inspect.main, "cat", indexed, "tile_a", "--array", "s2", "--npy", tmp_path / "s2.npy")
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert told["attributes"]["key"] == "tile_a"
    array = told["arrays"]["s2"]
    assert (array["bands"], array["offset"], array["codec"], array["units"]) == (list(L2A), -1000, "blosc", "DN")
    assert "crc32c" in array
    expected = np.stack([decode_all(indexed)["tile_a"][band] for band in L2A])
    assert np.array_equal(np.load(tmp_path / "s2.npy"), expected)


def test_the_gallery_shows_every_sample(indexed, tmp_path):
    ended = run(inspect.main, "gallery", indexed, "--out", tmp_path / "gallery.html")
    assert ended.code == 0, ended.err
    page = (tmp_path / "gallery.html").read_text()
    assert all(f"tile_{name}" in page for name in "abcd")
    assert page.count("data:image/webp") >= 8


def test_a_subset_of_an_index_is_an_index(indexed, tmp_path):
    shutil.copytree(indexed, tmp_path / "index")
    ended = run(subset.main, tmp_path / "index", "--name", "two", "--where", "key=tile_b", "--where", "key=tile_d")
    assert ended.code == 0, ended.err
    store, manifest = open_dataset(f"{tmp_path / 'index'}@two")
    assert manifest.splits == {"val": 2}
    sample = read_sample(store, manifest, find_sample(store, manifest, "tile_d"))
    assert sample["s2"].data.shape == (12, SIDE, SIDE)
    assert run(verify.main, f"{tmp_path / 'index'}@two").code == 0


def test_verify_reads_every_payload(copy):
    ended = run(verify.main, copy / "index", "--json")
    assert ended.code == 0, ended.err
    assert (ended.figures["samples"], ended.figures["arrays"], ended.figures["strays"]) == (4, 8, [])


def test_verify_names_what_has_changed_since_it_was_indexed(copy):
    flip(tar(copy / "archive", "S2L2A"), "tile_c.zarr.zip", "bands/0.0.0.0")
    ended = run(verify.main, copy / "index", "--json")
    assert ended.code == 1
    (defect,) = ended.figures["defects"]
    assert defect["key"] == "tile_c"
    assert "CRC-32C of s2 does not match" in defect["message"]
    path = tar(copy / "archive", "S1RTC")
    os.truncate(path, path.stat().st_size - 5)
    path.with_name("more.tar").touch()
    assert any("the manifest says" in defect["message"] for defect in verified(copy))
    path.unlink()
    assert any(defect["file"] == f"val/S1RTC/{path.name}" for defect in verified(copy))


def verified(folder):
    return run(verify.main, folder / "index", "--json").figures["defects"]


def test_verify_names_what_changed_in_the_index(copy):
    path = next((copy / "index" / "index").iterdir())
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    assert any("damaged" in defect["message"] for defect in verified(copy))
    path.unlink()
    assert any("cannot be read" in defect["message"] for defect in verified(copy))


def test_a_difference_is_found_by_pixels(copy, tmp_path):
    shutil.copytree(copy / "archive", tmp_path / "other")
    assert run_index(tmp_path / "other", tmp_path / "same").code == 0
    assert run(inspect.main, "diff", copy / "index", tmp_path / "same").code == 0
    options = ("--headers-only", "--statistics-from", "4", "--unproven-offset", "0")
    assert run_index(tmp_path / "other", tmp_path / "quick", *options).code == 0
    ended = run(inspect.main, "diff", copy / "index", tmp_path / "quick", "--json")
    assert ended.code == 1
    assert ended.figures["pixels_differ"]["first"] == {"tile_a": "s2", "tile_d": "s2"}  # by their offset alone


def test_an_index_is_compared_with_a_build_of_the_same_archive(copy, tmp_path):
    assert run_build("--source", "terramesh", "--root", copy / "archive", "--out", tmp_path / "built").code == 0
    ended = run(inspect.main, "diff", copy / "index", tmp_path / "built", "--json")
    assert ended.code == 1, ended.err
    assert "array s2" in ended.figures["settings"]


def test_an_index_cannot_be_extended(copy):
    ended = run(extend.main, copy / "index", "--source", "terramesh", "--root", copy / "archive")
    assert ended.code == 2
    assert "cannot be extended" in ended.err


def test_an_index_that_lacks_its_archive_says_where_it_should_be(copy):
    (copy / "archive").rename(copy / "moved")
    ended = run(inspect.main, "sample", copy / "index", "tile_b", "--out", copy / "b.png")
    assert ended.code == 1
    assert f"{copy}/archive/val/S2L2A" in ended.err
    text = (copy / "index" / "manifest.json").read_text()
    (copy / "index" / "manifest.json").write_text(text.replace(f"{copy}/archive", f"{copy}/moved"))
    assert run(inspect.main, "sample", copy / "index", "tile_b", "--out", copy / "b.png").code == 0
    assert len(lines_of(copy / "index")) == 4


@pytest.mark.parametrize(
    ("root", "out", "told", "resolved"),
    [
        ("/a/archive", "/b/index", "/a/archive", "/a/archive"),
        ("/a/archive", "/a/archive/fusmae-index", "..", "/a/archive"),
        ("/a/archive/", "/a/archive/x/y", "../..", "/a/archive"),
        ("file:///a/archive", "/a/archive/x", "..", "/a/archive"),
        ("s3://bucket/a", "s3://bucket/a/fusmae-index", "..", "s3://bucket/a"),
        ("s3://bucket", "s3://bucket/fusmae-index", "..", "s3://bucket"),
        ("s3://bucket/a", "/b/index", "s3://bucket/a", "s3://bucket/a"),
        ("/a/archive", "s3://bucket/index", "/a/archive", "/a/archive"),
        ("/a/archive", "/a/archive2", "/a/archive", "/a/archive"),
    ],
)
def test_where_the_archive_lies_seen_from_its_index(indexed, root, out, told, resolved):
    _, manifest = open_dataset(str(indexed))
    assert relative_data_url(root, out) == told
    object.__setattr__(manifest, "data_url", told)
    assert data_url(out, manifest) == resolved


def test_an_index_in_its_archive_gets_a_folder_of_its_own():
    assert output_url("/a/b", "/a/b/") == "/a/b/fusmae-index"
    assert output_url("s3://bucket/a/", "s3://bucket/a") == "s3://bucket/a/fusmae-index"
    assert output_url("/a/b", "/a/c") == "/a/c"
