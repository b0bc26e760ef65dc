import itertools
import re
import zipfile

import fsspec
import numpy as np
import pytest
import zarr

from sharding.errors import ConfigError
from sharding.sources import open_source
from sharding.sources.base import PairError, SourceOptions
from sharding.sources.raster import to_degrees
from tests.unit.sharding.conftest import SHARED
from tests.unit.sharding.zarr_zips import write_group

CONSTRUCTED = SHARED.parent / "layouts" / "constructed_ssl4eos12_v1.1"
NAME = "ssl4eos12_train_seasonal_data_000001.zarr.zip"
IDS = ["0080717", "0060573", "0012333"]
L2A = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]
L1C = [*L2A[:10], "B10", *L2A[10:]]
S2_DAYS = ["20200303", "20200604", "20200901", "20201203"]
S1_DAYS = ["20200305", "20201201", "20200607", "20200908"]
"""In the order in which names of products sort (S1A before S1B), as the published files have them."""


def s1_name(day, number):
    return f"S1{'AABB'[number]}_IW_GRDH_1SDV_{day}T010800_{day}T010825_032904_03CFBA_D457"


def nanoseconds(days):
    iso = [f"{day[:4]}-{day[4:6]}-{day[6:]}T01:08:00" for day in days]
    return np.array(iso, "datetime64[ns]").astype(np.int64)


def frame(ids, days, names, bands, pixels):
    """The arrays that both halves have."""
    count, times = len(ids), len(days)
    east = 1000 * np.array([int(name) % 97 for name in ids])[:, None]
    return {
        "band": np.array(bands),
        "sample": np.array(ids),
        "time": np.arange(times),
        "bands": pixels,
        "center_lat": 10.0 + np.array([int(name) % 7 for name in ids]),
        "center_lon": 20.0 + np.array([int(name) % 5 for name in ids]),
        "crs": np.full(count, 32651),
        "file_id": np.array([names] * count),
        "time_": np.array([nanoseconds(sorted(days))] * count),
        "x_": 714_905.0 + east + 10 * np.arange(264),
        "y_": 4_728_005.0 - 10 * np.arange(264) + 0 * east,
    }


def write_s1(root, split="train", name=NAME, ids=IDS, **changes):
    rng = np.random.default_rng(1)
    pixels = rng.uniform(-30, 2, (len(ids), 4, 2, 264, 264)).astype(np.float16)
    arrays = frame(ids, S1_DAYS, [s1_name(day, i) for i, day in enumerate(S1_DAYS)], ["vv", "vh"], pixels)
    write(root / split / "S1GRD" / name, arrays, changes)


def write_s2(root, split="train", name=NAME, ids=IDS, level="L2A", **changes):
    rng = np.random.default_rng(2)
    bands = L2A if level == "L2A" else L1C
    pixels = rng.integers(1001, 9000, (len(ids), 4, len(bands), 264, 264)).astype(np.int16)
    names = [f"{day}T010800_{day}T011200_T51UUP" for day in S2_DAYS]
    mask = np.zeros((len(ids), 4, 264, 264), np.uint8)
    mask[0, 1, :66] = 4
    mask[0, 1, 66:132] = 5
    arrays = frame(ids, S2_DAYS, names, bands, pixels) | {"cloud_mask": mask}
    write(root / split / f"S2{level}" / name, arrays, changes)


def write(path, arrays, changes):
    chunks = changes.pop("chunks", (1, 1))
    units = {"time_": {"units": "nanoseconds since 1970-01-01", "calendar": "proleptic_gregorian"}}
    arrays = {name: array for name, array in (arrays | changes).items() if array is not None}
    sizes = {}
    for big in ("bands", "cloud_mask"):
        if big in arrays:
            sizes[big] = (*chunks, *arrays[big].shape[2:])
    write_group(path, arrays, sizes, attributes=units)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """One file of each half, the samples of S1 in another order than those of S2; not to be changed."""
    root = tmp_path_factory.mktemp("ssl4eo")
    write_s1(root, ids=IDS[::-1], chunks=(3, 1))
    write_s2(root)
    return root


