"""Names of patches tell their place, and labels of version 1.0 map to the 19 classes."""

import numpy as np
import pyarrow as pa
import pytest
from rasterio.warp import transform

from sharding.sources.labels import LABEL_43_TO_19, LABELS_19, to_19, to_19_column
from sharding.sources.name_columns import centres, parse_column, same_place
from sharding.sources.names import (
    S1_PATTERN,
    S2_V1_PATTERN,
    S2_V2_PATTERN,
    iso_time,
    parse_s1,
    parse_s2_v1,
    parse_s2_v2,
    patch_corner,
    tile_square,
)
from sharding.sources.raster import to_degrees


@pytest.mark.parametrize(
    ("tile", "crs", "easting", "northing"),
    [
        ("33UUP", "EPSG:32633", 300_000, 5_300_000),  # real patches of this tile are compared in test_shared_data.py
        ("31UDQ", "EPSG:32631", 400_000, 5_400_000),  # Paris
        ("04QFJ", "EPSG:32604", 600_000, 2_300_000),  # Honolulu
        ("56HLH", "EPSG:32756", 300_000, 6_200_000),  # Sydney
        ("23KPQ", "EPSG:32723", 600_000, 7_400_000),  # Rio de Janeiro
    ],
)
def test_known_squares(tile, crs, easting, northing):
    assert tile_square(tile) == (crs, easting, northing)


