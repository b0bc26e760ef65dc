import json
import time

import numpy as np
import pytest
import rasterio

from sharding.errors import ConfigError, DataError
from sharding.sources import open_source
from sharding.sources.base import PairError, SourceOptions
from sharding.sources.ssl4eo_v1 import VOID_IDS, s1_date, s2_date
from tests.unit.sharding.conftest import SHARED

LAYOUT = SHARED.parent / "layouts" / "torchgeo" / "ssl4eo_s12"
SIDE = {"B1": 44, "B9": 44, "B10": 44, **dict.fromkeys(("B5", "B6", "B7", "B8A", "B11", "B12"), 132)}
L2A = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12")
S1_JUNE = "S1A_IW_GRDH_1SDV_20200607T010800_20200607T010825_032904_03CFBA_D457"
S1_MARCH = "S1B_IW_GRDH_1SDV_20200305T010800_20200305T010825_022904_02CFBA_D458"
S2_JUNE = "20200604T054639_20200604T054831_T43RCP"
S2_MARCH = "20200303T054639_20200303T054831_T43RCP"


def write_tif(path, data, pixel, left):
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "dtype": data.dtype, "count": 1, "height": data.shape[0], "width": data.shape[1]}
    transform = rasterio.Affine(pixel, 0, left, 0, -pixel, 30.5)
    with rasterio.open(path, "w", crs="EPSG:4326", transform=transform, **profile) as file:
        file.write(data, 1)


def write_s1(root, location, product, seed=0):
    rng = np.random.default_rng(seed)
    for band in ("VV", "VH"):
        data = rng.uniform(-30, 2, (264, 264)).astype(np.float32)
        write_tif(root / "s1" / location / product / f"{band}.tif", data, 1.02e-4, 73.29)


def write_s2(root, location, product, folder="s2a", seed=1, facts=None):
    rng = np.random.default_rng(seed)
    for band in (*L2A, "B10") if folder == "s2c" else L2A:
        side = SIDE.get(band, 264)
        data = rng.integers(1, 9000, (side, side)).astype(np.uint16)
        write_tif(root / folder / location / product / f"{band}.tif", data, 1.01e-4 * 264 / side, 73.2925)
    if facts is not None:
        (root / folder / location / product / "metadata.json").write_text(json.dumps(facts))


@pytest.fixture
def archive(tmp_path):
    """One location; sorted by name, S1 of June comes before S1 of March."""
    for product in (S1_JUNE, S1_MARCH):
        write_s1(tmp_path, "0000200", product)
    for product in (S2_JUNE, S2_MARCH):
        write_s2(tmp_path, "0000200", product)
    return tmp_path


def source_at(root, **options):
    return open_source("ssl4eo-s12-v1", str(root), SourceOptions(**options))


def band_file(band):
    return f"{band}.tif" if band.startswith("V") else f"B{band[1:].lstrip('0')}.tif"


def assert_as_stored(root, pair, sample):
    for array in sample.arrays.values():
        for band, plane in zip(array.bands, array.data, strict=True):
            folder = pair.s1 if band in ("VV", "VH") else pair.s2
            with rasterio.open(root / folder / band_file(band)) as file:
                stored = file.read(1)
                assert plane.dtype == stored.dtype
                assert np.array_equal(plane, stored), band
                if band in ("VV", "B02", "B05", "B01"):
                    assert array.transform == tuple(file.transform)[:6]


def test_products_are_paired_by_the_nearest_date_and_not_by_their_names(archive):
    listing = source_at(archive).list()
    assert [(pair.key, pair.s1, pair.s2) for pair in listing.pairs] == [
        (f"0000200_{S2_MARCH}", f"s1/0000200/{S1_MARCH}", f"s2a/0000200/{S2_MARCH}"),
        (f"0000200_{S2_JUNE}", f"s1/0000200/{S1_JUNE}", f"s2a/0000200/{S2_JUNE}"),
    ]
    assert [(pair.s1_date, pair.s2_date) for pair in listing.pairs] == [
        ("2020-03-05T01:08:00", "2020-03-03T05:46:39"),
        ("2020-06-07T01:08:00", "2020-06-04T05:46:39"),
    ]
    assert listing.refused == listing.notes == []
    assert not listing.has_splits


