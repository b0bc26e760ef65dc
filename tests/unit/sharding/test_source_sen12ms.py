"""SEN12MS: names, lists, labels and the broken patch; pixels as rasterio reads them."""

import os
import pickle

import numpy as np
import pytest
import rasterio

from sharding import verify
from sharding.errors import ConfigError, DataError
from sharding.sources import open_source
from sharding.sources.base import SourceOptions
from sharding.sources.sen12ms_labels import CLASSES, parse_labels
from tests.trees import write_sen12ms_patch
from tests.unit.sharding.conftest import ROOT, run, run_build
from tests.unit.sharding.members import assert_pixels, open_members

LAYOUT = ROOT.parent / "shared" / "layouts" / "torchgeo" / "sen12ms"
INDEX = ROOT.parent / "shared" / "index"
PATCHES = (("ROIs1158_spring", 63, "p1"), ("ROIs1158_spring", 63, "p2"), ("ROIs1868_summer", 146, "p202"))


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "SEN12MS"
    for patch in PATCHES:
        write_sen12ms_patch(folder, *patch)
    return folder


def listed(root, **options):
    return open_source("sen12ms", str(root), SourceOptions(**options)).list()


def test_pairs_are_patches_of_both_halves(root):
    listing = listed(root)
    assert [pair.key for pair in listing.pairs] == ["ROIs1158_spring_63_p1", "ROIs1158_spring_63_p2"]
    assert listing.pairs[0].attributes["season"] == "spring"
    assert not listing.has_splits


def test_the_patch_known_to_be_broken_is_refused(root):
    [refusal] = listed(root).refused
    assert (refusal.reason, refusal.key) == ("known to be broken", "ROIs1868_summer_146_p202")
    assert refusal.file.endswith("ROIs1868_summer_s1_146_p202.tif")


@pytest.mark.parametrize("half", ["s1", "s2"])
def test_a_patch_without_its_other_half_is_refused(root, half):
    next(root.glob(f"ROIs1158_spring/{half}_63/*_p2.tif")).unlink()
    listing = listed(root)
    assert [pair.key for pair in listing.pairs] == ["ROIs1158_spring_63_p1"]
    [refusal] = [refusal for refusal in listing.refused if refusal.reason == "missing half"]
    assert refusal.file == f"ROIs1158_spring/{half}_63/ROIs1158_spring_{half}_63_p2.tif"


def test_land_cover_rides_along_where_it_is(root):
    next(root.glob("ROIs1158_spring/lc_63/*_p2.tif")).unlink()
    listing = listed(root)
    assert listing.notes == ["1 of 2 patches have no land cover"]
    source = open_source("sen12ms", str(root))
    with_cover, without = (source.read(pair) for pair in listing.pairs)
    assert with_cover.arrays["land_cover"].bands == ("IGBP", "LCCS_LC", "LCCS_LU", "LCCS_HYDRO")
    assert "land_cover" not in without.arrays
    bare = open_source("sen12ms", str(root), SourceOptions(riders=False))
    assert "land_cover" not in bare.read(listing.pairs[0]).arrays


def test_the_lists_of_patches_say_the_splits(root):
    (root / "splits").mkdir()
    (root / "splits" / "train_list.txt").write_text("ROIs1158_spring_s2_63_p1.tif\n")
    (root / "test_list.txt").write_text("")
    (root / "SEN12MS_holdOutScenes.txt").write_text("ROIs1158_spring/s1_63\n")
    listing = listed(root)
    assert [pair.split for pair in listing.pairs] == ["train", None]
    assert listing.has_splits
    assert any("SEN12MS_holdOutScenes.txt is not used" in note for note in listing.notes)


@pytest.mark.parametrize(("held_out", "split"), [("ROIs1158_spring/s1_63", "test"), ("ROIs1158_spring/s1_9", "train")])
def test_without_lists_the_scenes_held_out_are_test(root, held_out, split):
    (root / "SEN12MS_holdOutScenes.txt").write_text(f"{held_out}\n")
    assert [pair.split for pair in listed(root).pairs] == [split, split]