def source_at(root, **options):
    return open_source("ssl4eo-s12-v1.1", str(root), SourceOptions(**options))


def refused(listing):
    return sorted((r.key, r.reason, r.file) for r in listing.refused)


def stored(path, name):
    with zarr.storage.ZipStore(path, mode="r") as store:
        return zarr.open_group(store, mode="r")[name][:]


def assert_as_stored(root, pair, sample, s1_row, s1_time, s2_row, s2_time):
    for half, row, time, arrays in (
        (pair.s1, s1_row, s1_time, ["s1"]),
        (pair.s2, s2_row, s2_time, ["s2_10m", "s2_20m", "s2_60m"]),
    ):
        path = root / half.partition("#")[0]
        bands = [name.upper() for name in stored(path, "band").tolist()]
        expected = dict(zip(bands, stored(path, "bands")[row, time], strict=True))
        planes = [zip(sample.arrays[name].bands, sample.arrays[name].data, strict=True) for name in arrays]
        found = dict(itertools.chain(*planes))
        assert set(found) == set(bands)
        for band, plane in found.items():
            assert plane.dtype == (np.float16 if arrays == ["s1"] else np.uint16)
            assert np.array_equal(plane, expected[band]), band


def test_samples_are_joined_by_id_and_timestamps_by_the_dates_of_their_products(archive):
    listing = source_at(archive).list()
    pairs = {pair.key: pair for pair in listing.pairs}
    assert sorted(pairs) == sorted(f"{name}_{time}" for name in IDS for time in range(4))
    for row, name in enumerate(IDS):
        for time, s1_time in enumerate((0, 2, 3, 1)):
            pair = pairs[f"{name}_{time}"]
            assert pair.s1 == f"train/S1GRD/{NAME}#{2 - row}/{s1_time}"
            assert pair.s2 == f"train/S2L2A/{NAME}#{row}/{time}"
            assert pair.s1_date.replace("-", "")[:8] == S1_DAYS[s1_time]
            assert pair.s2_date.replace("-", "") == f"{S2_DAYS[time]}T01:08:00"
            assert (pair.split, pair.lon, pair.lat) == ("train", 20.0 + int(name) % 5, 10.0 + int(name) % 7)
    assert listing.has_splits
    assert listing.refused == []
    (note,) = listing.notes
    assert note.startswith("in 3 samples 'time_' has other dates than the products")


def test_pixels_come_out_as_stored_and_the_bands_as_resampled_with_their_offset(archive):
    source = source_at(archive)
    for pair in source.list().pairs[:5]:
        sample = source.read(pair)
        _, s1_place = pair.s1.split("#")
        _, s2_place = pair.s2.split("#")
        assert_as_stored(archive, pair, sample, *map(int, s1_place.split("/")), *map(int, s2_place.split("/")))
        assert {array.data.shape[1:] for array in sample.arrays.values()} == {(264, 264)}
        assert {array.gsd_m for array in sample.arrays.values()} == {10.0}
        assert {name: array.radiometric_offset for name, array in sample.arrays.items() if name.startswith("s2")} == {
            "s2_10m": -1000.0,
            "s2_20m": -1000.0,
            "s2_60m": -1000.0,
        }
        assert sample.arrays["s1"].radiometric_offset == 0.0
        left = 714_900.0 + 1000 * (int(pair.key[:7]) % 97)
        assert sample.arrays["s2_60m"].transform == (10.0, 0.0, left, 0.0, -10.0, 4_728_010.0)
        assert (sample.level, sample.crs, sample.split) == ("L2A", "EPSG:32651", "train")
        assert sample.dates == {"s1": pair.s1_date, "s2": pair.s2_date}
        assert sample.attributes["resampled"] is True
        assert sample.attributes["location"] == pair.key[:7]
        assert sample.attributes["s1_product"][17:25] == pair.s1_date[:10].replace("-", "")
        assert sample.attributes["s2_product"][:8] == pair.s2_date[:10].replace("-", "")
        assert sample.centre == ("EPSG:4326", pair.lon, pair.lat)


