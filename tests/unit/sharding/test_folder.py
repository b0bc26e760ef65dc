"""A CSV of pairs: what it can describe, and what is wrong with a row."""

import csv

import numpy as np
import pytest
import rasterio

from sharding.errors import ConfigError, DataError
from sharding.manifest import parse_manifest
from sharding.sources import open_source
from tests.trees import pixels_of, smooth, write_tif
from tests.unit.sharding.conftest import run_build

CORNER = (500_000, 5_000_000)
S2_BANDS = ("B02", "B03", "B04", "B8A")


@pytest.fixture
def pixels():
    rng = np.random.default_rng(7)
    scene = smooth(rng, 120)
    return {band: pixels_of(band, rng, scene) for band in ("VV", "VH", "B02", "B03", "B04", "B08", "B8A", "B01")}


@pytest.fixture
def root(tmp_path, pixels):
    """One half a folder of bands at their own resolutions, the other one file."""
    write_tif(tmp_path / "s1" / "a.tif", np.stack([pixels["VH"], pixels["VV"]]), CORNER)
    for band in ("B02", "B03", "B04"):
        write_tif(tmp_path / "s2" / f"scene_{band}.tif", pixels[band], CORNER)
    write_tif(tmp_path / "s2" / "B8A.tif", pixels["B8A"], CORNER, gsd=20)
    return tmp_path


ROW = {
    "key": "site/a",
    "s1_path": "s1/a.tif",
    "s2_path": "s2",
    "s1_bands": "VH,VV",
    "s2_bands": "B02,B03,B04,B8A",
    "s1_units": "dB",
    "s2_level": "L2A",
    "s2_units": "DN",
    "s1_date": "2020-01-02",
    "s2_date": "2020-01-03",
    "split": "validation",
    "labels": "Water|Forest",
}