def test_pixels_come_out_as_stored_with_each_arrays_own_coordinates(archive):
    source = source_at(archive)
    for pair in source.list().pairs:
        sample = source.read(pair)
        assert list(sample.arrays) == ["s1", "s2_10m", "s2_20m", "s2_60m"]
        assert [array.data.shape[1] for array in sample.arrays.values()] == [264, 264, 132, 44]
        assert [array.gsd_m for array in sample.arrays.values()] == [10, 10, 20, 60]
        assert {array.radiometric_offset for array in sample.arrays.values()} == {0.0}
        assert (sample.level, sample.crs, sample.split) == ("L2A", "EPSG:4326", None)
        assert_as_stored(archive, pair, sample)


def test_the_centre_is_that_of_s2_and_needs_no_pixel(archive):
    source = source_at(archive)
    pair = source.list().pairs[0]
    assert np.isnan(pair.lon)
    crs, lon, lat = source.centre(pair)
    assert (crs, lon, lat) == ("EPSG:4326", pytest.approx(73.2925 + 132 * 1.01e-4), pytest.approx(30.5 - 132 * 1.01e-4))
    assert source.read(pair).centre == ("EPSG:4326", pytest.approx(lon, abs=1e-7), pytest.approx(lat, abs=1e-7))


def test_level_1c_has_b10_and_is_taken_when_asked_for_or_alone(archive, tmp_path_factory):
    write_s2(archive, "0000200", S2_JUNE, folder="s2c")
    assert {pair.s2[:3] for pair in source_at(archive).list().pairs} == {"s2a"}
    source = source_at(archive, s2_level="L1C")
    (pair,) = source.list().pairs
    sample = source.read(pair)
    assert sample.level == "L1C"
    assert sample.arrays["s2_60m"].bands == ("B01", "B09", "B10")
    assert_as_stored(archive, pair, sample)
    alone = tmp_path_factory.mktemp("alone")
    write_s1(alone, "0000200", S1_JUNE)
    write_s2(alone, "0000200", S2_JUNE, folder="s2c")
    assert [pair.s2[:3] for pair in source_at(alone).list().pairs] == ["s2c"]
    with pytest.raises(ConfigError, match="no folder s2a"):
        source_at(alone, s2_level="L2A").list()


def test_products_further_apart_than_max_days_are_refused_with_their_distance(archive):
    listing = source_at(archive, max_days=2.5).list()
    assert [pair.s2_date[:7] for pair in listing.pairs] == ["2020-03"]
    (refusal,) = listing.refused
    assert (refusal.key, refusal.reason, refusal.file) == (
        f"0000200_{S2_JUNE}",
        "days apart",
        f"s2a/0000200/{S2_JUNE}",
    )
    assert "2.8 days away, at most 2.5" in refusal.message


def test_a_product_without_a_partner_is_refused_and_the_nearest_keep_theirs(archive):
    extra = "20200701T054639_20200701T054831_T43RCP"
    write_s2(archive, "0000200", extra)
    listing = source_at(archive).list()
    assert [pair.s2_date[:7] for pair in listing.pairs] == ["2020-03", "2020-06"]
    assert [(r.reason, r.file) for r in listing.refused] == [("missing half", f"s2a/0000200/{extra}")]


def test_a_location_that_only_one_half_has_is_refused(archive):
    write_s1(archive, "0000201", S1_JUNE)
    write_s2(archive, "0000202", S2_JUNE)
    listing = source_at(archive).list()
    assert len(listing.pairs) == 2
    assert sorted((r.key, r.reason, r.file) for r in listing.refused) == [
        ("0000201", "missing half", "s1/0000201"),
        ("0000202", "missing half", "s2a/0000202"),
    ]


def test_withdrawn_locations_are_refused_and_gaps_are_not_missed(archive):
    write_s1(archive, "0179723", S1_JUNE)
    write_s2(archive, "0179723", S2_JUNE)
    (archive / "void_ids.csv").write_text("200\n7\n")
    listing = source_at(archive).list()
    assert listing.pairs == []
    assert [(r.key, r.reason) for r in listing.refused] == [
        ("0000200", "known to be broken"),
        ("0179723", "known to be broken"),
    ]