def test_the_mask_of_clouds_rides_along_unless_riders_are_not_wanted(archive):
    source = source_at(archive)
    pair = next(pair for pair in source.list().pairs if pair.key == "0080717_1")
    sample = source.read(pair)
    mask = sample.arrays["cloud_mask"]
    assert (mask.bands, mask.units, mask.data.dtype) == (("CLOUD",), "class", np.uint8)
    assert np.array_equal(mask.data[0], stored(archive / "train" / "S2L2A" / NAME, "cloud_mask")[0, 1])
    assert sample.attributes["cloud_share"] == 0.25
    assert list(sample.arrays) == ["s1", "s2_10m", "s2_20m", "s2_60m", "cloud_mask"]
    bare = source_at(archive, riders=False).read(pair)
    assert list(bare.arrays) == ["s1", "s2_10m", "s2_20m", "s2_60m"]
    assert "cloud_share" not in bare.attributes


def test_cloudier_pairs_than_wanted_are_refused_with_their_share(archive):
    assert source_at(archive, max_cloud=0.25).list().refused == []
    listing = source_at(archive, max_cloud=0.2).list()
    assert len(listing.pairs) == 11
    assert refused(listing) == [("0080717_1", "too cloudy", f"train/S2L2A/{NAME}#0/1")]
    assert listing.refused[0].message == "0.250 of it are clouds, at most 0.2 are allowed"


def test_files_without_a_mask_are_not_bound_by_it(tmp_path):
    write_s1(tmp_path, ids=IDS[:1])
    write_s2(tmp_path, ids=IDS[:1], cloud_mask=None)
    source = source_at(tmp_path, max_cloud=0.1)
    listing = source.list()
    assert len(listing.pairs) == 4
    assert "1 files have no mask of clouds, so --max-cloud leaves them alone" in listing.notes
    assert list(source.read(listing.pairs[0]).arrays) == ["s1", "s2_10m", "s2_20m", "s2_60m"]


def test_timestamps_further_apart_than_max_days_are_refused(archive):
    listing = source_at(archive, max_days=3).list()
    assert len(listing.pairs) == 9
    assert refused(listing) == sorted(
        (f"{name}_2", "days apart", f"train/S2L2A/{NAME}#{row}/2") for row, name in enumerate(IDS)
    )
    assert "is 7.0 days away, at most 3 are allowed" in listing.refused[0].message


def test_samples_and_files_of_one_half_alone_are_refused(tmp_path):
    write_s1(tmp_path, ids=IDS[:2])
    write_s2(tmp_path, ids=IDS[1:])
    write_s2(tmp_path, name=NAME.replace("1.z", "2.z"), ids=IDS[:1])
    write_s1(tmp_path, split="val", name="ssl4eos12_val_seasonal_data_000001.zarr.zip", ids=IDS[:1])
    listing = source_at(tmp_path).list()
    assert [pair.key for pair in listing.pairs] == [f"0060573_{time}" for time in range(4)]
    assert refused(listing) == [
        ("0012333", "missing half", f"train/S2L2A/{NAME}"),
        ("0080717", "missing half", f"train/S1GRD/{NAME}"),
        ("ssl4eos12_train_seasonal_data_000002", "missing half", f"train/S2L2A/{NAME.replace('1.z', '2.z')}"),
        (
            "ssl4eos12_val_seasonal_data_000001",
            "missing half",
            "val/S1GRD/ssl4eos12_val_seasonal_data_000001.zarr.zip",
        ),
    ]


def test_a_timestamp_without_a_partner_is_refused(tmp_path):
    short = {
        "bands": np.ones((1, 3, 2, 264, 264), np.float16),
        "time": np.arange(3),
        "time_": None,
        "file_id": np.array([[s1_name(day, 0) for day in S1_DAYS[:3]]]),
    }
    write_s1(tmp_path, ids=IDS[:1], **short)
    write_s2(tmp_path, ids=IDS[:1])
    listing = source_at(tmp_path).list()
    assert [pair.key for pair in listing.pairs] == ["0080717_0", "0080717_1", "0080717_3"]
    assert refused(listing) == [("0080717_2", "missing half", f"train/S2L2A/{NAME}")]


