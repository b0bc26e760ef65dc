"""One sample as a picture and as numbers, and what differs between two data sets."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from sharding import codec, inspect
from tests.unit.sharding.conftest import run, run_build


def test_a_sample_is_a_picture(dataset, v1, tmp_path):
    key = v1.patches[0].key
    ended = run(inspect.main, "sample", dataset, key, "--out", tmp_path / "s.png")
    assert (ended.code, ended.out) == (0, f"{tmp_path / 's.png'}\n"), ended.err
    with Image.open(io.BytesIO((tmp_path / "s.png").read_bytes())) as image:
        assert image.format == "PNG"
        assert image.width > 1000 and image.height > 300
        colours = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 500


@pytest.mark.parametrize("view", ["sample", "cat"])
def test_a_wrong_key_is_told_with_the_nearest(dataset, v1, view, tmp_path):
    key = v1.patches[0].key
    more = ["--out", tmp_path / "s.png"] if view == "sample" else []
    ended = run(inspect.main, view, dataset, f"{key}0", *more)
    assert ended.code == 1
    assert f"has no sample '{key}0'; the nearest keys are {key}" in ended.err
    assert not (tmp_path / "s.png").exists()


def test_cat_tells_attributes_and_arrays(dataset, reben):
    patch = reben.patches[0]
    told = json.loads(run(inspect.main, "cat", dataset, patch.key).out)
    assert told["attributes"]["key"] == patch.key
    assert told["attributes"]["country"] == "Austria"
    assert told["arrays"]["s1"]["shape"] == [2, 120, 120]
    assert told["arrays"]["s2_20m"]["bands"] == ["B05", "B06", "B07", "B8A", "B11", "B12"]


def test_an_array_as_numpy_reads_it(dataset, reben, tmp_path):
    patch = reben.patches[0]
    arguments = ["cat", dataset, patch.key, "--array", "s2_10m", "--npy", tmp_path / "a.npy"]
    assert run(inspect.main, *arguments).code == 0
    expected = np.stack([patch.pixels[band] for band in ("B02", "B03", "B04", "B08")])
    assert np.array_equal(np.load(tmp_path / "a.npy"), expected)


def test_wrong_usage_of_cat(dataset, reben, tmp_path):
    key = reben.patches[0].key
    ended = run(inspect.main, "cat", dataset, key, "--npy", tmp_path / "a.npy")
    assert (ended.code, "name it with --array" in ended.err) == (2, True)
    ended = run(inspect.main, "cat", dataset, key, "--array", "dem")
    assert (ended.code, "the sample has no array 'dem'; it has s1, s2_10m" in ended.err) == (2, True)


@pytest.mark.parametrize("arguments", [("sample",), ("gallery",), ("cat", "--array", "s1")], ids=lambda a: a[0])
def test_an_output_that_no_file_can_be_is_wrong_usage(dataset, v1, arguments, tmp_path):
    view, *more = arguments
    key = [] if view == "gallery" else [v1.patches[0].key]
    option = "--npy" if view == "cat" else "--out"
    for place, text in ((tmp_path / "no" / "file", "there is no folder"), (tmp_path, "is a folder")):
        ended = run(inspect.main, view, dataset, *key, *more, option, place)
        assert (ended.code, ended.out) == (2, "")
        assert text in ended.err


def test_other_bytes_of_the_same_pixels_are_no_difference(fresh_v1, tmp_path, monkeypatch):
    """As another release of the encoder could write them."""
    a, b = tmp_path / "a", tmp_path / "b"
    assert run_build(*fresh_v1.arguments, "--out", a).code == 0
    monkeypatch.setitem(codec._BLOSC, "lz4", ("lz4", 9))
    assert run_build(*fresh_v1.arguments, "--out", b).code == 0
    assert [p.read_bytes() for p in sorted(a.rglob("*.tar"))] != [p.read_bytes() for p in sorted(b.rglob("*.tar"))]
    ended = run(inspect.main, "diff", a, b)
    assert (ended.code, ended.out.splitlines()[-1]) == (0, "the same samples, pixels, metadata and settings")


def test_the_help_of_diff_tells_its_exit_codes():
    assert "0 when nothing differs, 1 when something does" in " ".join(run(inspect.main, "diff", "--help").out.split())


def test_a_data_set_equals_itself_and_itself_in_another_codec_but_for_it(dataset, v1, reben, tmp_path):
    ended = run(inspect.main, "diff", dataset, dataset)
    assert (ended.code, ended.out.splitlines()[-1]) == (0, "the same samples, pixels, metadata and settings")
    out = tmp_path / "zstd"
    assert run_build(*v1.arguments, *reben.arguments, "--codec", "zstd", "--out", out).code == 0
    ended = run(inspect.main, "diff", dataset, out, "--json")
    assert ended.code == 1
    found = ended.figures
    assert found["settings"] == {"codec": ["lz4", "zstd"]}
    assert found["pixels_differ"]["count"] == found["metadata_differ"]["count"] == 0


def test_what_differs_is_counted_and_named(fresh_v1, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    assert run_build(*fresh_v1.arguments, "--out", a).code == 0
    changed, gone = fresh_v1.patches[0], fresh_v1.patches[1]
    import rasterio

    with rasterio.open(changed.s2_path / f"{changed.key}_B03.tif", "r+") as file:
        pixels = file.read(1)
        pixels[5, 6] += 1
        file.write(pixels, 1)
    shutil.rmtree(gone.s1_path)
    shutil.rmtree(gone.s2_path)
    (fresh_v1.root / "splits" / "train.csv").write_text("")
    assert run_build(*fresh_v1.arguments, "--out", b).code == 0
    ended = run(inspect.main, "diff", a, b, "--json")
    assert ended.code == 1
    found = ended.figures
    assert found["only_in_a"] == {"count": 1, "first": {gone.key: ""}}
    assert found["only_in_b"]["count"] == 0
    assert found["pixels_differ"] == {"count": 1, "first": {changed.key: "s2_10m"}}
    assert set(found["metadata_differ"]["first"].values()) == {"split"}
    assert found["metadata_differ"]["fields"] == {"split": found["metadata_differ"]["count"]}
    assert "B03" in found["statistics_differ"]["all"]
    text = run(inspect.main, "diff", a, b).out
    assert f"other pixels: 1 samples: {changed.key} (s2_10m)" in text


def test_pixels_are_compared_also_where_one_data_set_lacks_an_array(fresh_reben, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    assert run_build(*fresh_reben.arguments, "--out", a).code == 0
    import rasterio

    one, other = fresh_reben.patches[:2]
    for patch in (one, other):
        for band in ("B01", "B09"):
            (patch.s2_path / f"{patch.key}_{band}.tif").unlink()
    with rasterio.open(one.s2_path / f"{one.key}_B02.tif", "r+") as file:
        file.write(file.read(1) + 1, 1)
    assert run_build(*fresh_reben.arguments, "--out", b).code == 0
    found = run(inspect.main, "diff", a, b, "--json").figures
    assert found["pixels_differ"]["first"] == {one.key: "s2_60m, s2_10m", other.key: "s2_60m"}
    assert found["metadata_differ"]["fields"] == {"bands": 2}


def test_an_attribute_that_differs_is_named(dataset, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    for path in (copy / "metadata").iterdir():
        path.write_text(path.read_text().replace("Austria", "Österreich"))
    found = run(inspect.main, "diff", dataset, copy, "--json").figures
    assert not found["equal"]
    assert found["metadata_differ"]["fields"] == {"attributes.country": 6}
    assert "  attributes.country: 6 samples" in run(inspect.main, "diff", dataset, copy).out


def test_views_of_a_data_set_in_a_store(v1, tmp_path):
    assert run_build(*v1.arguments, "--out", "memory://looked-at").code == 0
    key = v1.patches[0].key
    assert run(inspect.main, "cat", "memory://looked-at", key).code == 0
    assert run(inspect.main, "gallery", "memory://looked-at", "--out", tmp_path / "g.html").code == 0
    assert run(inspect.main, "sample", "memory://looked-at", key, "--out", tmp_path / "s.png").code == 0


def test_what_is_no_data_set_is_told(tmp_path):
    ended = run(inspect.main, "gallery", tmp_path, "--out", tmp_path / "g.html")
    assert ended.code == 1
    assert "holds no finished data set" in ended.err