def test_any_place_on_earth_lies_in_its_square():
    """The letters of a place by the definition of MGRS, from PROJ's UTM coordinates; then back."""
    rng = np.random.default_rng(0)
    for lon, lat in zip(rng.uniform(-180, 180, 400), rng.uniform(-79.9, 83.9, 400), strict=True):
        zone = int((lon + 180) // 6) + 1
        crs = f"EPSG:{(32700 if lat < 0 else 32600) + zone}"
        ([east], [north]) = transform("EPSG:4326", crs, [lon], [lat])
        band = "CDEFGHJKLMNPQRSTUVWXX"[int((lat + 80) // 8)]
        column = "ABCDEFGHJKLMNPQRSTUVWXYZ"[(zone - 1) % 3 * 8 + int(east // 100_000) - 1]
        rows = "ABCDEFGHJKLMNPQRSTUV" if zone % 2 else "FGHJKLMNPQRSTUVABCDE"
        tile = f"{zone:02d}{band}{column}{rows[int(north // 100_000) % 20]}"
        assert tile_square(tile) == (crs, east // 100_000 * 100_000, north // 100_000 * 100_000), (tile, lon, lat)


@pytest.mark.parametrize("tile", ["33UUW", "33AUP", "61UUP", "33UAP"])
def test_no_tile_is_no_tile(tile):
    with pytest.raises(ValueError, match=tile):
        tile_square(tile)


def test_a_tile_off_the_60_m_grid_starts_outside_its_square():
    patch = parse_s2_v2("S2A_MSIL2A_20170818T103021_N9999_R108_T32TMT_00_00")
    assert patch_corner(patch) == ("EPSG:32632", 399_960, 5_300_040)


def test_names_of_one_patch_agree_in_spite_of_zero_padding():
    s2 = parse_s2_v2("S2A_MSIL2A_20171101T094131_N9999_R036_T35VNJ_00_07")
    s1 = parse_s1("S1B_IW_GRDH_1SDV_20171101T154016_35VNJ_0_7")
    assert s1.place == s2.place == ("35VNJ", 0, 7)
    assert (s1.date, s2.date) == ("2017-11-01T15:40:16", "2017-11-01T09:41:31")


def test_a_name_of_v1_that_lost_a_zero():
    assert parse_s2_v1("S2A_MSIL2A_20171101T94132_0_0").date == "2017-11-01T09:41:32"


def test_seconds_that_were_counted_beyond_59_are_carried():
    """13,599 official patches: what version 2.0 calls T094159 has the seconds 60 and 61 in version 1.0."""
    assert parse_s2_v1("S2B_MSIL2A_20180204T94160_77_7").date == "2018-02-04T09:42:00"
    assert parse_s2_v1("S2B_MSIL2A_20180204T94161_78_7").date == "2018-02-04T09:42:01"


@pytest.mark.parametrize("text", ["20171301T101010", "20170230T101010", "20170613T241010", "20170613T106010"])
def test_a_time_that_is_none_is_none(text):
    assert iso_time(text) is None
    assert parse_s2_v1(f"S2A_MSIL2A_{text}_1_1") is None


NO_NAMES = [
    "",
    "S2A_MSIL2A_20170613T101031",
    "S1A_IW_GRDH_1SDV_20170613T165043_33UUP_1",
    "S1A_IW_GRDH_1SDV_20170613T165043_33IUP_1_1",  # no MGRS square
    "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_157",
    "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57\n",
    "x",
]


@pytest.mark.parametrize("name", NO_NAMES)
def test_other_names_are_none(name):
    assert parse_s1(name) is parse_s2_v1(name) is parse_s2_v2(name) is None


NAMES = [
    ("S1A_IW_GRDH_1SDV_20170613T165043_33UUP_26_57", parse_s1, S1_PATTERN),
    ("S1B_IW_GRDH_1SDV_20171101T154016_35VNJ_0_7", parse_s1, S1_PATTERN),
    ("S2A_MSIL2A_20170613T101031_26_57", parse_s2_v1, S2_V1_PATTERN),
    ("S2B_MSIL2A_20180204T94161_78_7", parse_s2_v1, S2_V1_PATTERN),
    ("S2A_MSIL2A_20171101T094131_N9999_R036_T35VNJ_00_07", parse_s2_v2, S2_V2_PATTERN),
]


@pytest.mark.parametrize(("parse", "pattern"), sorted({case[1:] for case in NAMES}, key=lambda case: case[1]))
def test_a_column_of_names_tells_what_each_name_tells(parse, pattern):
    names = [name for name, _, _ in NAMES] + NO_NAMES + [None]
    found = parse_column(pa.array(names, pa.string()), pattern)
    for i, name in enumerate(names):
        expected = parse(name or "")
        assert found.valid[i] == (expected is not None), name
        if expected is not None:
            assert (found.date[i].as_py(), found.tile[i].as_py() or "") == (expected.date, expected.tile)
            assert (found.column[i], found.row[i]) == (expected.column, expected.row)


def test_columns_of_names_agree_where_they_mean_one_place():
    s2 = ["S2A_MSIL2A_20171101T094131_N9999_R036_T35VNJ_00_07"] * 4 + ["no name"]
    s1 = [f"S1B_IW_GRDH_1SDV_20171101T154016_{place}" for place in ("35VNJ_0_7", "35VNK_0_7", "35VNJ_7_0", "", "")]
    columns = parse_column(pa.array(s1), S1_PATTERN), parse_column(pa.array(s2), S2_V2_PATTERN)
    assert same_place(*columns).tolist() == [True, False, False, False, False]
    older = parse_column(pa.array(["S2A_MSIL2A_20171101T94131_0_7"] * 5), S2_V1_PATTERN)  # without a tile
    assert same_place(columns[0], older).tolist() == [True, True, False, False, False]


def test_centres_of_a_column_are_those_of_each_name():
    tiles = ("33UUP", "35VNJ", "29SND", "33UUP", "56HLH")
    names = [f"S1A_IW_GRDH_1SDV_20170613T165043_{tile}_{i}_{90 - i}" for i, tile in enumerate(tiles)]
    names += names[:1]
    lon, lat = centres(parse_column(pa.array(names), S1_PATTERN))
    for name, degrees in zip(names, zip(lon, lat, strict=True), strict=True):
        crs, left, top = patch_corner(parse_s1(name))
        assert [degrees] == to_degrees(crs, [(left + 600, top - 600)])


def test_the_centres_of_no_names_are_none():
    lon, lat = centres(parse_column(pa.array([], pa.string()), S1_PATTERN))
    assert (len(lon), len(lat)) == (0, 0)


def test_the_map_is_that_of_the_bigearthnet_19_nomenclature():
    """Counts from the BigEarthNet-MM paper, table 1: 43 classes, 11 of them left out, the rest merged into 19."""
    assert len(LABEL_43_TO_19) == 43
    left_out = {old for old, new in LABEL_43_TO_19.items() if new is None}
    assert left_out == {
        "Road and rail networks and associated land",
        "Port areas",
        "Airports",
        "Mineral extraction sites",
        "Dump sites",
        "Construction sites",
        "Green urban areas",
        "Sport and leisure facilities",
        "Bare rock",
        "Burnt areas",
        "Intertidal flats",
    }
    merged = {new for new in LABEL_43_TO_19.values() if new}
    assert len(LABELS_19) == 19
    assert merged == set(LABELS_19)
    sizes = {new: sum(n == new for n in LABEL_43_TO_19.values()) for new in LABELS_19}
    assert {new: size for new, size in sizes.items() if size > 1} == {
        "Urban fabric": 2,
        "Arable land": 3,
        "Permanent crops": 4,
        "Natural grassland and sparsely vegetated areas": 2,
        "Moors, heathland and sclerophyllous vegetation": 2,
        "Inland wetlands": 2,
        "Coastal wetlands": 2,
        "Inland waters": 2,
        "Marine waters": 3,
    }


def test_labels_come_in_the_official_order_and_once():
    assert to_19(["Sea and ocean", "Estuaries", "Rice fields", "Airports"]) == ("Arable land", "Marine waters")


def test_labels_of_version_2_stay_as_they_are():
    assert to_19(["Transitional woodland, shrub", "Urban fabric"]) == ("Urban fabric", "Transitional woodland, shrub")


def test_an_unknown_label_is_named():
    with pytest.raises(KeyError, match="Lava"):
        to_19(["Pastures", "Lava"])


@pytest.mark.parametrize("encode", [False, True])
def test_a_column_of_labels_is_mapped_as_each_list_is(encode):
    lists = [["Sea and ocean", "Rice fields", "Airports"], [], None, ["Airports"], ["Pastures"] * 2, list(LABELS_19)]
    column = pa.array(lists, pa.list_(pa.dictionary(pa.int32(), pa.string()) if encode else pa.string()))
    mapped, unknown = to_19_column(column)
    assert mapped.type == pa.list_(pa.string())
    assert [tuple(labels) for labels in mapped.to_pylist()] == [to_19(labels or []) for labels in lists]
    assert not unknown.any()


def test_rows_with_an_unknown_label_are_marked():
    _, unknown = to_19_column(pa.array([["Pastures"], ["Pastures", "Lava"], [None], []], pa.list_(pa.string())))
    assert unknown.tolist() == [False, True, True, False]