def test_lists_of_files_say_what_is_in_a_split(tmp_path):
    val = "ssl4eos12_val_seasonal_data_000001.zarr.zip"
    for split, name in (("train", NAME), ("train", NAME.replace("1.z", "2.z")), ("val", val)):
        write_s1(tmp_path, split, name, IDS[:1])
        write_s2(tmp_path, split, name, IDS[:1])
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "ssl4eos12_train.txt").write_text(f"{NAME}\n{NAME.replace('1.z', '9.z')}\n")
    listing = source_at(tmp_path).list()
    assert {(pair.s2.split("/")[2].partition(".")[0][10:], pair.split) for pair in listing.pairs} == {
        ("train_seasonal_data_000001", "train"),
        ("train_seasonal_data_000002", None),
        ("val_seasonal_data_000001", "val"),
    }
    assert "1 of the 2 files that splits has for train are not there" in listing.notes
    assert "1 files are in no list of splits, so their pairs are in no split" in listing.notes


def test_level_1c_has_b10_and_is_taken_when_asked_for_or_alone(tmp_path):
    write_s1(tmp_path, ids=IDS[:1])
    write_s2(tmp_path, ids=IDS[:1], level="L1C")
    source = source_at(tmp_path)
    pair = source.list().pairs[0]
    sample = source.read(pair)
    assert sample.level == "L1C"
    assert sample.arrays["s2_60m"].bands == ("B01", "B09", "B10")
    assert_as_stored(tmp_path, pair, sample, 0, 0, 0, 0)
    write_s2(tmp_path, ids=IDS[:1])
    assert "S2L2A" in source.list().pairs[0].s2
    assert "S2L1C" in source_at(tmp_path, s2_level="L1C").list().pairs[0].s2
    with pytest.raises(ConfigError, match="'L3' is no level"):
        source_at(tmp_path, s2_level="L3").list()


def test_files_that_are_not_raised_by_1000_are_refused(tmp_path):
    rng = np.random.default_rng(3)
    write_s1(tmp_path, ids=IDS[:1])
    dark = {"bands": rng.integers(1, 250, (1, 4, 12, 264, 264)).astype(np.int16)}
    write_s2(tmp_path, ids=IDS[:1], **dark)
    source = source_at(tmp_path)
    pair = source.list().pairs[0]
    with pytest.raises(PairError, match=r"S2 is not raised by 1000 as all of v1\.1 is: B04 has 10 %") as caught:
        source.read(pair)
    assert caught.value.reason == "radiometric offset unclear"


def test_negative_numbers_are_refused_since_uint16_cannot_hold_them(tmp_path):
    pixels = np.full((1, 4, 12, 264, 264), 1500, np.int16)
    pixels[0, 0, 3, 5, 5] = -7
    write_s1(tmp_path, ids=IDS[:1])
    write_s2(tmp_path, ids=IDS[:1], bands=pixels)
    source = source_at(tmp_path)
    broken, whole = source.list().pairs[:2]
    with pytest.raises(PairError, match="int16 from -7 to 1500, which uint16 cannot hold") as caught:
        source.read(broken)
    assert (caught.value.reason, caught.value.file) == ("wrong type", f"train/S2L2A/{NAME}")
    assert source.read(whole).arrays["s2_10m"].data.dtype == np.uint16


