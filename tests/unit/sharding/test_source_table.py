"""Tables of pairs beyond the plain CSV: Parquet, STAC items, files elsewhere, rasters that ride along, many rows."""

import csv
import datetime
import math
import struct
import tracemalloc

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio

from sharding.errors import ConfigError, DataError
from sharding.sources import open_source
from sharding.sources.base import PairError, SourceOptions
from sharding.sources.pair_table import rows_of
from sharding.sources.table_file import open_table
from sharding.sources.tree import Tree
from sharding.sources.wkb import centre_of_box, centre_of_wkb
from tests.trees import pixels_of, smooth, write_tif
from tests.unit.sharding.conftest import SHARED

CORNER = (500_000, 5_000_000)
ROW = {
    "key": "site/a",
    "s1_path": "s1.tif",
    "s2_path": "s2.tif",
    "s1_bands": "VV,VH",
    "s2_bands": "B02,B08",
    "s1_units": "dB",
    "s2_level": "L2A",
}


@pytest.fixture
def pixels():
    rng = np.random.default_rng(11)
    scene = smooth(rng, 120)
    return {band: pixels_of(band, rng, scene) for band in ("VV", "VH", "B02", "B08", "B11")}


@pytest.fixture
def root(tmp_path, pixels):
    write_tif(tmp_path / "s1.tif", np.stack([pixels["VV"], pixels["VH"]]), CORNER)
    write_tif(tmp_path / "s2.tif", np.stack([pixels["B02"], pixels["B08"]]), CORNER)
    return tmp_path


