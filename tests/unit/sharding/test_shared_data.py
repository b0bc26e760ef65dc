"""Real BigEarthNet pairs of both versions, where they are at hand (../shared/data); skipped elsewhere."""

import csv
import json

import numpy as np
import pytest
import rasterio

from sharding import verify
from sharding.sources import open_source
from sharding.sources.names import parse_s1, parse_s2_v2, patch_corner
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
        expected = {**tifs(SHARED / row["s1_path"]), **tifs(SHARED / row["s2_path"])}
        group = groups[row["pair_id"].partition("/")[2]]
        assert_pixels(group, expected)
        assert group.attrs["crs"] == row["crs"]
        assert group.attrs["transform"][2] == float(row["ulx"])
        assert group.attrs["transform"][5] == float(row["uly"])


def test_85_pairs_have_only_the_bands_at_10_m(built, tmp_path):
    groups = open_members(built[0], tmp_path)
    assert sum(set(group.arrays) == {"s1", "s2_10m"} for group in groups.values()) == 85


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