@pytest.mark.parametrize(
    ("change", "reason", "message"),
    [
        ({"band": np.array(["vv", "B02"])}, "bands contradict", "its bands are vv, B02 where VV, VH belong"),
        ({"bands": np.ones((1, 4, 2, 128, 128), np.float16)}, "wrong size", "2x128x128 where 2x264x264 belong"),
        ({"crs": np.array([32652])}, "grids disagree", "S1 is in EPSG:32652, S2 .* in EPSG:32651"),
        ({"x_": 10.0 * np.arange(264)[None] ** 2}, "metadata missing or wrong", "'x_' of sample 0 is not evenly"),
        ({"bands": np.full((1, 4, 2, 264, 264), np.nan, np.float16)}, "NaN in S1", "NaN or infinite"),
    ],
)
def test_what_is_not_as_published_is_refused_when_read(tmp_path, change, reason, message):
    write_s1(tmp_path, ids=IDS[:1], **change)
    write_s2(tmp_path, ids=IDS[:1])
    source = source_at(tmp_path)
    pair = source.list().pairs[0]
    with pytest.raises(PairError, match=message) as caught:
        source.read(pair)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": np.array(["0080717", "0080717"])}, "occurs twice"),
        ({"sample": np.array(["a/b", "0080717"])}, "a sample's id is 'a/b'"),
        ({"sample": np.array(["0080717"])}, "has the shape .* for 1 samples"),
        ({"center_lat": np.zeros(3)}, "'center_lat' has the shape"),
        ({"file_id": np.array([["x"] * 3] * 2)}, "'file_id' has the shape"),
        ({"time": np.array([0, 1, 1, 2])}, r"'time' is \[0, 1, 1, 2\] for 4 timestamps"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused_as_a_whole(tmp_path, change, message):
    write_s1(tmp_path, ids=IDS[:2], **change)
    write_s2(tmp_path, ids=IDS[:2])
    listing = source_at(tmp_path).list()
    assert listing.pairs == []
    assert refused(listing) == [(NAME.partition(".")[0], "metadata missing or wrong", f"train/S1GRD/{NAME}")]
    assert listing.refused[0].message.endswith("all of its samples are left out")
    assert re.search(message, listing.refused[0].message)


def test_a_broken_file_is_refused_and_the_others_are_listed(tmp_path):
    for number in (1, 2):
        write_s1(tmp_path, name=NAME.replace("1.z", f"{number}.z"), ids=[IDS[number]])
        write_s2(tmp_path, name=NAME.replace("1.z", f"{number}.z"), ids=[IDS[number]])
    path = tmp_path / "train" / "S1GRD" / NAME
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    listing = source_at(tmp_path).list()
    assert len(listing.pairs) == 4
    assert refused(listing) == [(NAME.partition(".")[0], "corrupt file", f"train/S1GRD/{NAME}")]


def test_the_listing_decodes_no_pixel_and_reading_finds_a_broken_one(tmp_path):
    write_s1(tmp_path, ids=IDS[:1])
    write_s2(tmp_path, ids=IDS[:1])
    path = tmp_path / "train" / "S2L2A" / NAME
    with zipfile.ZipFile(path) as file:
        at = file.getinfo("bands/0.2.0.0.0").header_offset + 5000
    content = bytearray(path.read_bytes())
    content[at : at + 4] = b"\0\0\0\0"
    path.write_bytes(content)
    source = source_at(tmp_path)
    pairs = source.list().pairs
    assert len(pairs) == 4
    source.read(pairs[1])
    with pytest.raises(PairError, match="Bad CRC-32") as caught:
        source.read(pairs[2])
    assert (caught.value.reason, caught.value.file) == ("corrupt file", f"train/S2L2A/{NAME}")


def test_undated_files_are_paired_by_the_numbers_of_their_timestamps_but_not_within_days(tmp_path):
    write_s1(tmp_path, ids=IDS[:1], file_id=None, time_=None)
    write_s2(tmp_path, ids=IDS[:1], file_id=None, time_=None)
    listing = source_at(tmp_path).list()
    assert [(pair.s1[-3:], pair.s2[-3:], pair.s1_date) for pair in listing.pairs] == [
        (f"0/{time}", f"0/{time}", "") for time in range(4)
    ]
    assert listing.notes == ["1 files do not date their samples; timestamps are paired by their numbers"]
    listing = source_at(tmp_path, max_days=5).list()
    assert listing.pairs == []
    assert [r.reason for r in listing.refused] == ["metadata missing or wrong"]


def test_samples_that_only_one_half_dates_are_refused(tmp_path):
    write_s1(tmp_path, ids=IDS[:1], file_id=None, time_=None)
    write_s2(tmp_path, ids=IDS[:1])
    listing = source_at(tmp_path).list()
    assert listing.pairs == []
    assert refused(listing) == [("0080717", "metadata missing or wrong", f"train/S2L2A/{NAME}")]


@pytest.mark.parametrize(
    ("values", "units", "seconds"),
    [
        (nanoseconds(S1_DAYS), "nanoseconds since 1970-01-01", 0),
        (nanoseconds(S1_DAYS) // 10**9 - 1_577_836_800, "seconds since 2020-01-01 00:00:00", 0),
        (nanoseconds(S1_DAYS) / 86_400e9 - 18_262, "days since 2020-01-01T00:00:00.000000000", 0),
        (nanoseconds(S1_DAYS).astype("datetime64[ns]"), "", 0),
    ],
)
def test_times_are_read_as_xarray_may_write_them(tmp_path, values, units, seconds):
    from sharding.sources.ssl4eo_v11_file import read_contents
    from sharding.sources.tree import Tree
    from sharding.sources.zarr_zip_part import GroupFile

    arrays = {"sample": np.array(["1"]), "bands": np.ones((1, 4, 1, 1, 1)), "time_": values[None]}
    write_group(tmp_path / "a", arrays, attributes={"time_": {"units": units}})
    tree = Tree(str(tmp_path))
    expected = [f"{day[:4]}-{day[4:6]}-{day[6:]}T01:08:00" for day in S1_DAYS]
    assert read_contents(GroupFile(tree, tree.file("a"))).dates == [expected]


def test_times_that_count_from_nothing_are_refused(tmp_path):
    write_s1(tmp_path, ids=IDS[:1])
    write_s2(tmp_path, ids=IDS[:1])
    path = tmp_path / "train" / "S2L2A" / NAME
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    for units, message in (("fortnights since 1970-01-01", "no unit of time"), ("days since then", "counts from")):
        entries["time_/.zattrs"] = f'{{"units": "{units}"}}'.encode()
        with zipfile.ZipFile(path, "w") as file:
            for name, content in entries.items():
                file.writestr(name, content)
        listing = source_at(tmp_path).list()
        assert [r.reason for r in listing.refused] == ["metadata missing or wrong"]
        assert message in listing.refused[0].message


def test_places_that_the_listing_lacks_come_from_the_coordinates_of_the_pixels(tmp_path):
    write_s1(tmp_path, ids=IDS[:1], center_lat=None, center_lon=None)
    write_s2(tmp_path, ids=IDS[:1], center_lat=None, center_lon=np.array([np.nan]))
    source = source_at(tmp_path)
    pair = source.list().pairs[0]
    assert np.isnan([pair.lon, pair.lat]).all()
    crs, x, y = source.centre(pair)
    assert (crs, x, y) == ("EPSG:32651", 714_900 + 1000 * (80717 % 97) + 1320, 4_728_010 - 1320)
    assert source.read(pair).place == to_degrees(crs, [(x, y)])[0]


def test_halves_whose_coordinates_are_some_pixels_apart_are_one_place_as_in_v1_0(tmp_path):
    write_s2(tmp_path, ids=IDS[:1])
    source = source_at(tmp_path)
    for shift, fits in ((40, True), (-100, True), (101, False), (2000, False)):
        write_s1(tmp_path, ids=IDS[:1], y_=4_728_005.0 + shift - 10 * np.arange(264)[None])
        pair = source.list().pairs[0]
        if fits:
            sample = source.read(pair)
            assert [sample.arrays[name].transform[5] for name in ("s1", "s2_10m")] == [4_728_010.0 + shift, 4_728_010.0]
        else:
            with pytest.raises(PairError, match="no one place") as caught:
                source.read(pair)
            assert (caught.value.reason, caught.value.file) == ("grids disagree", f"train/S1GRD/{NAME}")


def test_files_are_the_two_zips_and_a_missing_one_is_named(tmp_path):
    write_s1(tmp_path, ids=IDS[:1])
    write_s2(tmp_path, ids=IDS[:1])
    source = source_at(tmp_path)
    pair = source.list().pairs[0]
    files = source.files(pair)
    assert [file.path for file in files] == [f"train/S1GRD/{NAME}", f"train/S2L2A/{NAME}"]
    assert [file.size for file in files] == [(tmp_path / file.path).stat().st_size for file in files]
    (tmp_path / files[1].path).unlink()
    for call in (source.files, source.read, source.centre):
        with pytest.raises(PairError) as caught:
            call(pair)
        assert (caught.value.reason, caught.value.file) == ("missing half", files[1].path)


def test_a_file_that_has_other_samples_than_when_it_was_listed_is_not_mistaken(tmp_path):
    write_s1(tmp_path, ids=IDS[:1])
    write_s2(tmp_path, ids=IDS[:1])
    source = source_at(tmp_path)
    pair = source.list().pairs[0]
    source.read(pair)
    write_s1(tmp_path, ids=IDS[1:2])
    with pytest.raises(PairError, match="sample 0 is not 0080717") as caught:
        source.read(pair)
    assert caught.value.reason == "metadata missing or wrong"


def test_the_edition_in_tars_and_other_roots_are_refused_with_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="there is no"):
        source_at(tmp_path / "nowhere").list()
    with pytest.raises(ConfigError, match="has no S1GRD and S2L2A or S2L1C in train or val"):
        source_at(tmp_path).list()
    for folder in ("S1GRD", "S2L2A"):
        (tmp_path / "val" / folder).mkdir(parents=True)
        (tmp_path / "val" / folder / "ssl4eos12_shard_000001.tar").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"another edition of SSL4EO-S12 v1\.1 \(its tars have no \+1000"):
        source_at(tmp_path).list()