def test_a_list_of_void_ids_that_is_none_is_an_error(archive):
    (archive / "void_ids.csv").write_text("id,reason\n")
    with pytest.raises(DataError, match=r"void_ids\.csv has 'id,reason'"):
        source_at(archive).list()


def test_products_that_may_carry_the_offset_are_refused_by_date_and_by_baseline(archive):
    write_s1(archive, "0000300", "S1A_IW_GRDH_1SDV_20220201T010800_20220201T010825_032904_03CFBA_D457")
    write_s2(archive, "0000300", "20220203T054639_20220203T054831_T43RCP")
    write_s2(archive, "0000200", S2_JUNE, facts={"PROCESSING_BASELINE": "05.00"})
    source = source_at(archive)
    listing = source.list()
    assert ("radiometric offset unclear", "s2a/0000300/20220203T054639_20220203T054831_T43RCP") in {
        (r.reason, r.file) for r in listing.refused
    }
    assert {pair.key[:7] for pair in listing.pairs} == {"0000200"}
    with pytest.raises(PairError, match=r"baseline 05\.00 is raised by 1000") as caught:
        source.read(listing.pairs[1])
    assert (caught.value.reason, caught.value.file) == (
        "radiometric offset unclear",
        f"s2a/0000200/{S2_JUNE}/metadata.json",
    )


def test_a_folder_that_is_named_like_no_product_is_refused(archive):
    (archive / "s2a" / "0000200" / "20200604").mkdir()
    (archive / "s1" / "0000200" / "S1A_IW_GRDH_1SDV_20201399T010800_20200607T010825_032904_03CFBA_D457").mkdir()
    listing = source_at(archive).list()
    assert len(listing.pairs) == 2
    assert {r.reason for r in listing.refused} == {"metadata missing or wrong"}
    assert len(listing.refused) == 2


def test_folders_that_are_no_locations_are_named_in_a_note(archive):
    (archive / "s1" / ".ipynb_checkpoints").mkdir()
    listing = source_at(archive).list()
    assert len(listing.pairs) == 2
    assert listing.notes == ["1 folders in s1 are no locations (seven digits) and are left out: .ipynb_checkpoints"]


def test_files_are_all_that_is_read_and_a_missing_one_is_named(archive):
    write_s2(archive, "0000200", S2_JUNE, facts={"PROCESSING_BASELINE": "02.14"})
    source = source_at(archive)
    pair = source.list().pairs[1]
    files = source.files(pair)
    assert len(files) == 15
    assert {file.path.rpartition("/")[0] for file in files} == {pair.s1, pair.s2}
    assert all((archive / file.path).stat().st_size == file.size for file in files)
    (archive / pair.s2 / "B8A.tif").unlink()
    (archive / pair.s2 / "B9.tif").unlink()
    with pytest.raises(PairError, match=r"B8A\.tif, B9\.tif missing") as caught:
        source.files(pair)
    assert (caught.value.reason, caught.value.file) == ("missing band file", f"{pair.s2}/B8A.tif")
    for path in (archive / pair.s1).iterdir():
        path.unlink()
    with pytest.raises(PairError) as caught:
        source.files(pair)
    assert (caught.value.reason, caught.value.file) == ("missing half", pair.s1)


def test_a_change_of_a_file_shows_in_its_version(archive):
    source = source_at(archive)
    pair = source.list().pairs[0]
    before = source.files(pair)
    time.sleep(0.01)
    write_s1(archive, "0000200", S1_MARCH, seed=9)
    changed = {a.path.rpartition("/")[2] for a, b in zip(before, source.files(pair), strict=True) if a != b}
    assert changed == {"VV.tif", "VH.tif"}


def test_wrong_sizes_broken_files_and_broken_metadata_are_refused_with_the_file(archive):
    source = source_at(archive)
    march, june = source.list().pairs
    write_tif(archive / june.s2 / "B5.tif", np.ones((264, 264), np.uint16), 1.01e-4, 73.29)
    with pytest.raises(PairError) as caught:
        source.read(june)
    assert (caught.value.reason, caught.value.file) == ("wrong size", f"{june.s2}/B5.tif")
    (archive / march.s1 / "VV.tif").write_bytes(b"II*\0 cut")
    with pytest.raises(PairError) as caught:
        source.read(march)
    assert (caught.value.reason, caught.value.file) == ("corrupt file", f"{march.s1}/VV.tif")
    (archive / march.s2 / "metadata.json").write_text('{"PROCESSING_BASELINE":')
    with pytest.raises(PairError) as caught:
        source.read(march)
    assert (caught.value.reason, caught.value.file) == ("metadata missing or wrong", f"{march.s2}/metadata.json")