def write_table(root, *rows, name="pairs.csv"):
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with (root / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return root / name


def read_one(root):
    source = open_source("folder", str(root / "pairs.csv"))
    listing = source.list()
    assert not listing.refused
    return source.read(listing.pairs[0])


def test_bands_go_by_name_whatever_their_order_in_the_file(root, pixels):
    write_table(root, ROW)
    sample = read_one(root)
    assert sample.arrays["s1"].bands == ("VV", "VH")
    assert np.array_equal(sample.arrays["s1"].data, np.stack([pixels["VV"], pixels["VH"]]))
    assert sample.arrays["s2_10m"].bands == ("B02", "B03", "B04")
    assert np.array_equal(sample.arrays["s2_20m"].data, pixels["B8A"][None])
    assert sample.arrays["s2_20m"].gsd_m == 20
    assert (sample.level, sample.split, sample.labels) == ("L2A", "val", ("Water", "Forest"))
    assert sample.dates == {"s1": "2020-01-02", "s2": "2020-01-03"}
    assert sample.crs == "EPSG:32633"


def test_other_names_of_the_columns_and_of_the_table(root):
    row = {"pair_id" if c == "key" else f"date_{c[:2]}" if c.endswith("date") else c: v for c, v in ROW.items()}
    write_table(root, row, name="manifest.csv")
    listing = open_source("folder", str(root)).list()
    assert [pair.key for pair in listing.pairs] == ["site/a"]
    assert (listing.pairs[0].s1_date, listing.pairs[0].s2_date) == ("2020-01-02", "2020-01-03")


def test_a_file_of_many_bands_at_one_resolution(root, pixels):
    stack = np.stack([pixels["B02"], pixels["B08"], pixels["B03"]])
    write_tif(root / "s2.tif", stack, CORNER, descriptions=("B2", "B8", "B3"))
    write_table(root, {**ROW, "s2_path": "s2.tif", "s2_bands": "B02 B08 B03"})
    sample = read_one(root)
    assert sample.arrays["s2_10m"].bands == ("B02", "B03", "B08")
    assert np.array_equal(sample.arrays["s2_10m"].data, stack[[0, 2, 1]])


def test_linear_power_level_1c_and_an_offset_are_told(root, pixels):
    linear = 10 ** (np.stack([pixels["VH"], pixels["VV"]]) / 10)
    write_tif(root / "s1" / "a.tif", linear, CORNER)
    write_table(root, {**ROW, "s1_units": "linear", "s2_level": "L1C", "s2_offset": "-1000"})
    sample = read_one(root)
    assert sample.arrays["s1"].units == "linear"
    assert sample.level == "L1C"
    assert sample.arrays["s2_10m"].radiometric_offset == -1000
    assert sample.arrays["s1"].radiometric_offset == 0


@pytest.mark.parametrize("dtype", ["int16", "int32", "uint8"])
def test_integers_that_uint16_holds_are_taken(root, pixels, dtype):
    plane = (pixels["B02"] % 200).astype(dtype)
    write_tif(root / "s2" / "scene_B02.tif", plane, CORNER)
    write_table(root, ROW)
    stored = read_one(root).arrays["s2_10m"].data[0]
    assert stored.dtype == np.uint16
    assert np.array_equal(stored, plane)


def test_pairs_without_coordinates_are_kept(root, pixels):
    write_tif(root / "s1" / "a.tif", np.stack([pixels["VH"], pixels["VV"]]), CORNER, crs=None)
    write_tif(root / "s2.tif", np.stack([pixels["B02"], pixels["B03"]]), CORNER, crs=None)
    write_table(root, {**ROW, "s2_path": "s2.tif", "s2_bands": "B02,B03"})
    sample = read_one(root)
    assert sample.crs == ""
    assert sample.centre is None


@pytest.mark.parametrize("half", ["s1", "s2"])
def test_the_centre_comes_from_the_header_and_no_pixel_is_read(root, pixels, half, monkeypatch):
    """Whether the half is one file or a folder of bands."""
    for band in ("VV", "VH"):
        write_tif(root / "bands" / f"{band}.tif", pixels[band], CORNER)
    write_table(root, {**ROW, "s1_path": {"s1": "s1/a.tif", "s2": "bands"}[half]})
    source = open_source("folder", str(root / "pairs.csv"))
    [pair] = source.list().pairs
    expected = source.read(pair).centre
    assert expected == ("EPSG:32633", CORNER[0] + 600, CORNER[1] - 600)

    def unread(*_, **__):
        raise AssertionError("pixels were read")

    monkeypatch.setattr(rasterio.io.DatasetReader, "read", unread, raising=True)
    assert source.centre(pair) == expected
    with pytest.raises(AssertionError, match="pixels were read"):
        source.read(pair)


def test_a_raster_without_a_header_is_refused_when_pairs_are_placed(root, tmp_path):
    write_table(root, ROW, {**ROW, "key": "b", "s1_path": "broken.tif"})
    (root / "broken.tif").write_bytes(b"no tiff")
    arguments = ["--source", "folder", "--root", root / "pairs.csv", "--splits", "geographic"]
    ended = run_build(*arguments, "--out", tmp_path / "out", "--max-bad", 1, "--json")
    assert ended.code == 0, ended.err
    assert ended.figures["refused_by_reason"] == {"corrupt file": 1}
    assert ended.figures["samples_built"] == 1


def test_rows_without_a_split_are_unlisted_when_others_have_one(root, tmp_path):
    write_table(root, ROW, {**ROW, "key": "b", "split": ""}, {**ROW, "key": "c", "split": ""})
    ended = run_build("--source", "folder", "--root", root / "pairs.csv", "--out", tmp_path / "out", "--json")
    assert {name: split["samples"] for name, split in ended.figures["splits"].items()} == {"val": 1, "unlisted": 2}


def test_columns_that_nothing_reads_are_told_once(root):
    write_table(root, {**ROW, "licence": "CC0", "photographer": "me"})
    listing = open_source("folder", str(root / "pairs.csv")).list()
    assert listing.notes == ["columns of pairs.csv that nothing reads: licence, photographer"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": ""}, "row 2: key is empty"),
        ({"key": "a.b"}, "row 2: the key 'a.b' may have letters, digits"),
        ({"key": "../a"}, "row 2: the key '../a' may have"),
        ({"key": "k" * 92}, "91 at most"),
        ({"s1_bands": "VV,HH"}, "row 2: s1_bands has 'HH'; known are VV, VH"),
        ({"s2_bands": "B02,B13"}, "row 2: s2_bands has 'B13'; known are B01, B02"),
        ({"s2_bands": "VV"}, "row 2: s2_bands has 'VV'"),
        ({"s2_bands": "B02,B2"}, "row 2: s2_bands names a band twice"),
        ({"s1_units": "amplitude"}, "row 2: s1_units is 'amplitude'; write dB or linear"),
        ({"s2_units": "radiance"}, "row 2: s2_units is 'radiance'; write DN or reflectance"),
        ({"s2_level": "L3"}, "row 2: s2_level is 'L3'; write L1C or L2A"),
        ({"s2_offset": "yes"}, "row 2: s2_offset is 'yes'"),
        ({"s1_scale": "-1"}, "row 2: s1_scale is '-1'"),
        ({"s1_nodata": "nan"}, "row 2: s1_nodata is 'nan'; write a number"),
        ({"s1_date": "last May"}, "row 2: s1_date is 'last May'; write 2020-01-31 or 2020-01-31T10:20:30"),
        ({"lon": "16.2"}, "row 2: lon and lat are '16.2' and ''; give both in degrees"),
        ({"lon": "16.2", "lat": "97"}, "row 2: lon and lat are '16.2' and '97'"),
        ({"s2_path": "a.tif|b.tif"}, "row 2: s2_path names 2 files and s2_bands"),
        ({"s2_path": "a.tif|b.tif|c.tif", "s2_bands": "B02,B03|B04"}, "row 2: s2_path names 3 files and s2_bands"),
        ({"split": "holdout"}, "row 2: 'holdout' is no split; write train, val or test"),
    ],
)
def test_a_wrong_row_is_named_with_its_number(root, change, message):
    write_table(root, {**ROW, **change})
    with pytest.raises(DataError) as told:
        open_source("folder", str(root / "pairs.csv")).list()
    assert message in str(told.value)
    assert "pairs.csv" in str(told.value)