def test_the_same_pairs_and_pixels_come_from_an_object_store(archive):
    memory = fsspec.filesystem("memory")
    memory.put(str(archive), "/ssl4eo-v11", recursive=True)
    try:
        local, remote = source_at(archive), source_at("memory://ssl4eo-v11")
        assert remote.list().table.equals(local.list().table)
        pair = remote.list().pairs[7]
        ours, theirs = local.read(pair), remote.read(pair)
        assert [file.size for file in remote.files(pair)] == [file.size for file in local.files(pair)]
        for name, array in ours.arrays.items():
            assert np.array_equal(array.data, theirs.arrays[name].data)
    finally:
        memory.rm("/ssl4eo-v11", recursive=True)


@pytest.mark.skipif(not CONSTRUCTED.exists(), reason="needs ../shared/layouts, the layouts of published data sets")
def test_the_constructed_file_comes_out_bit_for_bit():
    source = source_at(CONSTRUCTED)
    listing = source.list()
    assert [(pair.key, pair.split) for pair in listing.pairs] == [("0000200_0", "val"), ("0000200_1", "val")]
    assert listing.refused == []
    assert listing.notes == ["1 files do not date their samples; timestamps are paired by their numbers"]
    for time, pair in enumerate(listing.pairs):
        sample = source.read(pair)
        assert_as_stored(CONSTRUCTED, pair, sample, 0, time, 0, time)
        assert {array.gsd_m for array in sample.arrays.values()} == {10.0}
        assert (sample.crs, sample.centre, source.centre(pair), sample.dates) == ("EPSG:4326", None, None, {})
        assert not sample.arrays["cloud_mask"].data.any()


@pytest.mark.skipif(
    not (SHARED.parent / "index" / "ssl4eos12_val_metadata.parquet").exists(), reason="needs ../shared/index"
)
def test_keys_are_those_of_the_archives_own_metadata():
    import pyarrow.parquet as pq

    table = pq.read_table(
        SHARED.parent / "index" / "ssl4eos12_val_metadata.parquet", columns=["sample_id", "time_id", "idx"]
    )
    rows = table.to_pylist()
    assert {row["time_id"] for row in rows} == {0, 1, 2, 3}
    assert all(row["idx"] == f"{row['sample_id']}_{row['time_id']}" for row in rows)
    assert all(len(row["sample_id"]) == 7 for row in rows)