def test_packed_archives_are_refused_with_what_to_do(tmp_path):
    for name in ("s1_grd.tar.gz.partaa", "s1_grd.tar.gz.partab", "s2_l2a.tar.gz"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ConfigError, match=r"no folder s1 and s2a or s2c; its archives .* unpack them"):
        source_at(tmp_path).list()


def test_a_root_of_something_else_and_an_unknown_level_are_refused(archive, tmp_path):
    with pytest.raises(ConfigError, match="there is no"):
        source_at(tmp_path / "nowhere").list()
    with pytest.raises(ConfigError, match="'L3' is no level"):
        source_at(archive, s2_level="L3").list()
    (archive / "s1").rename(archive / "S1")
    with pytest.raises(ConfigError, match="no folder s1; give --root"):
        source_at(archive).list()


def test_names_tell_dates_or_nothing():
    assert s1_date(S1_JUNE) == "2020-06-07T01:08:00"
    assert s2_date(S2_JUNE) == "2020-06-04T05:46:39"
    assert s1_date(S2_JUNE) is s2_date(S1_JUNE) is s2_date("20200231T054639_20200604T054831_T43RCP") is None


def test_the_same_listing_comes_from_an_object_store(archive):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(archive), "/ssl4eo-v1", recursive=True)
    try:
        local, remote = source_at(archive), source_at("memory://ssl4eo-v1")
        assert remote.list().table.drop(["lon", "lat"]).equals(local.list().table.drop(["lon", "lat"]))
        pair = remote.list().pairs[0]
        assert [(f.path, f.size) for f in remote.files(pair)] == [(f.path, f.size) for f in local.files(pair)]
        assert_as_stored(archive, pair, remote.read(pair))
    finally:
        memory.rm("/ssl4eo-v1", recursive=True)


@pytest.mark.skipif(not LAYOUT.exists(), reason="needs ../shared/layouts, the layouts of published data sets")
def test_torchgeos_tree_of_tiny_random_files_pairs_by_date_and_is_refused_for_its_size():
    source = source_at(LAYOUT)
    listing = source.list()
    assert (len(listing.pairs), listing.refused) == (8, [])
    for pair in listing.pairs:
        days = np.datetime64(pair.s1_date) - np.datetime64(pair.s2_date)
        assert abs(days) < np.timedelta64(14, "D")
        assert len(source.files(pair)) == 14
        with pytest.raises(PairError, match="36x36 pixels where 264x264 belong"):
            source.read(pair)


@pytest.mark.skipif(
    not (SHARED / "ssl4eo_s12_v1").exists(), reason="needs ../shared/data, the collection of real pairs"
)
@pytest.mark.parametrize("level", ["L2A", "L1C"])
def test_real_pairs_come_out_bit_for_bit(level):
    source = source_at(SHARED / "ssl4eo_s12_v1", s2_level=level)
    listing = source.list()
    assert (len(listing.pairs), listing.refused) == (2, [])
    for pair in listing.pairs:
        assert len(source.files(pair)) == {"L2A": 16, "L1C": 17}[level]
        sample = source.read(pair)
        assert_as_stored(SHARED / "ssl4eo_s12_v1", pair, sample)
        assert len(sample.bands) == {"L2A": 14, "L1C": 15}[level]
        assert sample.attributes["location"] == "0000200"
        assert sample.attributes["s2_product"].startswith("S2B_MSI" + level)
        assert sample.centre == ("EPSG:4326", 73.3059306, 30.463961)


@pytest.mark.skipif(
    not (SHARED.parent / "index" / "ssl4eo_v1_void_ids.csv").exists(), reason="needs ../shared/index, official lists"
)
def test_the_withdrawn_locations_are_those_of_the_official_list():
    lines = (SHARED.parent / "index" / "ssl4eo_v1_void_ids.csv").read_text().split()
    assert {line.zfill(7) for line in lines} == VOID_IDS
