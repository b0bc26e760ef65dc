"""Major TOM Core, on a tree made here in the published layout (no official file is at hand), also of real pixels."""

import numpy as np
import pytest
import rasterio

from sharding import verify
from sharding.errors import ConfigError
from sharding.sources import open_source
from sharding.sources.base import PairError, SourceOptions
from tests.trees import smooth, write_tif
from tests.unit.sharding.conftest import SHARED, run, run_build
from tests.unit.sharding.members import assert_pixels, open_members

SIDES = {"B01": 20, "B09": 20, **dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12"), 60)}
L2A = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
S2_NAME = "S2A_MSIL2A_{date}T101031_N{baseline}_R022_T33UUP_{date}T121031"
S1_NAME = "S1A_IW_GRDH_1SDV_{date}T165043_{date}T165108_017018_01C5B4_rtc"


def smooth_pixels(seed, bands=L2A):
    rng = np.random.default_rng(seed)
    planes = {band: (10 ** ((-13 + 5 * smooth(rng, 120)) / 10)).astype(np.float32) for band in ("VV", "VH")}
    return planes | {b: (1500 * (1.2 + smooth(rng, SIDES.get(b, 120)))).astype(np.uint16) for b in bands}


def write_product(folder, pixels, bands, corner=(300_000, 5_400_000)):
    for band in bands:
        name = band.lower() if band in ("VV", "VH") else band
        write_tif(folder / f"{name}.tif", pixels[band], corner, crs="EPSG:32633", gsd=1200 / pixels[band].shape[0])


def write_pair(root, cell="433D_629L", s2_date="20200613", s1_date="20200614", baseline="0214", seed=0, pixels=None):
    pixels = pixels or smooth_pixels(seed)
    row = cell.split("_")[0]
    s2 = root / "S2L2A" / row / cell / S2_NAME.format(date=s2_date, baseline=baseline)
    s1 = root / "S1RTC" / row / cell / S1_NAME.format(date=s1_date)
    write_product(s2, pixels, L2A)
    write_product(s1, pixels, ("VV", "VH"))
    return pixels, s1, s2


def source_of(root, **options):
    return open_source("majortom", str(root), SourceOptions(**options))


def test_pairs_by_cell_and_nearest_date(tmp_path):
    write_pair(tmp_path, s1_date="20200601")
    _, near, _ = write_pair(tmp_path, s1_date="20200612")
    write_pair(tmp_path, cell="433D_630L")
    listing = source_of(tmp_path).list()
    assert [pair.key.split("/")[0] for pair in listing.pairs] == ["433D_629L", "433D_630L"]
    first = listing.pairs[0]
    assert first.s1.endswith(near.name)
    assert (first.s1_date, first.s2_date) == ("2020-06-12T16:50:43", "2020-06-13T10:10:31")
    assert listing.notes == ["1 S1 products are nearest to no S2 product of their cell"]


def test_products_too_far_apart_are_no_pair(tmp_path):
    write_pair(tmp_path, s1_date="20200701")
    listing = source_of(tmp_path, max_days=10).list()
    assert not listing.pairs
    [refusal] = listing.refused
    assert "the nearest S1 is 18.3 days away, --max-days is 10" in refusal.message


def test_a_cell_with_one_satellite_is_refused(tmp_path):
    write_pair(tmp_path)
    _, s1, s2 = write_pair(tmp_path, cell="433D_630L")
    __import__("shutil").rmtree(s1)
    listing = source_of(tmp_path).list()
    assert len(listing.pairs) == 1
    assert [(r.reason, s2.name in r.file) for r in listing.refused] == [("missing half", True)]


@pytest.mark.parametrize(("baseline", "offset"), [("0214", 0.0), ("0301", 0.0), ("0400", -1000.0), ("0510", -1000.0)])
def test_the_baseline_in_the_name_tells_the_offset(tmp_path, baseline, offset):
    pixels, _, _ = write_pair(tmp_path, baseline=baseline)
    source = source_of(tmp_path)
    [pair] = source.list().pairs
    sample = source.read(pair)
    assert sample.arrays["s2_10m"].radiometric_offset == offset
    assert np.array_equal(sample.arrays["s2_10m"].data[0], pixels["B02"])
    assert sample.attributes["processing_baseline"] == f"{baseline[:2]}.{baseline[2:]}"


def test_without_a_baseline_the_pair_is_refused(tmp_path):
    _, _, s2 = write_pair(tmp_path)
    s2.rename(s2.with_name("S2A_MSIL2A_20200613T101031"))
    source = source_of(tmp_path)
    [pair] = source.list().pairs
    with pytest.raises(PairError, match="no processing baseline") as told:
        source.read(pair)
    assert told.value.reason == "radiometric offset unclear"


def test_a_missing_band_is_told(tmp_path):
    _, _, s2 = write_pair(tmp_path)
    (s2 / "B8A.tif").unlink()
    source = source_of(tmp_path)
    [pair] = source.list().pairs
    with pytest.raises(PairError, match="it holds no B8A"):
        source.files(pair)


def test_clouds_ride_along(tmp_path):
    _, _, s2 = write_pair(tmp_path)
    mask = (np.random.default_rng(0).random((120, 120)) < 0.2).astype(np.uint8)
    write_tif(s2 / "cloud_mask.tif", mask, (300_000, 5_400_000), crs="EPSG:32633")
    source = source_of(tmp_path)
    [pair] = source.list().pairs
    assert np.array_equal(source.read(pair).arrays["cloud_mask"].data[0], mask)
    assert len(source.files(pair)) == 15
    assert "cloud_mask" not in source_of(tmp_path, riders=False).read(pair).arrays


@pytest.mark.parametrize(("options", "message"), [({"s2_level": "L1C"}, "no folder S2L1C"), ({}, "no folder S1RTC")])
def test_what_is_not_there_is_wrong_usage(tmp_path, options, message):
    if options:
        write_pair(tmp_path)
    with pytest.raises(ConfigError, match=message):
        source_of(tmp_path, **options).list()


def test_every_pixel_is_in_a_verified_data_set(tmp_path):
    expected = [write_pair(tmp_path / "in", cell=f"433D_{629 + i}L", seed=i)[0] for i in range(3)]
    ended = run_build("--source", "majortom", "--root", tmp_path / "in", "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert run(verify.main, tmp_path / "out").code == 0
    groups = open_members(tmp_path / "out", tmp_path)
    assert len(groups) == 3
    for key, group in groups.items():
        assert_pixels(group, expected[int(key[5:8]) - 629])


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data, the collection of real pairs")
def test_real_pixels_in_the_published_layout(tmp_path):
    """Real BigEarthNet pixels, S1 turned to linear power; not official files."""
    s2 = next(SHARED.glob("bigearthnet_v1/BigEarthNet-v1.0/*"))
    s1 = next(SHARED.glob("bigearthnet_v1/BigEarthNet-S1-v1.0/*"))
    pixels = {}
    for path in (*s2.glob("*.tif"), *s1.glob("*.tif")):
        with rasterio.open(path) as file:
            plane = file.read(1)
        band = path.stem.rpartition("_")[2]
        pixels[band] = (10 ** (plane / 10)).astype(np.float32) if band in ("VV", "VH") else plane
    write_pair(tmp_path, pixels=pixels)
    source = source_of(tmp_path)
    [pair] = source.list().pairs
    sample = source.read(pair)
    stored = {b: p for a in sample.arrays.values() for b, p in zip(a.bands, a.data, strict=True)}
    assert set(stored) == set(pixels)
    assert all(np.array_equal(stored[band], pixels[band]) for band in pixels)
