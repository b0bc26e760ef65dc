"""Names of patches tell their place, and labels of version 1.0 map to the 19 classes."""

import numpy as np
import pytest
from rasterio.warp import transform

from sharding.sources.labels import LABEL_43_TO_19, LABELS_19, to_19
from sharding.sources.names import parse_s1, parse_s2_v1, parse_s2_v2, patch_corner, tile_square


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


@pytest.mark.parametrize("name", ["", "S2A_MSIL2A_20170613T101031", "S1A_IW_GRDH_1SDV_20170613T165043_33UUP_1", "x"])
def test_other_names_are_none(name):
    assert parse_s1(name) is parse_s2_v1(name) is parse_s2_v2(name) is None


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
