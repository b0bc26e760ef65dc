"""Cubes in Zarr and netCDF: the same patches whatever the store, dates matched, clouds left out, pixels as stored."""

import datetime
import gc
import shutil
import warnings

import fsspec
import h5py
import numpy as np
import pytest
import rasterio
import zarr

from sharding import verify
from sharding.errors import ConfigError
from sharding.sources import open_source
from sharding.sources.base import PairError, SourceOptions
from sharding.sources.cube_axes import crs_of, dates_of
from sharding.sources.cube_dates import Partners
from sharding.sources.cube_layers import role_of
from sharding.sources.cube_store import CubeGroup, Variable, number_of
from sharding.sources.nearest import match_nearest
from tests.unit.sharding.conftest import SHARED, run, run_build
from tests.unit.sharding.small_cubes import (
    NORTH,
    WEST,
    Content,
    at_gsd,
    make_cube,
    plane,
    time_axis,
    write_netcdf,
    write_zarr,
    zip_folder,
)

LEVEL = {"s2_level": "L2A"}
SIDE = 32


def opened(root, **options):
    source = open_source("cube", str(root), SourceOptions(**{"patch_pixels": SIDE, **options}))
    return source, source.list()


def read_all(root, **options):
    source, listing = opened(root, **options)
    assert not listing.refused
    return {pair.key: source.read(pair) for pair in listing.pairs}


def planes(sample):
    return {b: p for a in sample.arrays.values() for b, p in zip(a.bands, a.data, strict=True)}


def refusal(root, **options):
    _, listing = opened(root, **options)
    assert not listing.pairs
    [only] = listing.refused
    return only


def write_as(form, tmp_path, cube, **more):
    """The cube in one of the forms that a user may have; returns its path."""
    attributes = {**LEVEL, **more}
    if form == "netcdf":
        write_netcdf(tmp_path / "site.nc", cube, attributes=attributes)
        return tmp_path / "site.nc"
    version = 2 if "v2" in form else 3
    store = tmp_path / "site.zarr"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # consolidated metadata of version 3 have no settled form
        write_zarr(
            store,
            cube,
            version=version,
            attributes=attributes,
            consolidated="consolidated" in form,
            shards=96 if "shards" in form else None,
        )
    if "zip" not in form:
        return store
    zip_folder(store, tmp_path / "site.zarr.zip")
    shutil.rmtree(store)
    return tmp_path / "site.zarr.zip"


FORMS = (
    "zarr v2", "zarr v3", "zarr v2 consolidated", "zarr v3 consolidated", "zarr v3 shards", "zarr v2 zip",
    "zarr v3 zip", "netcdf",
)  # fmt: skip


# The same whatever the store


@pytest.mark.parametrize("form", FORMS)
def test_every_patch_has_the_pixels_of_its_dates_as_stored(form, tmp_path):
    cube = make_cube()
    path = write_as(form, tmp_path, cube)
    samples = read_all(path)
    assert len(samples) == 9 * 2
    for key, sample in samples.items():
        name, date, place = key.split("/")
        row, column = map(int, place.split("_"))
        assert name == "site"
        day = {"20200602T101031": 0, "20200608T101031": 1}[date]
        part = np.s_[day, SIDE * row : SIDE * (row + 1), SIDE * column : SIDE * (column + 1)]
        assert sorted(planes(sample)) == ["B02", "B08", "VH", "VV"]
        assert all(np.array_equal(stored, cube[band].data[part]) for band, stored in planes(sample).items())
        assert sample.arrays["s1"].transform == (10, 0, WEST + 320 * column, 0, -10, NORTH - 320 * row)
        assert (sample.crs, sample.level) == ("EPSG:32633", "L2A")
        assert sample.dates == {"s1": f"2020-06-{1 + 6 * day:02}T17:00:43", "s2": f"2020-06-{2 + 6 * day:02}T10:10:31"}
        assert sample.attributes == {"row": row, "column": column}


@pytest.mark.parametrize("form", ["zarr v2", "zarr v3", "zarr v3 zip", "netcdf"])
def test_a_cube_in_a_store_gives_what_it_gives_on_a_disk(form, tmp_path):
    path = write_as(form, tmp_path, make_cube())
    here = read_all(path)
    memory = fsspec.filesystem("memory")
    memory.put(str(path), f"/cubes/{path.name}", recursive=True)
    try:
        source, listing = opened(f"memory://cubes/{path.name}")
        in_folder = opened("memory://cubes")[1]
        assert [pair.key for pair in listing.pairs] == [pair.key for pair in in_folder.pairs] == sorted(here)
        for pair in listing.pairs[::5]:
            stored, expected = planes(source.read(pair)), planes(here[pair.key])
            assert all(np.array_equal(stored[band], expected[band]) for band in expected)
            assert all(file.size and file.version for file in source.files(pair))
    finally:
        memory.rm("/cubes", recursive=True)


def test_the_listing_says_places_and_dates(tmp_path):
    _, listing = opened(write_as("zarr v3", tmp_path, make_cube()))
    pair = listing.pairs[0]
    lon, lat = rasterio.warp.transform("EPSG:32633", "EPSG:4326", [WEST + 160], [NORTH - 160])
    assert (pair.lon, pair.lat) == (round(lon[0], 7), round(lat[0], 7))
    assert (pair.s1_date, pair.s2_date) == ("2020-06-01T17:00:43", "2020-06-02T10:10:31")
    assert not listing.has_splits


def test_a_build_of_cubes_is_verified(tmp_path):
    for site in ("a", "b"):
        write_netcdf(tmp_path / "cubes" / f"{site}.nc", make_cube(), attributes={**LEVEL, "split": "train"})
    arguments = ["--source", "cube", "--root", tmp_path / "cubes", "--patch-pixels", SIDE]
    ended = run_build(*arguments, "--out", tmp_path / "out", "--json")
    assert ended.code == 0, ended.err
    assert (ended.figures["samples_built"], ended.figures["refused"]) == (36, 0)
    assert run(verify.main, tmp_path / "out").code == 0