def test_duplicate_keys_are_named_with_both_rows(root):
    write_table(root, ROW, {**ROW, "key": "site/b"}, ROW)
    with pytest.raises(DataError, match=r"row 4: the key 'site/a' is in row 2 already"):
        open_source("folder", str(root / "pairs.csv")).list()


def test_missing_columns_are_named(root):
    write_table(root, {"key": "a", "s1_path": "b"})
    with pytest.raises(
        DataError, match="row 1: the columns s2_path, s1_bands, s2_bands, s1_units, s2_level are missing"
    ):
        open_source("folder", str(root / "pairs.csv")).list()


def test_a_folder_without_a_table_is_wrong_usage(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no .*pairs\.csv"):
        open_source("folder", str(tmp_path)).list()


def test_all_wrong_rows_are_counted_and_the_first_three_named(root):
    write_table(root, *({**ROW, "key": f"k{i}", "s1_units": "" if i % 2 else "dB"} for i in range(10)))
    with pytest.raises(DataError, match=r"row 3: s1_units is empty; row 5: .*; row 7: .* \(and 2 more rows\)$"):
        open_source("folder", str(root / "pairs.csv")).list()


def refusal(root, tmp_path):
    ended = run_build("--source", "folder", "--root", root / "pairs.csv", "--out", tmp_path / "out")
    assert ended.code == 1
    assert not (tmp_path / "out" / "manifest.json").exists()
    return ended.err


@pytest.mark.parametrize(
    ("bands", "descriptions", "message"),
    [
        ("B03,B02", ("B02", "B03"), "it names its bands B02, B03 where B03, B02 were declared"),
        ("B02,B03,B04", ("B02", "B03"), "it has 2 bands where B02, B03, B04 were declared"),
    ],
)
def test_a_file_that_contradicts_the_declared_bands_is_refused(root, pixels, bands, descriptions, message, tmp_path):
    write_tif(root / "s2.tif", np.stack([pixels["B02"], pixels["B03"]]), CORNER, descriptions=descriptions)
    write_table(root, ROW, {**ROW, "key": "b", "s2_path": "s2.tif", "s2_bands": bands})
    assert message in refusal(root, tmp_path)


def test_a_file_named_after_another_band_is_refused(root, pixels, tmp_path):
    write_table(root, {**ROW, "s2_path": "s2/scene_B03.tif", "s2_bands": "B04"})
    assert "it names its bands B03 where B04 were declared" in refusal(root, tmp_path)


def test_two_files_of_one_band_are_refused(root, pixels, tmp_path):
    write_tif(root / "s2" / "B2.tif", pixels["B02"], CORNER)
    write_table(root, ROW)
    assert "s2/B2.tif and s2/scene_B02.tif are both B02; keep one" in refusal(root, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"s1_path": "s1/none.tif"}, "s1/none.tif: the S1 half is missing; put the file there or drop the row (row 2)"),
        ({"s2_path": "nowhere"}, "nowhere: the S2 half is missing: no GeoTIFF of a band lies there (row 2)"),
        ({"s2_bands": "B02,B05"}, "s2: it holds no B05, which the row declares (row 2)"),
    ],
)
def test_what_is_not_there_is_refused_with_its_row(root, tmp_path, change, message):
    write_table(root, {**ROW, **change}, {**ROW, "key": "fine"})
    assert message in refusal(root, tmp_path)


def test_arrays_unlike_the_rest_are_refused_naming_both(root, pixels, tmp_path):
    write_tif(root / "small_s1.tif", np.stack([pixels["VH"], pixels["VV"]])[:, :64, :64], CORNER)
    write_tif(root / "small_s2.tif", pixels["B02"][:64, :64], CORNER)
    small = {**ROW, "key": "small", "s1_path": "small_s1.tif", "s2_path": "small_s2.tif", "s2_bands": "B02"}
    write_table(root, *({**ROW, "key": f"k{i}"} for i in range(4)), small)
    said = refusal(root, tmp_path)
    assert "s1 of small is 64x64 float32 dB at 10 m, of k" in said
    assert "120x120 float32 dB at 10 m" in said


def test_two_processing_levels_are_refused_naming_both(root, tmp_path):
    """However few the arrays have in common: the level is the data set's."""
    rows = [{**ROW, "key": f"k{i}", "s2_level": "l2a" if i == 1 else "L2A"} for i in range(4)]
    top = {**ROW, "key": "top", "s2_bands": "B8A", "s2_level": "L1C"}
    write_table(root, *({**row, "s2_bands": "B02,B03,B04"} for row in rows), top)
    said = refusal(root, tmp_path)
    assert "1 of 5 pairs are refused (1 unlike the data set)" in said
    assert "s2: S2 of top is L1C, of k" in said
    assert " L2A; one data set holds one kind, build another from the rest" in said
    arguments = ["--source", "folder", "--root", root / "pairs.csv", "--out", tmp_path / "out", "--max-bad", 1]
    assert run_build(*arguments).code == 0
    manifest = parse_manifest((tmp_path / "out" / "manifest.json").read_bytes(), "")
    assert [source.levels for source in manifest.sources] == [("L2A",)]