def write_csv(root, *rows, name="pairs.csv"):
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with (root / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(root, rows, name="pairs.parquet", **types):
    table = pa.Table.from_pylist(rows)
    for column, kind in types.items():
        place = table.column_names.index(column)
        table = table.set_column(place, column, pa.array([row.get(column) for row in rows], kind))
    pq.write_table(table, root / name)


def listed(root, table="pairs.csv", **options):
    source = open_source("folder", str(root / table), SourceOptions(**options))
    return source, source.list()


def read_one(root, table="pairs.csv", **options):
    source, listing = listed(root, table, **options)
    assert not listing.refused
    [pair] = listing.pairs
    source.files(pair)
    return source.read(pair)


def same_bands(array, **planes):
    stored = dict(zip(array.bands, array.data, strict=True))
    return stored.keys() == planes.keys() and all(np.array_equal(stored[b], planes[b]) for b in planes)


# Parquet


def test_a_parquet_table_says_the_same_as_a_csv(root, pixels):
    write_csv(root, {**ROW, "s1_date": "2020-01-02", "lon": 15.0, "lat": 45.25, "labels": "Water|Forest"})
    typed = {
        **ROW,
        "s1_bands": ["VV", "VH"],
        "s2_bands": ["B02", "B08"],
        "s1_date": datetime.date(2020, 1, 2),
        "lon": 15.0,
        "lat": 45.25,
        "labels": ["Water", "Forest"],
        "s2_offset": math.nan,
        "split": None,
    }
    write_parquet(root, [typed])
    (_, plain), (_, binary) = listed(root), listed(root, "pairs.parquet")
    row = plain.table["row"].to_pylist()
    assert (row, binary.table["row"].to_pylist()) == ([2], [1])
    assert binary.table.drop_columns("row").equals(plain.table.drop_columns("row"))
    sample = read_one(root, "pairs.parquet")
    assert same_bands(sample.arrays["s1"], VV=pixels["VV"], VH=pixels["VH"])
    assert same_bands(sample.arrays["s2_10m"], B02=pixels["B02"], B08=pixels["B08"])
    assert (sample.dates, sample.labels) == ({"s1": "2020-01-02"}, ("Water", "Forest"))


def test_a_folder_with_a_parquet_table_is_enough(root):
    write_parquet(root, [ROW])
    assert [pair.key for pair in open_source("folder", str(root)).list().pairs] == ["site/a"]


def test_dates_are_told_in_utc_to_the_second(root):
    when = datetime.datetime(2020, 1, 2, 23, 30, 0, 250_000, datetime.timezone(-datetime.timedelta(hours=2)))
    write_parquet(root, [{**ROW, "s1_date": when, "s2_date": "20200103T101031"}], s1_date=pa.timestamp("ns", "+02:00"))
    [pair] = listed(root, "pairs.parquet")[1].pairs
    assert (pair.s1_date, pair.s2_date) == ("2020-01-03T01:30:00", "2020-01-03T10:10:31")


def test_a_wrong_row_of_a_parquet_table_is_counted_from_one(root):
    write_parquet(root, [ROW, {**ROW, "key": "b", "s1_units": None}])
    with pytest.raises(DataError, match=r"pairs\.parquet, row 2: s1_units is empty"):
        listed(root, "pairs.parquet")


@pytest.mark.parametrize("name", ["pairs.parquet", "pairs.csv"])
def test_a_table_that_is_none_is_named(root, name):
    (root / name).write_bytes(b"\xff\xfe\x00PAR0 no table")
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        listed(root, name)


def test_a_cut_parquet_table_is_refused_and_not_read_in_part(root):
    write_parquet(root, [{**ROW, "key": f"k{i}"} for i in range(50)])
    content = (root / "pairs.parquet").read_bytes()
    (root / "pairs.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"pairs\.parquet cannot be read as Parquet"):
        listed(root, "pairs.parquet")


def test_a_table_that_is_not_there_is_wrong_usage(root):
    with pytest.raises(ConfigError, match=r"there is no .*none\.parquet"):
        listed(root, "none.parquet")


def test_a_row_with_more_cells_than_the_header_is_named(root):
    write_csv(root, ROW)
    with (root / "pairs.csv").open("a") as file:
        file.write("b,s1.tif,s2.tif,VV,VH,B02,B08,dB,L2A\n")
    with pytest.raises(DataError, match="row 3: it has 9 cells, the header has 7; put cells with commas in quotes"):
        listed(root)


def test_two_columns_of_one_meaning_are_refused(root):
    write_csv(root, {**ROW, "pair_id": "again"})
    with pytest.raises(DataError, match="there are two columns for key; keep one"):
        listed(root)


# What a row may say


def test_scaled_integers_of_s1_keep_their_numbers(root, pixels):
    stored = np.stack([pixels["VV"], pixels["VH"]])
    stored = (stored * 100).astype(np.int16)
    stored[0, :3, :3] = -32768
    write_tif(root / "s1.tif", stored, CORNER)
    write_csv(root, {**ROW, "s1_scale": "0.01", "s1_nodata": "-32768"})
    array = read_one(root).arrays["s1"]
    assert np.array_equal(array.data, stored)
    assert (array.data.dtype, array.scale, array.nodata, array.units) == (np.int16, 0.01, -32768, "dB")


def test_integers_of_s1_without_a_scale_are_refused(root, pixels):
    write_tif(root / "s1.tif", (np.stack([pixels["VV"], pixels["VH"]]) * 100).astype(np.int16), CORNER)
    write_csv(root, ROW)
    with pytest.raises(PairError, match=r"S1 is int16, float32 was expected \(row 2\)"):
        read_one(root)


@pytest.mark.parametrize("nodata", ["", "-1"])
@pytest.mark.parametrize(("spared", "empty"), [(0, True), (1, False)])
def test_reflectance_without_a_number_is_refused(root, pixels, nodata, spared, empty):
    reflectance = np.stack([pixels["B02"], pixels["B08"]]).astype(np.float32) / 10_000
    reflectance[1].flat[spared:] = np.nan
    reflectance[1].flat[-1] = np.inf if nodata != "-1" else -1
    write_tif(root / "s2.tif", reflectance, CORNER)
    write_csv(root, {**ROW, "s2_units": "reflectance", "s2_nodata": nodata})
    if empty:
        with pytest.raises(PairError, match="B08 has no finite number anywhere") as refused:
            read_one(root)
        assert refused.value.reason == "all nodata"
    else:
        assert np.isnan(read_one(root).arrays["s2_10m"].data[1]).sum() == reflectance[1].size - 2


def test_reflectance_stays_floating_point(root, pixels):
    reflectance = np.stack([pixels["B02"], pixels["B08"]]).astype(np.float32) / 10_000
    write_tif(root / "s2.tif", reflectance, CORNER)
    write_csv(root, {**ROW, "s2_units": "reflectance", "s2_nodata": "-1"})
    array = read_one(root).arrays["s2_10m"]
    assert np.array_equal(array.data, reflectance)
    assert (array.units, array.nodata, array.data.dtype) == ("reflectance", -1, np.float32)


def test_a_half_may_be_one_file_for_each_resolution(root, pixels):
    write_tif(root / "s2_20m.tif", pixels["B11"], CORNER, gsd=20)
    write_csv(root, {**ROW, "s2_path": "s2.tif|s2_20m.tif", "s2_bands": "B02,B08|B11"})
    sample = read_one(root)
    assert same_bands(sample.arrays["s2_10m"], B02=pixels["B02"], B08=pixels["B08"])
    assert same_bands(sample.arrays["s2_20m"], B11=pixels["B11"])


def test_a_half_may_be_one_file_for_each_band(root, pixels):
    for band in ("VV", "VH"):
        write_tif(root / f"{band.lower()}.tif", pixels[band], CORNER)
    write_csv(root, {**ROW, "s1_path": "vh.tif|vv.tif", "s1_bands": "VH,VV"})
    assert same_bands(read_one(root).arrays["s1"], VV=pixels["VV"], VH=pixels["VH"])


def test_columns_named_attr_become_attributes_in_their_own_type(root):
    extra = {"attr_cloud": 0.25, "attr_orbit": 7, "attr_note": "wet", "attr_clear": True, "attr_none": None}
    write_parquet(root, [{**ROW, **extra, "country": "Austria"}])
    sample = read_one(root, "pairs.parquet")
    assert sample.attributes == {"cloud": 0.25, "orbit": 7, "note": "wet", "clear": True, "country": "Austria"}
    write_csv(root, {**ROW, "attr_orbit": 7})
    assert read_one(root).attributes == {"orbit": "7"}


def test_longitude_and_latitude_serve_pairs_without_coordinates(root, pixels):
    write_tif(root / "s1.tif", np.stack([pixels["VV"], pixels["VH"]]), CORNER, crs=None)
    write_tif(root / "s2.tif", np.stack([pixels["B02"], pixels["B08"]]), CORNER, crs=None)
    write_csv(root, {**ROW, "lon": "15.5", "lat": "45.25"})
    [pair] = listed(root)[1].pairs
    assert (pair.lon, pair.lat) == (15.5, 45.25)
    assert read_one(root).centre == ("EPSG:4326", 15.5, 45.25)


# Rasters that ride along


def test_classes_and_elevation_ride_along_in_their_own_types(root, pixels):
    classes = (pixels["B02"] % 5).astype(np.uint8)
    heights = pixels["VV"][::3, ::3] * 40
    write_tif(root / "classes.tif", classes, CORNER)
    write_tif(root / "dem.tif", heights, CORNER, gsd=30)
    write_csv(root, {**ROW, "label_path": "classes.tif", "dem_path": "dem.tif"})
    sample = read_one(root)
    assert list(sample.arrays) == ["s1", "s2_10m", "dem", "label_map"]
    assert same_bands(sample.arrays["label_map"], LABEL=classes)
    assert same_bands(sample.arrays["dem"], DEM=heights)
    assert (sample.arrays["label_map"].units, sample.arrays["dem"].units) == ("class", "m")
    assert (sample.arrays["label_map"].data.dtype, sample.arrays["dem"].gsd_m) == (np.uint8, 30)
    source, listing = listed(root)
    assert [file.path for file in source.files(listing.pairs[0])] == ["s1.tif", "s2.tif", "classes.tif", "dem.tif"]


def test_without_riders_their_files_are_not_even_asked_for(root):
    write_csv(root, {**ROW, "label_path": "nowhere.tif"})
    assert list(read_one(root, riders=False).arrays) == ["s1", "s2_10m"]
    source, listing = listed(root)
    with pytest.raises(PairError, match=r"nowhere\.tif: the raster is missing; .* \(row 2\)"):
        source.files(listing.pairs[0])


@pytest.mark.parametrize(
    ("corner", "dtype", "message"),
    [((500_010, 5_000_000), np.uint8, "it does not cover the place of s1.tif"), (CORNER, np.float32, "whole numbers")],
)
def test_classes_of_another_place_or_with_fractions_are_refused(root, pixels, corner, dtype, message):
    write_tif(root / "classes.tif", (pixels["B02"] % 5).astype(dtype), corner)
    write_csv(root, {**ROW, "label_path": "classes.tif"})
    with pytest.raises(PairError, match=message):
        read_one(root)


# Files elsewhere


def test_absolute_paths_and_urls_lead_out_of_the_tables_folder(root, pixels, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for band in ("VV", "VH"):
        write_tif(elsewhere / "s1" / f"x_{band}.tif", pixels[band], CORNER)
    memory = fsspec.filesystem("memory")
    memory.pipe("/halves/s2/B02.tif", tif_bytes(elsewhere, pixels["B02"]))
    memory.pipe("/halves/s2/B08.tif", tif_bytes(elsewhere, pixels["B08"]))
    try:
        write_csv(
            root,
            {**ROW, "s1_path": str(elsewhere / "s1"), "s2_path": "memory://halves/s2"},
            {
                **ROW,
                "key": "files",
                "s1_path": (elsewhere / "s1" / "x_VV.tif").as_uri(),
                "s1_bands": "VV",
                "s2_path": "memory://halves/s2/B02.tif|memory://halves/s2/B08.tif",
            },
        )
        source, listing = listed(root)
        for pair in listing.pairs:
            files = source.files(pair)
            assert all(file.size > 1000 and file.version for file in files)
            sample = source.read(pair)
            assert np.array_equal(sample.arrays["s1"].data[0], pixels["VV"])
            assert same_bands(sample.arrays["s2_10m"], B02=pixels["B02"], B08=pixels["B08"])
            assert source.centre(pair) == sample.centre
            assert str(elsewhere / "s1" / "x_VV.tif") in {file.path.removeprefix("file://") for file in files}
        memory.rm("/halves/s2/B08.tif")
        source, listing = listed(root)  # a listing of a store is kept for some seconds
        for pair in listing.pairs:
            with pytest.raises(PairError, match=r"memory://halves/s2.*\(row [23]\)$"):
                source.files(pair)
    finally:
        memory.rm("/halves", recursive=True)


def tif_bytes(folder, plane):
    write_tif(folder / "one.tif", plane, CORNER)
    return (folder / "one.tif").read_bytes()


def test_a_table_in_a_store_reads_what_lies_beside_it(root, pixels):
    write_csv(root, {**ROW, "label_path": "missing.tif"})
    memory = fsspec.filesystem("memory")
    memory.put(str(root), "/archive", recursive=True)
    try:
        source = open_source("folder", "memory://archive/pairs.csv", SourceOptions(riders=False))
        [pair] = source.list().pairs
        assert [file.path for file in source.files(pair)] == ["s1.tif", "s2.tif"]
        assert same_bands(source.read(pair).arrays["s1"], VV=pixels["VV"], VH=pixels["VH"])
    finally:
        memory.rm("/archive", recursive=True)


def test_a_broken_file_is_named_as_the_table_names_it(root, tmp_path_factory):
    broken = tmp_path_factory.mktemp("broken") / "s1.tif"
    broken.write_bytes(b"no tiff")
    write_csv(root, {**ROW, "s1_path": str(broken)})
    source, listing = listed(root)
    with pytest.raises(PairError) as told:
        source.read(listing.pairs[0])
    assert (told.value.reason, told.value.file) == ("corrupt file", str(broken))


# Many rows


def write_many(path, num_rows):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*ROW, "s2_date", "labels"])
        for i in range(num_rows):
            writer.writerow(
                [f"k/{i:07}", f"s1/{i}", f"s2/{i}", "VV,VH", "B02,B08", "dB", "L2A", "2020-05-01", "Water|Forest"]
            )


def test_many_rows_are_listed_in_some_hundred_bytes_each_and_no_file_is_looked_for(tmp_path):
    write_many(tmp_path / "pairs.csv", 20_000)
    listing = listed(tmp_path)[1]
    assert len(listing.table) == 20_000
    assert not listing.refused
    assert listing.table.nbytes < 200 * 20_000


def test_rows_are_taken_from_the_file_as_they_are_asked_for(tmp_path):
    """So that a million of them are never in memory at once."""
    write_many(tmp_path / "pairs.csv", 20_000)
    table = open_table(Tree(str(tmp_path)), "pairs.csv")
    tracemalloc.start()
    rows = rows_of(table)
    seen = [next(rows).key for _ in range(50)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    rows.close()
    assert seen[-1] == "k/0000049"
    assert peak < 2**20 < (tmp_path / "pairs.csv").stat().st_size


# STAC


def wkb_polygon(west, south, east, north, order="<"):
    ring = [(west, south), (east, south), (east, north), (west, north), (west, south)]
    head = struct.pack(f"{order}BIII", 1 if order == "<" else 0, 3, 1, len(ring))
    return head + b"".join(struct.pack(f"{order}dd", *point) for point in ring)


BOX = {"xmin": 14.9, "ymin": 45.0, "xmax": 15.1, "ymax": 45.2}
TIME = datetime.datetime(2021, 6, 1, 10, 10, 31, tzinfo=datetime.UTC)


def tiff_asset(href, band, **more):
    return {"href": href, "type": "image/tiff; application=geotiff", "eo:bands": [{"name": band}], **more}


def pair_item(**more):
    assets = {
        "vv": tiff_asset("vv.tif", "VV"),
        "vh": tiff_asset("vh.tif", "VH"),
        "B02": tiff_asset("./B02.tif", "B02"),
        "B08": tiff_asset("B08.tif", "B08"),
        "thumbnail": {"href": "look.png"},
    }
    return {
        "id": "item_1",
        "geometry": wkb_polygon(14.9, 45.0, 15.1, 45.2),
        "bbox": BOX,
        "datetime": TIME,
        "assets": assets,
        "collection": "sentinel-2-l2a",
        "s2:processing_baseline": "04.00",
        "s1_units": "dB",
        "eo:cloud_cover": 12.5,
        **more,
    }


@pytest.fixture
def items(root, pixels):
    for band, name in {"VV": "vv", "VH": "vh", "B02": "B02", "B08": "B08"}.items():
        write_tif(root / f"{name}.tif", pixels[band], CORNER)
    write_tif(root / "B11.tif", pixels["B11"], CORNER, gsd=20)
    return root


def test_an_item_with_both_halves_is_a_pair(items, pixels):
    write_parquet(items, [pair_item()], name="items.parquet")
    source, listing = listed(items, "items.parquet")
    [pair] = listing.pairs
    assert (pair.key, pair.s2_date, pair.s1_date) == ("item_1", "2021-06-01T10:10:31", "")
    assert (pair.lon, pair.lat) == (15.0, 45.1)
    assert not listing.refused
    assert not listing.notes
    sample = source.read(pair)
    assert same_bands(sample.arrays["s1"], VV=pixels["VV"], VH=pixels["VH"])
    assert same_bands(sample.arrays["s2_10m"], B02=pixels["B02"], B08=pixels["B08"])
    assert sample.level == "L2A"
    assert sample.arrays["s2_10m"].radiometric_offset == -1000
    assert sample.attributes == {"s1_item": "item_1", "s2_item": "item_1", "cloud_cover": 12.5}


def halves(**of_s2):
    whole = pair_item()
    assets = whole.pop("assets")
    s1 = {
        **whole,
        "id": "S1A.x",
        "collection": "sentinel-1-rtc",
        "pair_id": "p.1",
        "datetime": TIME - datetime.timedelta(hours=5),
        "s1_units": None,
        "s2:processing_baseline": None,
        "eo:cloud_cover": None,
        "assets": {name: assets[name] for name in ("vv", "vh")},
    }
    s2 = {**whole, "pair_id": "p.1", "s1_units": None, "assets": {name: assets[name] for name in ("B02", "B08")}}
    return s1, {**s2, **of_s2}


@pytest.mark.parametrize("turned", [False, True])
def test_items_of_two_collections_are_joined_by_pair_id(items, pixels, turned):
    linear = {band: (10 ** (pixels[band] / 10)).astype(np.float32) for band in ("VV", "VH")}
    for band, plane in linear.items():
        write_tif(items / f"{band.lower()}.tif", plane, CORNER)
    rows = halves()
    write_parquet(items, rows[::-1] if turned else rows, name="items.parquet")
    source, listing = listed(items, "items.parquet")
    [pair] = listing.pairs
    assert pair.key.startswith("p_1-")
    assert len(pair.key) == len("p_1-") + 8
    assert (pair.s1_date, pair.s2_date) == ("2021-06-01T05:10:31", "2021-06-01T10:10:31")
    sample = source.read(pair)
    assert same_bands(sample.arrays["s1"], **linear)
    assert sample.arrays["s1"].units == "linear"
    assert sample.attributes == {"s1_item": "S1A.x", "s2_item": "item_1", "cloud_cover": 12.5}


def test_halves_without_a_partner_are_refused_and_counted(items):
    s1, s2 = halves(pair_id="other")
    alone = {**halves()[1], "id": "alone", "pair_id": None}
    write_parquet(items, [s1, s2, alone], name="items.parquet")
    listing = listed(items, "items.parquet")[1]
    assert not listing.pairs
    assert {refusal.reason for refusal in listing.refused} == {"missing half"}
    told = [refusal.message for refusal in listing.refused]
    assert told == [
        "the S1 half is missing: its item has no assets of the other half and no pair_id (row 3)",
        "the S2 half is missing: no other row has the pair_id 'p.1' (row 1)",
        "the S1 half is missing: no other row has the pair_id 'other' (row 2)",
    ]


def test_two_items_of_one_half_with_one_pair_id_are_wrong(items):
    s1, _ = halves()
    write_parquet(items, [s1, {**s1, "id": "twin"}], name="items.parquet")
    with pytest.raises(DataError, match=r"row 2: \(item twin\) the pair_id 'p\.1' has S1 in row 1 already"):
        listed(items, "items.parquet")


def test_assets_go_by_their_bands_and_the_native_resolution(items, pixels):
    """Common names, several resolutions, a picture made of bands, a file of several bands."""
    assets = {
        "vv": tiff_asset("vv.tif", "VV"),
        "blue": {"href": "B02.tif", "bands": [{"name": "blue", "eo:common_name": "blue"}]},
        "blue-jp2": {"href": "B02.jp2", "bands": [{"name": "blue"}]},
        "B11_10m": tiff_asset("coarse.tif", "B11"),
        "B11_20m": tiff_asset("B11.tif", "B11"),
        "visual": {"href": "TCI.tif", "eo:bands": [{"name": "B04"}, {"name": "B03"}, {"name": "B02"}]},
        "SCL": {"href": "SCL.tif"},
    }
    write_parquet(items, [pair_item(assets=assets)], name="items.parquet")
    sample = read_one(items, "items.parquet")
    assert sample.arrays["s1"].bands == ("VV",)
    assert same_bands(sample.arrays["s2_10m"], B02=pixels["B02"])
    assert same_bands(sample.arrays["s2_20m"], B11=pixels["B11"])


def test_an_asset_of_several_bands_is_read_in_its_own_order(items, pixels):
    stack = {"href": "s2.tif", "eo:bands": [{"name": "B02"}, {"name": "B08"}]}
    assets = {"s1": {"href": "s1.tif", "bands": [{"name": "VV"}, {"name": "VH"}]}, "data": stack}
    write_parquet(items, [pair_item(assets=assets)], name="items.parquet")
    sample = read_one(items, "items.parquet")
    assert same_bands(sample.arrays["s1"], VV=pixels["VV"], VH=pixels["VH"])
    assert same_bands(sample.arrays["s2_10m"], B02=pixels["B02"], B08=pixels["B08"])


@pytest.mark.parametrize(
    ("change", "offset"),
    [
        ({"s2:processing_baseline": "05.09"}, -1000),
        ({"s2:processing_baseline": "03.01"}, 0),
        ({"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": True}, 0),
        ({"s2:processing_baseline": "05.09", "s2_offset": -500.0}, -500),
    ],
)
def test_the_offset_follows_the_processing_baseline(items, change, offset):
    write_parquet(items, [pair_item(**change)], name="items.parquet")
    assert read_one(items, "items.parquet").arrays["s2_10m"].radiometric_offset == offset


def test_the_offset_of_the_assets_is_turned_into_stored_numbers(items):
    item = pair_item()
    for band in ("B02", "B08"):
        item["assets"][band]["raster:bands"] = [{"scale": 0.0001, "offset": -0.1, "nodata": 0}]
    write_parquet(items, [item], name="items.parquet")
    array = read_one(items, "items.parquet").arrays["s2_10m"]
    assert (array.radiometric_offset, array.nodata, array.scale) == (-1000, 0, 1)


def test_items_that_say_no_baseline_are_counted(items):
    write_parquet(items, [pair_item(**{"s2:processing_baseline": None})], name="items.parquet")
    notes = listed(items, "items.parquet")[1].notes
    assert len(notes) == 1
    assert notes[0].startswith("1 items of items.parquet say neither s2:processing_baseline nor an offset")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"s1_units": None}, "row 1: (item item_1) s1_units is empty"),
        ({"collection": "mine"}, "row 1: (item item_1) s2_level is empty"),
        ({"s2:processing_baseline": "n/a"}, "s2:processing_baseline is 'n/a'; it looks like 05.09"),
        ({"geometry": b"\x05", "bbox": None}, "the geometry is no WKB"),
        (
            {"assets": {"a": tiff_asset("a.tif", "B02"), "b": tiff_asset("b.tif", "B02")}},
            "the assets 'a' and 'b' are both B02; keep one",
        ),
        (
            {"assets": {"a": {"href": "a.tif", "eo:bands": [{"name": "VV"}, {"name": "B02"}]}}},
            "the asset 'a' holds bands of S1 and of S2",
        ),
    ],
)
def test_what_is_wrong_with_an_item_names_it(items, change, message):
    write_parquet(items, [pair_item(**change)], name="items.parquet")
    with pytest.raises(DataError) as told:
        listed(items, "items.parquet")
    assert message in str(told.value)