# What is read


def test_a_patch_reads_its_own_pieces_alone(tmp_path):
    """Every other piece is broken, and nobody notices."""
    path = write_as("zarr v3", tmp_path, make_cube())
    source, listing = opened(path)
    pair = next(pair for pair in listing.pairs if pair.key.endswith("20200608T101031/1_2"))
    expected = planes(source.read(pair))
    files = {file.path for file in source.files(pair)}
    assert {f"{band}/c/1/1/2" for band in ("VV", "VH", "B02", "B08")} | {"zarr.json"} < files
    for piece in path.glob("*/c/*/*/*"):
        if str(piece.relative_to(path)) not in files:
            piece.write_bytes(b"broken")
    again = open_source("cube", str(path), SourceOptions(patch_pixels=SIDE))
    assert all(np.array_equal(stored, expected[band]) for band, stored in planes(again.read(pair)).items())
    (path / "B08" / "c/1/1/2").write_bytes(b"broken")
    with pytest.raises(PairError) as told:
        open_source("cube", str(path), SourceOptions(patch_pixels=SIDE)).read(pair)
    assert told.value.reason == "corrupt file"
    assert told.value.message.startswith("B08 cannot be read")


@pytest.mark.parametrize("form", ["zarr v2", "zarr v3", "zarr v3 shards", "netcdf"])
def test_a_changed_piece_is_another_file(form, tmp_path):
    path = write_as(form, tmp_path, make_cube())
    source, listing = opened(path)
    pair = listing.pairs[0]
    before = source.files(pair)
    assert source.files(pair) == before
    del source
    gc.collect()  # what is open in this process cannot be written to
    store = zarr.open_group(path, mode="a") if form != "netcdf" else h5py.File(path, "a")
    store["B08"][0, 0, 0] = 7
    if form == "netcdf":
        store.close()
    again = open_source("cube", str(path), SourceOptions(patch_pixels=SIDE))
    assert again.files(pair) != before
    assert planes(again.read(pair))["B08"][0, 0] == 7


@pytest.mark.parametrize("form", ["zarr v3", "netcdf"])
def test_a_cube_that_is_replaced_is_opened_again_when_its_files_are_asked_for(form, tmp_path):
    path = write_as(form, tmp_path, make_cube())
    source, listing = opened(path)
    pair = listing.pairs[0]
    before = source.files(pair)
    source.read(pair)
    cube = make_cube()
    cube["B08"].data[0, 0, 0] = 7
    (tmp_path / "new").mkdir()
    new = write_as(form, tmp_path / "new", cube)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    new.rename(path)
    assert source.files(pair) != before
    assert planes(source.read(pair))["B08"][0, 0] == 7


def test_the_listing_reads_no_band(tmp_path, monkeypatch):
    cube = at_gsd(make_cube(("VV", "VH", "B02", "SCL")), 20, "SCL")
    path = write_as("netcdf", tmp_path, cube)
    seen = []
    read = Variable.read
    monkeypatch.setattr(Variable, "read", lambda self, *window: (seen.append(self.name), read(self, *window))[1])
    opened(path)
    assert set(seen) == {"x", "y", "x20", "y20", "time", "time_s1"}
    opened(path, max_cloud=0.5)
    assert set(seen) == {"x", "y", "x20", "y20", "time", "time_s1", "SCL"}


def test_a_missing_file_is_named_when_its_shard_is_built(tmp_path):
    path = write_as("netcdf", tmp_path, make_cube())
    pair = opened(path)[1].pairs[0]
    path.unlink()
    source = open_source("cube", str(path), SourceOptions(patch_pixels=SIDE))
    for call in (source.files, source.read):
        with pytest.raises(PairError, match=r"site\.nc: .*missing"):
            call(pair)


# Patches


def test_patches_that_are_not_whole_are_counted(tmp_path):
    _, listing = opened(write_as("netcdf", tmp_path, make_cube(side_m=1000)))
    assert len(listing.pairs) == 9 * 2
    assert "7 patches along the borders of cubes are not whole and are left out" in listing.notes


def test_a_patch_size_that_no_cube_has_is_wrong_usage(tmp_path):
    path = write_as("netcdf", tmp_path, make_cube())
    with pytest.raises(ConfigError, match="site has 96x96 pixels at 10 m where --patch-pixels is 256"):
        opened(path, patch_pixels=256)


def test_small_cubes_among_others_are_told(tmp_path):
    write_netcdf(tmp_path / "small.nc", make_cube(side_m=240), attributes=LEVEL)
    write_netcdf(tmp_path / "large.nc", make_cube(), attributes=LEVEL)
    _, listing = opened(tmp_path)
    assert {pair.key.split("/")[0] for pair in listing.pairs} == {"large"}
    assert any(note.startswith("1 cubes are smaller than a patch: small has 24x24 pixels") for note in listing.notes)


def test_bands_keep_their_own_resolutions(tmp_path):
    cube = at_gsd(at_gsd(make_cube(("VV", "VH", "B02", "B05", "B01")), 20, "VV", "VH", "B05"), 60, "B01")
    path = write_as("zarr v3", tmp_path, cube)
    with pytest.raises(
        ConfigError, match=r"--patch-pixels 32 at 10 m are 5\.33333 pixels of B01 \(60 m\); give a mult"
    ):
        opened(path)
    samples = read_all(path, patch_pixels=48)
    sample = samples["site/20200602T101031/1_0"]
    assert {name: (array.data.shape, array.gsd_m) for name, array in sample.arrays.items()} == {
        "s1": ((2, 24, 24), 20),
        "s2_10m": ((1, 48, 48), 10),
        "s2_20m": ((1, 24, 24), 20),
        "s2_60m": ((1, 8, 8), 60),
    }
    assert np.array_equal(planes(sample)["B01"], cube["B01"].data[0, 8:, :8])
    assert np.array_equal(planes(sample)["VV"], cube["VV"].data[0, 24:, :24])
    assert "resampled" not in sample.attributes


