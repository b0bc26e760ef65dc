"""Real BigEarthNet pairs of both versions, where they are at hand (../shared/data); skipped elsewhere."""

import csv
import json

import numpy as np
import pytest
import rasterio

from sharding import verify
from sharding.sources import open_source
from sharding.sources.names import parse_s1, parse_s2_v2, patch_corner
from sharding.sources.raster import to_degrees
from tests.unit.sharding.conftest import SHARED, contents, run, run_build
from tests.unit.sharding.members import assert_pixels, open_members

pytestmark = pytest.mark.skipif(
    not (SHARED / "manifest.csv").exists(), reason="needs ../shared/data, the collection of real pairs"
)
ARGUMENTS = (
    "--source", "bigearthnet-v1", "--root", SHARED / "bigearthnet_v1",
    "--source", "reben", "--root", SHARED / "bigearthnet_v2",
)  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    with (SHARED / "manifest.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["dataset"].startswith("BigEarthNet")]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("real") / "out"
    ended = run_build(*ARGUMENTS, "--out", out, "--json")
    assert ended.code == 0, ended.err
    return out, ended.figures


def tifs(folder):
    planes = {}
    for path in sorted(folder.glob("*.tif")):
        with rasterio.open(path) as file:
            planes[path.stem.rpartition("_")[2]] = file.read(1)
    return planes


def pixels_of(row):
    """Every band of a pair of the manifest, and its map of land cover if it has one."""
    planes = {**tifs(SHARED / row["s1_path"]), **tifs(SHARED / row["s2_path"])}
    if row["label_path"].endswith("_reference_map.tif"):
        planes["CLC"] = tifs((SHARED / row["label_path"]).parent)["map"]
    return planes


def labels_of(row):
    """The labels of the manifest; those of the 43 have a mark in front."""
    return set(row["labels"].removeprefix("43:").split("|"))


@pytest.mark.parametrize(
    ("name", "root", "count"), [("bigearthnet-v1", "bigearthnet_v1", 60), ("reben", "bigearthnet_v2", 107)]
)
def test_each_source_reads_what_rasterio_reads(rows, name, root, count):
    by_key = {row["pair_id"].partition("/")[2]: row for row in rows if row["s1_path"].startswith(root)}
    source = open_source(name, str(SHARED / root))
    listing = source.list()
    assert [pair.key for pair in listing.pairs] == sorted(by_key)
    assert (len(by_key), listing.refused) == (count, [])
    for pair in listing.pairs:
        row, sample = by_key[pair.key], source.read(pair)
        stored = {b: p for a in sample.arrays.values() for b, p in zip(a.bands, a.data, strict=True)}
        expected = pixels_of(row)
        assert set(stored) == set(expected)
        for band, plane in expected.items():
            assert stored[band].dtype == plane.dtype
            assert np.array_equal(stored[band], plane)
        assert sample.crs == row["crs"]
        assert [(pair.lon, pair.lat)] == to_degrees(row["crs"], [(float(row["ulx"]) + 600, float(row["uly"]) - 600)])
        assert sample.dates["s1"].replace("-", "").replace(":", "") == row["date_s1"]
        official = sample.attributes["labels_43"] if row["labels"].startswith("43:") else sample.labels
        assert set(official) == labels_of(row)
        assert len(source.files(pair)) == len(expected) + (name == "bigearthnet-v1")  # and its JSON


def test_all_pairs_of_both_versions_are_in_one_verified_data_set(rows, built, tmp_path):
    out, figures = built
    assert figures["pairs_found"] == figures["samples_built"] == len(rows) == 167
    assert figures["refused"] == 0
    assert figures["kb_per_pair"] < 201
    assert figures["splits"]["unlisted"] == {"samples": 1, "shards": 1}
    assert any(note.startswith("1 of 60 pairs of ") and "in the split unlisted" in note for note in figures["notes"])
    ended = run(verify.main, out, "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["samples"] == len(rows)
    groups = open_members(out, tmp_path)
    for row in rows:
        group = groups[row["pair_id"].partition("/")[2]]
        assert_pixels(group, pixels_of(row))
        assert group.attrs["crs"] == row["crs"]
        assert group.attrs["transform"][2] == float(row["ulx"])
        assert group.attrs["transform"][5] == float(row["uly"])


def test_85_pairs_have_only_the_bands_at_10_m_and_a_map(built, tmp_path):
    groups = open_members(built[0], tmp_path)
    assert sum(set(group.arrays) == {"s1", "s2_10m", "reference_map"} for group in groups.values()) == 85


@pytest.mark.dist
def test_built_again_with_two_workers_it_is_the_same_bytes(built, tmp_path):
    out, _ = built
    assert run_build(*ARGUMENTS, "--out", tmp_path / "again", workers=2).code == 0
    assert contents(tmp_path / "again") == contents(out)
    assert "nothing to do" in run_build(*ARGUMENTS, "--out", out).out


def test_corners_from_names_are_those_of_the_real_files():
    compared = 0
    for name in ("bigearthnet_v1/BigEarthNet-S1-v1.0/*/*_VV.tif", "bigearthnet_v2/BigEarthNet-S2/*/*/*_B02.tif"):
        for path in sorted(SHARED.glob(name)):
            patch = parse_s1(path.parent.name) or parse_s2_v2(path.parent.name)
            with rasterio.open(path) as file:
                crs, left, top = patch_corner(patch)
                assert (file.crs.to_string(), file.transform.c, file.transform.f) == (crs, left, top), path
            compared += 1
    assert compared == 167


def test_the_folder_source_reads_the_same_pixels(rows, tmp_path):
    columns = ("key", "s1_path", "s2_path", "s1_bands", "s2_bands", "s1_units", "s2_level", "split")
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows[::12]:
            paths = [SHARED / row[half] for half in ("s1_path", "s2_path")]
            link = [tmp_path / f"{row['pair_id'].replace('/', '-')}-{half}" for half in ("s1", "s2")]
            for target, path in zip(link, paths, strict=True):
                target.symlink_to(path)
            split = row["split"] if row["split"] in ("train", "validation", "val", "test") else ""
            writer.writerow(
                [row["pair_id"], link[0].name, link[1].name, row["s1_bands"], row["s2_bands"], "dB", "L2A", split]
            )
    source = open_source("folder", str(tmp_path / "pairs.csv"))
    pairs = source.list().pairs
    assert len(pairs) == len(rows[::12])
    by_key = {row["pair_id"]: row for row in rows}
    for pair in pairs:
        sample = source.read(pair)
        row = by_key[pair.key]
        expected = {**tifs(SHARED / row["s1_path"]), **tifs(SHARED / row["s2_path"])}
        stored = {b: p for a in sample.arrays.values() for b, p in zip(a.bands, a.data, strict=True)}
        assert set(stored) == set(expected)
        assert all(np.array_equal(stored[band], plane) for band, plane in expected.items())