def test_the_geometry_serves_where_there_is_no_box(items):
    write_parquet(items, [pair_item(bbox=None)], name="items.parquet")
    [pair] = listed(items, "items.parquet")[1].pairs
    assert (pair.lon, pair.lat) == (15.0, 45.1)


@pytest.mark.parametrize(
    "content",
    [
        wkb_polygon(10, 40, 12, 44),
        wkb_polygon(10, 40, 12, 44, ">"),
        struct.pack("<BIdd", 1, 1, 11, 42),
        struct.pack("<BIddd", 1, 1001, 11, 42, 7),
        struct.pack("<BIIdd", 1, 0x20000001, 4326, 11, 42),
        struct.pack("<BII", 1, 6, 2) + wkb_polygon(10, 40, 11, 42) + wkb_polygon(11, 42, 12, 44),
        struct.pack("<BIIdddd", 1, 2, 2, 10, 40, 12, 44),
    ],
    ids=["polygon", "big endian", "point", "point with z", "point with srid", "two polygons", "line"],
)
def test_the_middle_of_a_geometry(content):
    assert centre_of_wkb(content) == (11, 42)


def test_no_geometry_is_guessed_from_broken_bytes():
    whole = wkb_polygon(10, 40, 12, 44)
    for broken in (b"", whole[:1], whole[:7], whole[:-1], struct.pack("<BII", 1, 3, 1 << 30), struct.pack("<BI", 1, 9)):
        with pytest.raises(ValueError, match="the geometry"):
            centre_of_wkb(broken)