def test_coarse_bands_on_the_fine_grid_are_told(tmp_path):
    path = write_as("netcdf", tmp_path, make_cube(("VV", "B02", "B05")))
    sample = read_all(path)["site/20200602T101031/0_0"]
    assert (sample.attributes["resampled"], sample.arrays["s2_20m"].gsd_m) == (["B05"], 10)


def test_grids_of_which_one_covers_more_are_cut_to_what_all_cover(tmp_path):
    cube = make_cube()
    wide = np.arange(100) * 10 + 5
    cube |= {"x_s1": Content(("x_s1",), WEST - 40 + wide), "y_s1": Content(("y_s1",), NORTH + 40 - wide)}
    cube = {name.replace("x_s1", "lon").replace("y_s1", "lat"): content for name, content in cube.items()}
    cube["lon"].dims, cube["lat"].dims = ("lon",), ("lat",)
    for band in ("VV", "VH"):
        data = np.stack([plane(band, day, 100) for day in (0, 6, 12)])
        cube[band] = Content(("time_s1", "lat", "lon"), data, cube[band].attributes)
    sample = read_all(write_as("netcdf", tmp_path, cube))["site/20200602T101031/0_0"]
    assert np.array_equal(planes(sample)["VV"], cube["VV"].data[0, 4:36, 4:36])
    assert np.array_equal(planes(sample)["B02"], cube["B02"].data[0, :32, :32])
    assert sample.arrays["s1"].transform == sample.arrays["s2_10m"].transform


def test_grids_whose_pixels_do_not_meet_are_refused(tmp_path):
    cube = at_gsd(make_cube(), 20, "VV", "VH")
    cube["x20"].data += 3
    told = refusal(write_as("netcdf", tmp_path, cube))
    assert told.reason == "metadata missing or wrong"
    assert "pixels beside those of another grid; resample the cube" in told.message


@pytest.mark.parametrize("form", ["zarr v2", "netcdf"])
def test_cubes_stored_the_other_way_round_are_turned_north_up(form, tmp_path):
    cube = make_cube()
    turned = {**cube, "y": Content(("y",), cube["y"].data[::-1]), "x": Content(("x",), cube["x"].data[::-1])}
    for band in ("VV", "VH", "B02", "B08"):
        dims = (cube[band].dims[0], "x", "y")
        data = cube[band].data[:, ::-1, ::-1].swapaxes(1, 2)
        turned[band] = Content(dims, np.ascontiguousarray(data), cube[band].attributes)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    straight, other = (read_all(write_as(form, tmp_path / n, c)) for n, c in (("a", cube), ("b", turned)))
    assert straight.keys() == other.keys()
    for key, sample in straight.items():
        assert all(np.array_equal(stored, planes(other[key])[band]) for band, stored in planes(sample).items())
        assert other[key].arrays["s1"].transform == sample.arrays["s1"].transform


@pytest.mark.parametrize("form", ["zarr v2", "netcdf"])
def test_bands_along_a_dimension_go_by_its_names(form, tmp_path):
    cube = make_cube()
    stacked = {name: cube[name] for name in ("x", "y", "time", "time_s1", "spatial_ref")}
    stacked["band"] = Content(("band",), np.array(["B08", "B02", "AOT"]))
    data = np.stack([cube["B08"].data, cube["B02"].data, cube["B02"].data * 0], axis=1)
    stacked["reflectance"] = Content(("time", "band", "y", "x"), data, {"grid_mapping": "spatial_ref"})
    stacked |= {"s1_vv": cube["VV"], "sigma0_VH": cube["VH"]}
    samples = read_all(write_as(form, tmp_path, stacked))
    sample = samples["site/20200608T101031/2_1"]
    expected = {band: cube[band].data[1, 64:, 32:64] for band in ("VV", "VH", "B02", "B08")}
    assert planes(sample).keys() == expected.keys()
    assert all(np.array_equal(planes(sample)[band], expected[band]) for band in expected)


# Dates


def test_the_nearest_s1_is_taken_and_what_has_none_is_counted(tmp_path):
    path = write_as("netcdf", tmp_path, make_cube(s1_days=(0, 2, 9), s2_days=(1, 5, 12, 40)))
    keys = {pair.s2_date[:10]: pair.s1_date[:10] for pair in opened(path)[1].pairs}
    assert keys == {"2020-06-02": "2020-06-01", "2020-06-06": "2020-06-03", "2020-06-13": "2020-06-10"}
    _, near = opened(path, max_days=1.0)
    assert {pair.s2_date[:10] for pair in near.pairs} == {"2020-06-02"}
    assert any(
        note.startswith("27 patches at dates of S2 are left out, for no S1 within 1 days") for note in near.notes
    )
    _, far = opened(path, max_days=60)
    assert {pair.s2_date[:10] for pair in far.pairs} == {"2020-06-02", "2020-06-06", "2020-06-13"}


@pytest.mark.parametrize("max_days", [0.5, 3.0, 40.0])
def test_partners_are_those_of_the_plain_matching_whatever_is_clear(max_days):
    rng = np.random.default_rng(5)

    def dates(count, has_time):
        seconds = sorted(rng.choice(200 * 86_400, count, replace=False).tolist())
        moments = [datetime.datetime(2020, 1, 1) + datetime.timedelta(seconds=s) for s in seconds]
        return tuple(dict.fromkeys(m.isoformat() if has_time else m.date().isoformat() for m in moments))

    for has_time in (True, False):
        s2, s1 = dates(50, has_time), dates(70, True)
        partners = Partners(s2, s1, max_days)
        for share in (0.1, 0.3, 0.7, 1.0):
            clear = tuple(date for date in s2 if rng.random() < share)
            assert partners.of(clear) == [(clear[i], s1[j]) for i, j in match_nearest(clear, s1, max_days)]