def test_scene_labels_are_shares_merged_to_ten_classes(root):
    shares = np.zeros(17)
    shares[[0, 1]] = 0.06  # two kinds of forest, together 0.12
    shares[16], shares[12] = 0.83, 0.05
    table = {"ROIs1158_spring_s2_63_p1.tif": shares, "ROIs1158_spring_s2_63_p2.tif": [float(v) for v in shares[::-1]]}
    (root / "IGBP_probability_labels.pkl").write_bytes(pickle.dumps(table))
    first, second = listed(root).pairs
    assert first.labels == ("Forest", "Water")
    assert second.labels == ("Forest", "Barren")[:1]
    assert (first.attributes["dominant_label"], second.attributes["dominant_label"]) == ("Water", "Forest")


def test_the_dominant_label_is_of_the_merged_shares_and_the_first_of_equal_ones():
    shares = np.zeros(17)
    shares[:5], shares[16] = 0.1, 0.4  # five kinds of forest, none of which is the largest alone
    equal = np.zeros(17)
    equal[[9, 16]] = 0.5
    found = parse_labels(pickle.dumps({"a": shares, "b": equal}), "labels.pkl")
    assert (found["a"].dominant, found["b"].dominant) == ("Forest", "Grassland")


def test_every_igbp_class_has_one_of_the_ten():
    tables = {str(i): np.eye(17)[i] for i in range(17)}
    found = parse_labels(pickle.dumps(tables), "labels.pkl")
    merged = [1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 6, 8, 9, 10]
    assert [CLASSES.index(found[str(i)].classes[0]) + 1 for i in range(17)] == merged


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/sen12ms-was-here",)


@pytest.mark.parametrize("content", [pickle.dumps(Evil()), pickle.dumps(print), b"", b"garbage", pickle.dumps([1])])
def test_a_pickle_of_anything_else_is_refused_and_runs_nothing(content, tmp_path):
    with pytest.raises(DataError, match=r"^labels\.pkl is "):
        parse_labels(content, "labels.pkl")
    assert not os.path.exists("/tmp/sen12ms-was-here")


def test_level_2a_is_wrong_usage(root):
    with pytest.raises(ConfigError, match="level L1C only"):
        listed(root, s2_level="L2A")


def test_a_folder_of_something_else_is_wrong_usage(tmp_path):
    with pytest.raises(ConfigError, match="no folder such as ROIs1158_spring"):
        listed(tmp_path)


def test_every_pixel_is_in_a_verified_data_set(tmp_path):
    folder = tmp_path / "SEN12MS"
    expected = {"_".join(map(str, patch)): write_sen12ms_patch(folder, *patch) for patch in PATCHES}
    arguments = ["--source", "sen12ms", "--root", folder, "--out", tmp_path / "out"]
    ended = run_build(*arguments, "--json")
    assert ended.code == 1
    assert "1 of 3 pairs are refused (1 known to be broken)" in ended.err
    ended = run_build(*arguments, "--max-bad", 1, "--json")
    assert ended.code == 0, ended.err
    assert run(verify.main, tmp_path / "out").code == 0
    groups = open_members(tmp_path / "out", tmp_path)
    assert len(groups) == 2
    for key, group in groups.items():
        pixels, cover = expected[key]
        land = dict(zip(("IGBP", "LCCS_LC", "LCCS_LU", "LCCS_HYDRO"), cover, strict=True))
        assert_pixels(group, {**pixels, **land})
        assert group.attrs["resampled"] is True


@pytest.mark.skipif(not LAYOUT.exists(), reason="needs ../shared/layouts, the reader conformance trees")
def test_the_conformance_tree_is_listed_and_read_as_rasterio_reads_it():
    source = open_source("sen12ms", str(LAYOUT))
    listing = source.list()
    assert (len(listing.pairs), len(listing.refused)) == (8, 0)
    for pair in listing.pairs:
        assert len(source.files(pair)) == 3
        with rasterio.open(LAYOUT / pair.s1) as s1, rasterio.open(LAYOUT / pair.s2) as s2:
            stored = {"s1": s1.read(), "s2": s2.read()}
        assert stored["s1"].shape[0] == 2 and stored["s2"].shape[0] == 13


@pytest.mark.skipif(not INDEX.exists(), reason="needs ../shared/index, the complete official lists")
def test_the_official_lists_are_understood(root):
    for name, target in (("sen12ms_test_list.txt", "test_list.txt"), ("SEN12MS_holdOutScenes.txt",) * 2):
        (root / target).write_bytes((INDEX / name).read_bytes())
    source = open_source("sen12ms", str(root))
    splits = source._splits(listed(root))
    assert len(splits) == 18106 and set(splits.values()) == {"test"}