def test_a_box_across_the_date_line_has_its_middle_there():
    assert centre_of_box(179, 0, -178, 2) == (-179.5, 1)
    assert centre_of_box(10, 0, 20, 2) == (15, 1)


# The real collection


@pytest.mark.skipif(not (SHARED / "manifest.csv").exists(), reason="needs ../shared/data, the collection of real pairs")
def test_real_pairs_come_through_parquet_with_absolute_paths(tmp_path):
    with (SHARED / "manifest.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["dataset"].startswith("BigEarthNet")][::9]
    table = [
        {
            "key": row["pair_id"],
            "s1_path": str(SHARED / row["s1_path"]),
            "s2_path": str(SHARED / row["s2_path"]),
            "s1_bands": row["s1_bands"],
            "s2_bands": row["s2_bands"],
            "s1_units": "dB",
            "s2_level": "L2A",
            "s1_date": row["date_s1"],
            "s2_date": row["date_s2"],
        }
        for row in rows
    ]
    write_parquet(tmp_path, table)
    source, listing = listed(tmp_path, "pairs.parquet")
    assert len(listing.pairs) == len(rows) > 15
    for pair in listing.pairs:
        sample = source.read(pair)
        num_files = len(source.files(pair))
        stored = {b: p for a in sample.arrays.values() for b, p in zip(a.bands, a.data, strict=True)}
        assert num_files == len(stored)
        for file in source.files(pair):
            with rasterio.open(file.path) as raster:
                assert np.array_equal(stored[file.path.rpartition("_")[2][:-4]], raster.read(1))