def test_dates_that_lack_a_band_are_left_out_and_counted(tmp_path):
    """Bands in files of their own may have other dates."""
    whole = make_cube(("VV", "VH", "B02"))
    write_netcdf(tmp_path / "s1.nc", {k: v for k, v in whole.items() if k not in ("B02", "time")})
    write_netcdf(tmp_path / "s2_l2a_10m.nc", {k: v for k, v in whole.items() if k not in ("VV", "VH", "time_s1")})
    fine = make_cube(("B05",), s2_days=(7, 30), gsd=20)
    write_netcdf(tmp_path / "s2_l2a_20m.nc", {k: v for k, v in fine.items() if k != "time_s1"})
    _, listing = opened(tmp_path)
    assert {pair.s2_date[:10] for pair in listing.pairs} == {"2020-06-08"}
    assert "1 dates of s2_l2a_10m.nc lack a band of S2 or its cloud mask and are left out" in listing.notes


def test_two_orbits_are_both_partners(tmp_path):
    descending = make_cube(("VV", "VH"), s1_days=(2, 8))
    for name, days, cube in (
        ("S1_ascending", (0, 6), make_cube(("VV", "VH"), s1_days=(0, 6))),
        ("S1_descending", (2, 8), descending),
    ):
        assert len(days) == len(cube["time_s1"].data)
        write_netcdf(tmp_path / f"{name}.nc", {k: v for k, v in cube.items() if k != "time"})
    s2 = make_cube(("B02",), s2_days=(0, 3, 9))
    write_netcdf(tmp_path / "S2_L2A.nc", {k: v for k, v in s2.items() if k != "time_s1"})
    source, listing = opened(tmp_path)
    by_date = {pair.s2_date[:10]: pair for pair in listing.pairs if pair.key.endswith("/0_0")}
    assert {date: pair.s1 for date, pair in by_date.items()} == {
        "2020-06-01": "S1_ascending.nc",
        "2020-06-04": "S1_descending.nc",
        "2020-06-10": "S1_descending.nc",
    }
    pair = by_date["2020-06-04"]
    assert np.array_equal(planes(source.read(pair))["VH"], descending["VH"].data[0, :32, :32])
    assert [file.path for file in source.files(pair)] == ["S1_descending.nc", "S2_L2A.nc"]


def test_an_axis_of_days_alone_gives_dates_alone(tmp_path):
    cube = make_cube()
    cube["time"], cube["time_s1"] = time_axis([1, 7, 30]), time_axis([0, 6, 12], "time_s1")
    pair = opened(write_as("netcdf", tmp_path, cube))[1].pairs[0]
    assert (pair.key, pair.s1_date, pair.s2_date) == ("site/20200602/0_0", "2020-06-01", "2020-06-02")


def variable(data, **attributes):
    return Variable(
        path="a.nc", name="time", dims=("time",), attributes=attributes, array=np.asarray(data), remote=False
    )


@pytest.mark.parametrize(
    ("data", "attributes", "expected"),
    [
        ([0, 86_400], {"units": "seconds since 2017-08-01 17:32:36"}, ["2017-08-01T17:32:36", "2017-08-02T17:32:36"]),
        ([9.999999999999], {"units": "days since 1990-1-1 0:0:0"}, ["1990-01-11"]),
        ([1.5], {"units": "hours since 2020-01-01T00:00:00+02:00"}, ["2019-12-31T23:30:00"]),
        ([60_000_000_000], {"units": "nanoseconds since 1970-01-01", "calendar": "standard"}, ["1970-01-01T00:01:00"]),
        (np.array(["2020-06-01T10:00:00.5"], "M8[ns]"), {}, ["2020-06-01T10:00:00"]),
        (np.array([b"2020-06-01", b"2020-06-02"]), {}, ["2020-06-01", "2020-06-02"]),
        (np.array(["2020-06-01T10:00:00Z"]), {}, ["2020-06-01T10:00:00"]),
    ],
)
def test_times_are_understood(data, attributes, expected):
    assert list(dates_of(variable(data, **attributes))) == expected


@pytest.mark.parametrize(
    ("data", "attributes", "message"),
    [
        ([0], {}, "the units of time are ''; they look like 'days since 1990-01-01'"),
        ([0], {"units": "months since 1990-01-01"}, "the units of time are 'months since"),
        ([0], {"units": "days since spring"}, "which count from no date"),
        ([0], {"units": "days since 1990-01-01", "calendar": "360_day"}, "the calendar of time is '360_day'"),
        ([np.nan], {"units": "days since 1990-01-01"}, "time has times that are missing"),
    ],
)
def test_times_that_are_none_are_told(data, attributes, message):
    with pytest.raises(ValueError, match=message):
        dates_of(variable(data, **attributes))


UTM33 = rasterio.crs.CRS.from_epsg(32633)


@pytest.mark.parametrize(
    "attributes",
    [
        {"crs": "+init=epsg:32633"},
        {"crs": "EPSG:32633"},
        {"proj:epsg": 32633},
        {"epsg": "32633"},
        {"spatial_ref": UTM33.to_wkt()},
        {"crs_wkt": UTM33.to_wkt(version="WKT2_2019")},
    ],
)
def test_reference_systems_are_understood(attributes):
    group = CubeGroup(path="a.nc", name="", attributes=attributes)
    assert crs_of(group, variable([0])) == "EPSG:32633"
    inner = CubeGroup(path="a.nc", name="s1", attributes={}, parent=group)
    assert crs_of(inner, variable([0])) == "EPSG:32633"
    assert crs_of(CubeGroup(path="", name="", attributes={}), variable([0], grid_mapping="none")) == ""


def test_a_cube_without_a_reference_system_is_kept_and_told(tmp_path):
    cube = make_cube()
    del cube["spatial_ref"]
    source, listing = opened(write_as("netcdf", tmp_path, cube))
    assert "site.nc says no CRS, so its patches have no place on earth" in listing.notes
    pair = listing.pairs[0]
    assert np.isnan(pair.lon)
    assert source.centre(pair) is None
    assert source.read(pair).crs == ""


# Clouds


def cloudy(tmp_path, mask, **attributes):
    """The middle patch is half cloud on the first date, a quarter on the second."""
    cube = at_gsd(make_cube(("VV", "B02", "SCL")), 20, "SCL")
    name, clear, cloud = mask
    data = np.full(cube["SCL"].data.shape, clear, np.asarray(cloud).dtype)
    data[0, 16:32, 16:24] = cloud
    data[1, 16:24, 16:24] = cloud
    scl = cube.pop("SCL")
    cube[name] = Content(scl.dims, data, {**scl.attributes, **attributes})
    return write_as("netcdf", tmp_path, cube), data


@pytest.mark.parametrize(
    ("mask", "attributes"),
    [
        (("SCL", np.uint8(4), np.uint8(9)), {}),
        (("SCL", np.uint8(5), np.uint8(3)), {}),
        (("S2-L2A-SCL", np.uint8(5), np.uint8(0)), {}),
        (("cloud_mask", np.uint8(0), np.uint8(1)), {}),
        (
            ("cloud_mask", np.uint8(2), np.uint8(4)),
            {"flag_meanings": "land water snow thin_cloud thick_cloud", "flag_values": [0, 1, 2, 3, 4]},
        ),
        (("CLP", np.uint8(10), np.uint8(80)), {}),
        (("CLP", np.float32(0.1), np.float32(0.8)), {}),
    ],
)
@pytest.mark.parametrize(("limit", "dates"), [(1.0, ["02", "08"]), (0.5, ["02", "08"]), (0.3, ["08"]), (0.1, [])])
def test_patches_behind_clouds_are_left_out_and_counted(tmp_path, mask, attributes, limit, dates):
    path, _ = cloudy(tmp_path, mask, **attributes)
    _, listing = opened(path, max_cloud=limit)
    assert not listing.refused
    middle = [pair.s2_date[8:10] for pair in listing.pairs if pair.key.endswith("1_1")]
    assert middle == dates
    assert len(listing.pairs) == 16 + len(dates)
    told = [note for note in listing.notes if "for clouds hide more than" in note]
    assert told == (
        [f"{2 - len(dates)} patches at dates of S2 are left out, for clouds hide more than {limit:g} of them"]
        if len(dates) < 2
        else []
    )


def test_the_mask_rides_along_and_its_share_is_kept(tmp_path):
    path, data = cloudy(tmp_path, ("SCL", np.uint8(4), np.uint8(9)))
    samples = read_all(path)
    sample = samples["site/20200602T101031/1_1"]
    assert sample.attributes["cloud_share"] == 0.5
    assert samples["site/20200602T101031/0_0"].attributes["cloud_share"] == 0
    array = sample.arrays["cloud_mask"]
    assert np.array_equal(array.data[0], data[0, 16:32, 16:32])
    assert (array.bands, array.units, array.gsd_m) == (("CLOUD",), "class", 20)
    assert "cloud_mask" not in read_all(path, riders=False)["site/20200602T101031/1_1"].arrays


def test_a_partner_is_not_spent_on_a_clouded_date(tmp_path):
    """The date nearest to the only S1 is behind clouds; the next one gets it."""
    cube = make_cube(("VV", "B02", "SCL"), s1_days=(5,), s2_days=(5, 7))
    cube["SCL"].data[0] = 9
    path = write_as("netcdf", tmp_path, cube)
    assert {pair.s2_date[:10] for pair in opened(path)[1].pairs} == {"2020-06-06"}
    assert {pair.s2_date[:10] for pair in opened(path, max_cloud=0.2)[1].pairs} == {"2020-06-08"}


def test_cubes_without_a_mask_are_told_when_clouds_matter(tmp_path):
    _, listing = opened(write_as("netcdf", tmp_path, make_cube()), max_cloud=0.5)
    assert len(listing.pairs) == 18
    assert "1 cubes have no cloud mask, so none of their patches is left out for clouds: site" in listing.notes


# What the numbers mean


def with_bands(cube, dtype, change, *bands, **attributes):
    for band in bands:
        data = change(cube[band].data.astype(np.float64)).astype(dtype)
        cube[band] = Content(cube[band].dims, data, {**cube[band].attributes, **attributes})
    return cube


def test_scaled_integers_of_s1_keep_their_numbers(tmp_path):
    cube = with_bands(make_cube(), np.int32, lambda db: np.round(db * 1e4), "VV", "VH", scale_factor=1e-4, _FillValue=0)
    cube["VV"].data[0, 3, 4] = 0
    sample = read_all(write_as("netcdf", tmp_path, cube))["site/20200602T101031/0_0"]
    array = sample.arrays["s1"]
    assert np.array_equal(array.data[0], cube["VV"].data[0, :32, :32])
    assert (array.data.dtype, array.scale, array.nodata, array.units) == (np.int32, 1e-4, 0, "dB")


def test_logarithmic_numbers_become_decibels(tmp_path):
    """WorldCereal's composites: dB = 20*log10(DN) - 83 in uint16, 65535 where nothing was measured."""
    cube = with_bands(make_cube(), np.uint16, lambda db: np.round(10 ** ((db + 83) / 20)), "VV", "VH")
    cube["VV"].data[0, 0, :2] = (65535, 0)
    cube["B02"].data[0, 1, 1] = 65535
    renamed = {"VV": "S1-SIGMA0-VV", "VH": "S1-SIGMA0-VH", "B02": "S2-L2A-B02", "B08": "S2-L2A-B08"}
    cube = {renamed.get(name, name): content for name, content in cube.items()}
    write_netcdf(tmp_path / "site.nc", cube)
    sample = read_all(tmp_path / "site.nc")["site/20200602T101031/0_0"]
    array = sample.arrays["s1"]
    stored = cube["S1-SIGMA0-VV"].data[0, :32, :32].astype(np.float64)
    stored[0, :2] = 1
    expected = (20 * np.log10(stored) - 83).astype(np.float32)
    expected[0, :2] = 65535
    assert np.array_equal(array.data[0], expected)
    assert (array.data.dtype, array.units, array.scale, array.nodata) == (np.float32, "dB", 1, 65535)
    assert sample.attributes["s1_decoded_from"] == "20*log10(DN)-83"
    assert (sample.level, sample.arrays["s2_10m"].nodata) == ("L2A", 65535)
    assert np.array_equal(sample.arrays["s2_10m"].data[0], cube["S2-L2A-B02"].data[0, :32, :32])


def test_integers_with_an_added_offset_are_worked_out_and_told(tmp_path):
    cube = with_bands(
        make_cube(), np.uint16, lambda db: np.round((db + 50) * 100), "VV", "VH", scale_factor=0.01, add_offset=-50.0
    )
    sample = read_all(write_as("netcdf", tmp_path, cube))["site/20200602T101031/0_0"]
    stored = cube["VV"].data[0, :32, :32]
    assert np.array_equal(sample.arrays["s1"].data[0], (stored * 0.01 - 50).astype(np.float32))
    assert sample.attributes["s1_decoded_from"] == "DN*0.01-50"
    assert sample.arrays["s1"].scale == 1


def test_linear_power_is_told_by_its_units(tmp_path):
    cube = with_bands(make_cube(), np.float32, lambda db: 10 ** (db / 10), "VV", "VH", units="linear")
    array = read_all(write_as("zarr v3", tmp_path, cube))["site/20200602T101031/0_0"].arrays["s1"]
    assert (array.units, array.scale) == ("linear", 1)


def test_reflectance_is_told_by_its_units(tmp_path):
    cube = with_bands(make_cube(), np.float32, lambda dn: dn / 1e4, "B02", "B08", units="reflectance")
    array = read_all(write_as("zarr v3", tmp_path, cube))["site/20200602T101031/0_0"].arrays["s2_10m"]
    assert (array.units, array.data.dtype) == ("reflectance", np.float32)
    assert np.array_equal(array.data[0], cube["B02"].data[0, :32, :32])


@pytest.mark.parametrize(
    ("change", "offset"),
    [
        ({"scale_factor": 1e-4, "add_offset": -0.1}, -1000),
        ({"scale_factor": 1e-4}, 0),
        ({}, 0),
    ],
)
def test_the_offset_of_s2_is_in_stored_numbers(tmp_path, change, offset):
    cube = with_bands(make_cube(), np.uint16, lambda dn: dn, "B02", "B08", **change)
    array = read_all(write_as("netcdf", tmp_path, cube))["site/20200602T101031/0_0"].arrays["s2_10m"]
    assert (array.radiometric_offset, array.scale) == (offset, 1)


def test_the_offset_of_s2_may_be_of_each_date(tmp_path):
    cube = make_cube()
    cube["s2_offset"] = Content(("time",), np.array([0, -1000, -1000], np.int16))
    samples = read_all(write_as("netcdf", tmp_path, cube))
    offsets = {key.split("/")[1][:8]: s.arrays["s2_10m"].radiometric_offset for key, s in samples.items()}
    assert offsets == {"20200602": 0, "20200608": -1000}


def test_an_offset_that_nothing_tells_is_told_of_late_dates(tmp_path):
    days = (datetime.date(2022, 2, 1) - datetime.date(2020, 6, 1)).days
    path = write_as("netcdf", tmp_path, make_cube(s1_days=(days,), s2_days=(days,)))
    notes = opened(path)[1].notes
    assert any("does not say whether its numbers carry ESA's +1000" in note for note in notes)
    path.unlink()
    path = write_as("netcdf", tmp_path, make_cube(s1_days=(days,), s2_days=(days,)), s2_offset=-1000)
    assert opened(path)[1].notes == []


@pytest.mark.parametrize(
    ("bands", "dtype", "attributes", "message"),
    [
        (("VV", "VH"), np.int32, {}, "VV is int32 and says no scale_factor; add the attribute"),
        (("VV",), np.float32, {"_FillValue": -9999.0}, "VV, VH are stored in different ways"),
        (("VV", "VH"), np.float32, {"units": "metres"}, "the units of VV are 'metres'; write dB or linear"),
        (("B02", "B08"), np.float32, {}, "B02 is float32 in the units ''; write digital numbers as uint16"),
        (("B02", "B08"), np.uint16, {"scale_factor": 0.01}, "the scale_factor of B02 is 0.01"),
        (("B02",), np.uint16, {"_FillValue": 65535}, "B02, B08 are of different fill values"),
    ],
)
def test_numbers_of_unknown_meaning_are_refused(tmp_path, bands, dtype, attributes, message):
    cube = with_bands(make_cube(), dtype, lambda numbers: numbers, *bands, **attributes)
    told = refusal(write_as("netcdf", tmp_path, cube))
    assert (told.key, told.reason, told.file) == ("site", "metadata missing or wrong", "site.nc")
    assert message in told.message


def test_logarithmic_numbers_in_int16_are_refused(tmp_path):
    cube = with_bands(make_cube(), np.int16, lambda db: 10 ** ((db + 83) / 20), "VV", "VH")
    cube = {name.replace("VV", "S1-SIGMA0-VV").replace("VH", "S1-SIGMA0-VH"): c for name, c in cube.items()}
    assert (
        "into which 20*log10(DN)-83 does not fit; write it as uint16"
        in refusal(write_as("netcdf", tmp_path, cube)).message
    )


def test_fill_values_as_xarray_keeps_them():
    assert number_of("AAAAAAAA+H8=") != number_of("AAAAAAAA+H8=")  # NaN
    assert (number_of("AAAAAACIw8A="), number_of(0), number_of("-3"), number_of("x"), number_of(True)) == (
        -10_000,
        0,
        -3,
        None,
        None,
    )


def test_the_level_of_s2_is_told_by_names_attributes_or_the_user(tmp_path):
    cube = make_cube()
    write_netcdf(tmp_path / "site.nc", cube)
    assert "nothing says whether S2 is level 1C or 2A" in refusal(tmp_path / "site.nc").message
    assert {s.level for s in read_all(tmp_path / "site.nc", s2_level="L1C").values()} == {"L1C"}
    write_netcdf(tmp_path / "b.nc", cube, attributes={"processing_level": "Level-2A"})
    _, listing = opened(tmp_path / "b.nc", s2_level="L1C")
    assert not listing.pairs
    assert listing.notes == ["1 cubes are not of level L1C and are left out: b"]


# Which files are a cube


def split_halves(cube, time):
    of_s1 = {name: c for name, c in cube.items() if name not in ("B02", "B08", "time")}
    of_s2 = {name: c for name, c in cube.items() if name not in ("VV", "VH", "time_s1")}
    of_s1 = {
        time if n == "time_s1" else n: Content(
            tuple(time if d == "time_s1" else d for d in c.dims), c.data, c.attributes
        )
        for n, c in of_s1.items()
    }
    return of_s1, of_s2


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (("s1.nc", "s2.nc"), {"cube"}),
        (("S1_GRD_siteA.nc", "S2_L2A_siteA.nc"), {"siteA"}),
        (("siteA/s1.nc", "siteA/s2_10m.nc"), {"siteA"}),
        (("S1GRD/siteA.nc", "S2L2A/siteA.nc"), {"siteA"}),
        (("S1_GRD-ASCENDING_20m_X7_32631_2017.nc", "S2_L2A_10m_X7_32631_2017.nc"), {"X7_32631_2017"}),
    ],
)
def test_halves_in_files_of_their_own_are_one_cube(tmp_path, names, keys):
    halves = split_halves(make_cube(), "time")
    for name, half in zip(names, halves, strict=True):
        write_netcdf(tmp_path / name, half, attributes=LEVEL)
    _, listing = opened(tmp_path)
    assert len(listing.pairs) == 18
    assert {pair.key.split("/")[0] for pair in listing.pairs} == keys


@pytest.mark.parametrize("form", ["zarr v2", "zarr v3", "netcdf"])
def test_halves_in_groups_of_their_own_are_one_cube(tmp_path, form):
    cube = make_cube()
    for group, half in zip(("s1", "s2"), split_halves(cube, "time"), strict=True):
        if form == "netcdf":
            write_netcdf(tmp_path / "site.nc", half, group=group, attributes=LEVEL)
        else:
            write_zarr(tmp_path / "site.zarr", half, group=group, attributes=LEVEL, version=int(form[-1]))
    sample = read_all(tmp_path)["site/20200608T101031/1_1"]
    assert all(np.array_equal(stored, cube[b].data[1, 32:64, 32:64]) for b, stored in planes(sample).items())
    assert len(planes(sample)) == 4


def test_many_cubes_have_keys_of_their_own(tmp_path):
    """Whatever their names: dots, spaces, great length; the same whenever it is listed."""
    long = "very" * 30
    for name in ("a.b.nc", "a_b.nc", "a b.nc", f"{long}1.nc", f"{long}2.nc", "deep/er/c.nc"):
        write_netcdf(tmp_path / name, make_cube(side_m=320), attributes=LEVEL)
    keys = [pair.key for pair in opened(tmp_path)[1].pairs]
    assert len(keys) == len(set(keys)) == 6 * 2
    assert all(len(key) <= 91 and "." not in key and " " not in key for key in keys)
    assert {key.split("/2020")[0] for key in keys} >= {"deep/er/c"}
    assert keys == [pair.key for pair in opened(tmp_path)[1].pairs]


def test_a_half_without_the_other_is_refused(tmp_path):
    of_s1, of_s2 = split_halves(make_cube(), "time")
    write_netcdf(tmp_path / "s2_x.nc", of_s2, attributes=LEVEL)
    told = refusal(tmp_path)
    assert (told.reason, told.file) == ("missing half", "s2_x.nc")
    assert "it has no S1 over time (only B02, B08); put the other half beside it" in told.message
    write_netcdf(tmp_path / "s1_y.nc", of_s1)
    assert sorted(refused.file for refused in opened(tmp_path)[1].refused) == ["s1_y.nc", "s2_x.nc"]


def test_files_of_something_else_are_told_and_left_out(tmp_path):
    """Such as weather, or another satellite whose bands are named alike."""
    write_netcdf(tmp_path / "site.nc", make_cube(), attributes=LEVEL)
    write_netcdf(tmp_path / "L8.nc", {k: v for k, v in make_cube().items() if k not in ("VV", "VH")})
    write_netcdf(tmp_path / "weather.nc", {"time": time_axis([0]), "rain": Content(("time",), np.zeros(1))})
    _, listing = opened(tmp_path)
    assert len(listing.pairs) == 18
    assert not listing.refused
    assert "2 files hold no S1 and S2 over time and are left out: L8.nc, weather.nc" in listing.notes


def test_two_variables_of_one_band_are_refused(tmp_path):
    cube = make_cube()
    cube["band_B02"] = cube["B02"]
    told = refusal(write_as("netcdf", tmp_path, cube))
    assert (told.reason, "are both B02; keep one" in told.message) == ("bands contradict", True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.nc", b"no netCDF at all", "it cannot be opened"),
        ("a.nc", b"CDF\x01 and so on", "it is a classic netCDF file; make it netCDF-4 with: nccopy -k nc4"),
        ("a.zarr.zip", b"no ZIP", "it cannot be opened"),
        ("a.zarr/zarr.json", b"{", "it cannot be opened"),
    ],
)
def test_broken_cubes_are_refused_and_the_others_built(tmp_path, name, content, message):
    write_netcdf(tmp_path / "whole.nc", make_cube(), attributes=LEVEL)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    _, listing = opened(tmp_path)
    assert len(listing.pairs) == 18
    [told] = listing.refused
    assert (told.key, told.reason, told.file) == ("a", "corrupt file", name.split("/")[0])
    assert message in told.message


@pytest.mark.parametrize(
    ("drop", "message"),
    [("x", "has no coordinates along x"), ("time", "has the dimension time without dates")],
)
def test_a_cube_without_coordinates_is_refused(tmp_path, drop, message):
    cube = make_cube()
    del cube[drop]
    write_zarr(tmp_path / "site.zarr", cube, attributes=LEVEL)
    assert message in refusal(tmp_path).message


def test_unnamed_dimensions_are_refused(tmp_path):
    write_zarr(tmp_path / "site.zarr", {"VV": Content((None,) * 3, np.zeros((2, 8, 8), np.float32))})
    assert (
        "VV has the dimensions dim_0, dim_1, dim_2; they are to be time, y and x, by name" in refusal(tmp_path).message
    )


def test_uneven_coordinates_are_refused(tmp_path):
    cube = make_cube()
    cube["y"].data[5] += 3
    told = refusal(write_as("netcdf", tmp_path, cube))
    assert "the coordinates along y are not evenly spaced" in told.message


def test_nothing_at_the_root_is_wrong_usage(tmp_path):
    for root in (tmp_path / "none", tmp_path / "none.nc", tmp_path / "none.zarr"):
        with pytest.raises(ConfigError, match=r"there is no .*none"):
            opened(root)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("VV", "VV"), ("vh", "VH"), ("B2", "B02"), ("S2-L2A-B8A", "B8A"), ("S1-SIGMA0-VH", "VH"), ("nir", "B08"),
        ("B02_20m", "B02"), ("gamma0_vv", "VV"), ("SCL", "SCL"), ("cloud_mask", "CLOUD"), ("LC", "LABEL"),
        ("mask_vv", None), ("B02_std", None), ("angle_VV", None), ("rain", None), ("x", None), ("B13", None),
    ],
)  # fmt: skip
def test_variables_are_known_by_their_names(name, role):
    assert role_of(name) == role


# What rides along


def test_classes_and_elevation_ride_along(tmp_path):
    cube = make_cube()
    cube["LC"] = Content(("y", "x"), (cube["B02"].data[0] % 7).astype(np.uint16), {"_FillValue": np.uint16(0)})
    cube["COP-DEM"] = Content(cube["B02"].dims, cube["B02"].data.astype(np.float32) / 3)
    path = write_as("netcdf", tmp_path, cube)
    sample = read_all(path)["site/20200608T101031/2_0"]
    classes, heights = sample.arrays["label_map"], sample.arrays["dem"]
    assert np.array_equal(classes.data[0], cube["LC"].data[64:, :32])
    assert np.array_equal(heights.data[0], cube["COP-DEM"].data[1, 64:, :32])
    assert (classes.units, classes.nodata, heights.units) == ("class", 0, "m")
    assert set(read_all(path, riders=False)["site/20200608T101031/2_0"].arrays) == {"s1", "s2_10m"}


# Real cubes

WORLDCEREAL = SHARED / "worldcereal"
real = pytest.mark.skipif(not WORLDCEREAL.exists(), reason="needs ../shared/data, the collection of real pairs")


@real
@pytest.mark.parametrize("side", [64, 20])
def test_worldcereal_has_the_pixels_of_its_files(side):
    source = open_source("cube", str(WORLDCEREAL), SourceOptions(patch_pixels=side))
    listing = source.list()
    assert not listing.refused
    assert len(listing.pairs) == 106 * (64 // side) ** 2
    [folder] = WORLDCEREAL.iterdir()
    content, times = {}, {}
    for path in folder.iterdir():
        with h5py.File(path) as file:
            half = path.name[:2].lower()
            content |= {n: v[:] for n, v in file.items() if v.ndim == 3 or n == "LC"}
            if "timestamp" in file:
                start = datetime.datetime.fromisoformat(file["timestamp"].attrs["units"].removeprefix("seconds since "))
                counted = file["timestamp"][:].tolist()
                times[half] = [(start + datetime.timedelta(seconds=s)).isoformat() for s in counted]
    seen = 0
    for pair in listing.pairs[:: 1 if side == 64 else 7]:
        sample = source.read(pair)
        row, column = pair.attributes["row"], pair.attributes["column"]
        gap = datetime.datetime.fromisoformat(pair.s1_date) - datetime.datetime.fromisoformat(pair.s2_date)
        assert abs(gap) <= datetime.timedelta(days=3)
        found = planes(sample)
        assert len(found) == 14
        for band, stored in found.items():
            name = {"LABEL": "LC", "CLOUD": "SCL"}.get(band, band)
            n = len(stored)
            part = np.s_[n * row : n * (row + 1), n * column : n * (column + 1)]
            half = "s1" if band in ("VV", "VH") else "s2"
            whole = content[name] if name == "LC" else content[name][times[half].index(sample.dates[half])]
            assert stored.dtype == whole.dtype
            assert np.array_equal(stored, whole[part])
            seen += 1
        assert sample.arrays["s1"].scale == 1e-4
        assert (sample.arrays["s1"].nodata, sample.arrays["s1"].gsd_m, sample.level) == (0, 20, "L2A")
    assert seen > 900


@real
def test_worldcereal_without_clouds(tmp_path):
    source = open_source("cube", str(WORLDCEREAL), SourceOptions(patch_pixels=64, max_cloud=0.1))
    pairs = source.list().pairs
    assert len(pairs) == 53
    assert all(source.read(pair).attributes["cloud_share"] <= 0.1 for pair in pairs)
