"""TerraMesh: joined by the names of tiles, read by range, bit for bit; and three real tiles where they are at hand."""

import io
import re
import tarfile
import uuid
import zipfile

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import zarr
from zarr.core.buffer import default_buffer_prototype

from sharding.bands import ARRAY_BANDS
from sharding.errors import ConfigError, DataError
from sharding.sources import open_source
from sharding.sources.base import (
    BANDS,
    CORRUPT,
    DAYS,
    GRIDS,
    METADATA,
    MISSING_HALF,
    OFFSET,
    WRONG_SIZE,
    PairError,
    SourceOptions,
)
from sharding.sources.terramesh_shards import tile_key
from tests.unit.sharding.conftest import SHARED
from tests.unit.sharding.terramesh_archive import (
    L1C,
    L2A,
    NOON,
    SIDE,
    Tile,
    make_tile,
    write_archive,
    write_tar,
    zipped_zarr,
)

CONSTRUCTED = SHARED.parent / "layouts" / "constructed_terramesh"
SHARD = "majortom_shard_000001"


def source(root, **options):
    return open_source("terramesh", str(root), SourceOptions(**options))


def tar(root, modality, split="val", shard=SHARD):
    return root / split / modality / f"{shard}.tar"


def rewrite(path, change):
    """The tar with its list of (name, content) changed."""
    with tarfile.open(path) as old:
        members = [(info.name, old.extractfile(info).read()) for info in old]
    write_tar(path, change(members))


def planes(sample) -> dict[str, np.ndarray]:
    return {
        band: plane for array in sample.arrays.values() for band, plane in zip(array.bands, array.data, strict=True)
    }


def assert_tile(sample, tile: Tile, s2: str = "S2L2A", s1: str = "S1RTC"):
    expected = dict(zip(("VV", "VH"), tile.bands[s1][0], strict=True))
    expected |= dict(zip(L2A if s2 == "S2L2A" else L1C, tile.bands[s2][0].astype(np.uint16), strict=True))
    stored = planes(sample)
    for band, plane in expected.items():
        assert stored[band].dtype == plane.dtype
        assert np.array_equal(stored[band], plane), band
    return stored


def read(root, tile: str = "tile_0", **options):
    found = source(root, **options)
    (pair,) = (pair for pair in found.list().pairs if pair.key == tile)
    return found.read(pair)


def refusal(root, tile: str = "tile_0", **options) -> PairError:
    with pytest.raises(PairError) as caught:
        read(root, tile, **options)
    return caught.value


@pytest.fixture
def tiles():
    return [make_tile(f"tile_{i}", i, l1c_offset=1000 * (i % 2), l2a_offset=1000 * (i // 2 % 2)) for i in range(4)]


@pytest.fixture
def root(tmp_path, tiles):
    write_archive(tmp_path, tiles)
    return tmp_path


def test_every_modality_comes_out_as_it_was_stored(root, tiles):
    found = source(root)
    listing = found.list()
    assert [pair.key for pair in listing.pairs] == ["tile_0", "tile_1", "tile_2", "tile_3"]
    assert (listing.refused, listing.notes, listing.has_splits) == ([], [], True)
    for pair, tile in zip(listing.pairs, tiles, strict=True):
        sample = found.read(pair)
        stored = assert_tile(sample, tile)
        assert np.array_equal(stored["DEM"], tile.bands["DEM"][0, 0])
        assert stored["NDVI"].tobytes() == tile.bands["NDVI"][0, 0].tobytes()
        assert np.array_equal(stored["LULC"], tile.bands["LULC"][0, 0])
        assert np.array_equal(stored["CLOUD"], np.tile(np.uint8([0, 1]), (SIDE, SIDE // 2)))
        assert list(sample.arrays) == [name for name in ARRAY_BANDS if name in found.arrays]
        units = {name: array.units for name, array in sample.arrays.items()}
        assert units == {
            "s1": "dB", "s2_10m": "DN", "s2_20m": "DN", "s2_60m": "DN",
            "dem": "m", "ndvi": "index", "lulc": "class", "cloud_mask": "class",
        }  # fmt: skip
        assert {array.gsd_m for array in sample.arrays.values()} == {10.0}
        assert sample.level == "L2A"
        assert sample.split == "val"
        assert sample.crs == "EPSG:32632"
        assert sample.dates == {"s1": "2020-05-20T18:40:00", "s2": "2020-05-20T18:40:00"}
        assert sample.place == (9.8, 57.2)
        assert sample.attributes["resampled"] is True
        assert sample.attributes["s1_product"] == "S1RTC"
        assert sample.attributes["shard"] == f"val/{SHARD}"


def test_the_offset_is_proven_tile_by_tile(root):
    for level, expected in (("L2A", [0.0, 0.0, -1000.0, -1000.0]), ("L1C", [0.0, -1000.0, 0.0, -1000.0])):
        found = source(root, s2_level=level)
        samples = [found.read(pair) for pair in found.list().pairs]
        for sample, offset in zip(samples, expected, strict=True):
            assert {a.radiometric_offset for n, a in sample.arrays.items() if n.startswith("s2")} == {offset}
            assert sample.arrays["s1"].radiometric_offset == 0
            assert "B10 median" in sample.attributes["offset_evidence"]


def test_l1c_has_13_bands_and_is_its_own_evidence(root, tiles):
    sample = read(root, "tile_1", s2_level="L1C")
    assert_tile(sample, tiles[1], "S2L1C")
    assert sample.level == "L1C"
    assert sample.arrays["s2_60m"].bands == ("B01", "B09", "B10")


def test_without_level_2a_level_1c_is_taken(tmp_path, tiles):
    write_archive(tmp_path, tiles, without=("S2L2A",))
    assert read(tmp_path).level == "L1C"
    with pytest.raises(ConfigError, match="no tar in train/S2L2A or val/S2L2A"):
        source(tmp_path, s2_level="L2A").list()


def test_an_offset_that_cannot_be_proven_is_refused_with_what_to_fetch(tmp_path, tiles):
    write_archive(tmp_path, tiles, without=("S2L1C",))
    listing = source(tmp_path).list()
    assert listing.notes == ["4 of 4 pairs have no S2L1C, which proves the offset of tiles that are nowhere dark"]
    error = refusal(tmp_path)
    assert error.reason == OFFSET
    assert error.file == f"val/S2L2A/{SHARD}.tar/tile_0.zarr.zip"
    assert "fetch its S2L1C tar" in error.message


def test_an_unclear_level_1c_is_refused(tmp_path, tiles):
    tiles[0].bands["S2L1C"][0, L1C.index("B10")] = 950
    write_archive(tmp_path, tiles)
    for level in ("L1C", "L2A"):
        error = refusal(tmp_path, s2_level=level)
        assert error.reason == OFFSET
        assert "B10 median 950" in error.message
        assert error.message.endswith("leave the tile out")


def test_pairs_stay_right_when_a_member_is_missing_and_the_one_alone_is_refused(root, tiles):
    rewrite(tar(root, "S1RTC"), lambda members: members[1:])
    rewrite(tar(root, "DEM"), lambda members: members[:1] + members[2:])
    rewrite(tar(root, "S2L2A"), lambda members: members[:3])
    found = source(root)
    listing = found.list()
    assert [pair.key for pair in listing.pairs] == ["tile_1", "tile_2"]
    for pair in listing.pairs:
        stored = assert_tile(found.read(pair), tiles[int(pair.key[-1])])
        assert ("DEM" in stored) == (pair.key == "tile_2")
    assert [(r.key, r.reason, r.file) for r in listing.refused] == [
        ("tile_0", MISSING_HALF, f"val/S1RTC/{SHARD}.tar"),
        ("tile_3", MISSING_HALF, f"val/S2L2A/{SHARD}.tar"),
    ]
    assert "it has no tile_0.zarr.zip, which is in val/S2L2A" in listing.refused[0].message
    assert listing.notes == ["1 of 2 pairs have no DEM, which would ride along"]


def test_the_order_of_members_means_nothing(root, tiles):
    rewrite(tar(root, "S1RTC"), lambda members: members[::-1])
    rewrite(tar(root, "S2L1C"), lambda members: members[2:] + members[:2])
    found = source(root)
    pairs = found.list().pairs
    assert len(pairs) == 4
    for pair in pairs:
        assert_tile(found.read(pair), tiles[int(pair.key[-1])])


def test_without_riders_their_tars_are_not_even_opened(root, tiles):
    for modality in ("DEM", "NDVI", "LULC"):
        tar(root, modality).write_bytes(b"broken")
    found = source(root, riders=False)
    listing = found.list()
    assert len(listing.pairs) == 4
    assert listing.notes == []
    assert set(found.read(listing.pairs[0]).arrays) == {"s1", "s2_10m", "s2_20m", "s2_60m"}
    assert [file.path.split("/")[1] for file in found.files(listing.pairs[0])] == ["S1RTC", "S2L2A", "S2L1C"]


def test_grd_belongs_to_the_shards_of_ssl4eo_and_splits_are_the_folders(root, tiles):
    grd = [make_tile(f"ssl4eos12_train_{i}", 20 + i, s1="S1GRD") for i in range(2)]
    write_archive(root, grd, split="train", shard="ssl4eos12_shard_000794")
    found = source(root)
    listing = found.list()
    assert len(listing.pairs) == 6
    assert {pair.split for pair in listing.pairs} == {"train", "val"}
    first = listing.pairs[0]
    assert (first.key, first.split) == ("ssl4eos12_train_0", "train")
    assert first.s1 == "train/S1GRD/ssl4eos12_shard_000794.tar"
    sample = found.read(first)
    assert_tile(sample, grd[0], s1="S1GRD")
    assert sample.attributes["s1_product"] == "S1GRD"


@pytest.mark.parametrize(("gone", "left"), [("S1RTC", "S2L2A"), ("S2L2A", "S1RTC")])
def test_a_tar_without_partner_is_refused_once_with_its_number_of_tiles(root, tiles, gone, left):
    write_archive(root, tiles, shard="majortom_shard_000002")
    tar(root, gone).unlink()
    listing = source(root).list()
    assert len(listing.pairs) == 4
    (refused,) = listing.refused
    assert (refused.key, refused.reason, refused.file) == (f"val/{SHARD}", MISSING_HALF, f"val/{left}/{SHARD}.tar")
    assert "so its 4 tiles are no pairs" in refused.message


def test_a_tar_that_is_cut_short_is_refused_as_a_whole(root, tiles):
    write_archive(root, [make_tile("other", 9)], shard="majortom_shard_000002")
    path = tar(root, "DEM")
    path.write_bytes(path.read_bytes()[:-9000])
    listing = source(root).list()
    assert [pair.key for pair in listing.pairs] == ["other"]
    (refused,) = listing.refused
    assert (refused.key, refused.reason, refused.file) == (f"val/{SHARD}", CORRUPT, f"val/DEM/{SHARD}.tar")


def test_a_tile_that_is_twice_in_a_tar_is_refused(root):
    rewrite(tar(root, "S2L2A"), lambda members: [*members, members[1]])
    listing = source(root).list()
    assert [pair.key for pair in listing.pairs] == ["tile_0", "tile_2", "tile_3"]
    (refused,) = listing.refused
    assert (refused.key, refused.reason, refused.file) == ("tile_1", METADATA, f"val/S2L2A/{SHARD}.tar")


def test_other_members_are_counted(root):
    rewrite(tar(root, "S2L2A"), lambda members: [("README", b"text"), *members])
    listing = source(root).list()
    assert len(listing.pairs) == 4
    assert listing.notes == [f"1 members of val/S2L2A/{SHARD}.tar are no .zarr.zip and are left out"]


def test_a_tar_that_changed_after_it_was_listed_is_not_misread(root):
    found = source(root)
    pair = found.list().pairs[0]
    rewrite(tar(root, "S1RTC"), lambda members: members[1:] + members[:1])
    with pytest.raises(PairError, match=r"the tar has 'tile_1\.zarr\.zip' at byte 512: it was changed") as caught:
        found.read(pair)
    assert caught.value.reason == CORRUPT
    tar(root, "S1RTC").write_bytes(b"short")
    with pytest.raises(PairError, match="cut short"):
        found.read(pair)
    tar(root, "S1RTC").unlink()
    for ask in (found.read, found.files):
        with pytest.raises(PairError) as caught:
            ask(pair)
        assert caught.value.reason == MISSING_HALF


def test_the_files_of_a_pair_are_its_tars_with_what_shows_a_change(root):
    found = source(root)
    pair = found.list().pairs[0]
    files = {file.path: file for file in found.files(pair)}
    assert set(files) == {f"val/{m}/{SHARD}.tar" for m in ("S1RTC", "S2L2A", "S2L1C", "DEM", "NDVI", "LULC")}
    path = tar(root, "S1RTC")
    assert files[f"val/S1RTC/{SHARD}.tar"].size == path.stat().st_size
    path.write_bytes(path.read_bytes() + bytes(512))
    assert {file.path for file in found.files(pair) if file != files[file.path]} == {f"val/S1RTC/{SHARD}.tar"}


def test_a_name_that_is_no_key_is_mapped_and_kept(tmp_path):
    names = ["S2A.2020", "S2A_2020", "x" * 120, "plain-1"]
    write_archive(tmp_path, [make_tile(name, i) for i, name in enumerate(names)])
    found = source(tmp_path)
    pairs = found.list().pairs
    assert {pair.attributes.get("tile", pair.key) for pair in pairs} == set(names)
    assert len({pair.key for pair in pairs}) == 4
    assert all("." not in pair.key and len(pair.key) <= 91 for pair in pairs)
    assert [pair.key for pair in pairs if "tile" not in pair.attributes] == ["S2A_2020", "plain-1"]
    for pair in pairs:
        assert found.read(pair).attributes.get("tile", pair.key) in names
    assert tile_key("a.b") != tile_key("a:b")


def test_an_object_store_gives_the_same_pairs_and_pixels(root, tiles):
    memory, prefix = fsspec.filesystem("memory"), uuid.uuid4().hex
    for path in root.rglob("*.tar"):
        memory.pipe_file(f"{prefix}/{path.relative_to(root)}", path.read_bytes())
    local, remote = source(root), source(f"memory://{prefix}")
    assert remote.list().table.drop(["lon", "lat"]).equals(local.list().table.drop(["lon", "lat"]))
    pair, remote = remote.list().pairs[3], source(f"memory://{prefix}")
    assert_tile(remote.read(pair), tiles[3])
    assert len(remote.files(pair)) == 6
    assert remote.centre(pair) == ("EPSG:4326", 9.8, 57.2)
    memory.pipe_file(f"{prefix}/val/S1RTC/{SHARD}.tar", b"short")
    with pytest.raises(PairError, match="cut short"):
        source(f"memory://{prefix}").read(pair)
    memory.rm_file(f"/{prefix}/val/S1RTC/{SHARD}.tar")
    with pytest.raises(PairError, match="the tar is missing"):
        source(f"memory://{prefix}").read(pair)


def test_places_and_clouds_come_from_the_table_when_it_is_there(root):
    found = source(root)
    assert found.centre(found.list().pairs[0]) == ("EPSG:4326", 9.8, 57.2)
    rows = {
        "tar": [f"{SHARD}.tar", "other.tar", f"{SHARD}.tar"],
        "zarr": ["tile_2.zarr.zip", "tile_0.zarr.zip", "tile_1.zarr.zip"],
        "center_lon": [12.5, 1.0, None],
        "center_lat": [-3.25, 1.0, 1.0],
        "cloud_cover": [0.25, 0.0, 0.0],
    }
    pq.write_table(pa.table(rows), root / "val_metadata.parquet")
    pairs = {pair.key: pair for pair in found.list().pairs}
    assert (pairs["tile_2"].lon, pairs["tile_2"].lat) == (12.5, -3.25)
    assert found.read(pairs["tile_2"]).attributes["cloud_cover"] == 0.25
    assert np.isnan([pairs["tile_0"].lon, pairs["tile_1"].lon]).all()
    pq.write_table(pa.table({"tar": ["a"]}), root / "val_metadata.parquet")
    with pytest.raises(DataError, match="has no column zarr, center_lon, center_lat"):
        found.list()
    (root / "val_metadata.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        found.list()


def test_bands_are_taken_by_name_where_a_tile_names_them(tmp_path, tiles):
    tiles[0].beside["S1RTC"] = {"bands": tiles[0].bands["S1RTC"][:, ::-1], "band": np.array(["vh", "vv"])}
    tiles[1].beside["S1RTC"] = {"band": np.array(["vv", "hv"])}
    write_archive(tmp_path, tiles)
    assert_tile(read(tmp_path), tiles[0])
    error = refusal(tmp_path, "tile_1")
    assert error.reason == BANDS
    assert "it names its bands VV, HV where VV, VH are S1RTC" in error.message


def test_coordinates_of_the_pixels_count_more_than_the_centre(tmp_path, tiles):
    x, y = 548_305.0 + 10 * np.arange(SIDE), 6_339_495.0 - 10 * np.arange(SIDE)
    for modality in ("S1RTC", "S2L2A"):
        tiles[0].beside[modality] = {"x": x, "y": y}
    tiles[1].beside["S2L2A"] = {"x": x + 10, "y": y}
    tiles[2].beside["S2L2A"] = {"x": x + 4 * (x > x[3]), "y": y}
    write_archive(tmp_path, tiles)
    assert read(tmp_path).arrays["s1"].transform == (10.0, 0.0, 548_300.0, 0.0, -10.0, 6_339_500.0)
    assert refusal(tmp_path, "tile_1").reason == GRIDS
    assert refusal(tmp_path, "tile_2").reason == METADATA


def test_without_a_crs_the_pixels_are_still_10_m_and_the_place_is_known(tmp_path, tiles):
    for modality in ("S1RTC", "S2L2A", "DEM", "NDVI", "LULC"):
        tiles[0].beside[modality] = {"crs": np.int64(0)}
    write_archive(tmp_path, tiles)
    sample = read(tmp_path)
    assert sample.crs == ""
    assert {array.gsd_m for array in sample.arrays.values()} == {10.0}
    assert sample.centre == ("EPSG:4326", 9.8, 57.2)


@pytest.mark.parametrize(
    ("time", "attributes", "date"),
    [
        (np.array([NOON]), {}, "2020-05-20T18:40:00"),
        (np.array(["2021-07-01T10:20:30"], "datetime64[ns]"), {}, "2021-07-01T10:20:30"),
        (np.array([0]), {"units": "days since 2020-05-03 02:07:17"}, "2020-05-03T02:07:17"),
        (np.array([36]), {"units": "hours since 2020-01-01"}, "2020-01-02T12:00:00"),
        (np.int64(0), {}, ""),
    ],
)
def test_times_are_read_in_every_unit(tmp_path, tiles, time, attributes, date):
    member = zipped_zarr(
        {"bands": tiles[0].bands["S1RTC"], "center_lon": np.float64(9.8), "center_lat": np.float64(57.2),
         "crs": np.int64(32632), "time": time},
        {"time": attributes},
    )  # fmt: skip
    write_archive(tmp_path, tiles[:1])
    write_tar(tar(tmp_path, "S1RTC"), {"tile_0.zarr.zip": member})
    assert read(tmp_path).dates.get("s1", "") == date


@pytest.mark.parametrize(
    ("modality", "beside", "reason", "message"),
    [
        ("S1RTC", {"center_lat": np.float64(57.3)}, GRIDS, "its centre is"),
        ("S2L1C", {"center_lon": np.float64(9.9)}, GRIDS, "not one tile"),
        ("DEM", {"center_lon": np.float64(9.9)}, GRIDS, "not one tile"),
        ("S1RTC", {"center_lat": np.float64(97)}, METADATA, "which is nowhere"),
        ("S1RTC", {"center_lat": np.float64("nan")}, METADATA, "which is nowhere"),
        ("S1RTC", {"time": np.int64(10**15)}, METADATA, "its time is 1970-01-12"),
        ("S1RTC", {"crs": np.int64(99999)}, METADATA, "is not in EPSG:99999"),
        ("S1RTC", {"crs": np.array("UTM 32")}, METADATA, "its crs is 'UTM 32'"),
        ("S2L2A", {"cloud_mask": np.zeros((1, 3, 3), np.uint8)}, WRONG_SIZE, r"cloud mask has the shape \(1, 3, 3\)"),
        ("S1RTC", {"bands": np.full((1, 2, 50, 50), -9.5, np.float16)}, WRONG_SIZE, "has"),
        ("S1RTC", {"bands": np.zeros((2, SIDE, SIDE), np.float16)}, WRONG_SIZE, "was expected"),
        ("S2L2A", {"bands": np.zeros((1, 13, SIDE, SIDE), np.int16)}, WRONG_SIZE, "was expected"),
    ],
)  # fmt: skip
def test_a_tile_that_is_not_what_it_says_is_refused(tmp_path, tiles, modality, beside, reason, message):
    tiles[0].beside[modality] = beside
    write_archive(tmp_path, tiles)
    error = refusal(tmp_path)
    assert error.reason == reason
    assert re.search(message, error.message)
    assert_tile(read(tmp_path, "tile_1"), tiles[1])


def test_halves_further_apart_than_asked_are_no_pair(tmp_path, tiles):
    tiles[0].beside["S1RTC"] = {"time": np.int64(NOON - 4 * 86400 * 10**9)}
    write_archive(tmp_path, tiles)
    assert read(tmp_path, max_days=4.5).key == "tile_0"
    error = refusal(tmp_path, max_days=3.0)
    assert (error.reason, "4.0 days apart" in error.message) == (DAYS, True)


def test_a_root_without_tars_is_no_terramesh(tmp_path):
    with pytest.raises(ConfigError, match="give --root the folder that holds train/ and val/"):
        source(tmp_path).list()
    with pytest.raises(ConfigError, match="there is no"):
        source(tmp_path / "nowhere").list()


needs_constructed = pytest.mark.skipif(
    not CONSTRUCTED.exists(), reason="needs ../shared/layouts, real tiles in TerraMesh's layout"
)


def by_zarr(path, tile) -> dict[str, np.ndarray]:
    """All arrays of a member, by tarfile and zarr."""
    with tarfile.open(path) as file:
        content = file.extractfile(f"{tile}.zarr.zip").read()
    prototype = default_buffer_prototype()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        store = {name: prototype.buffer.from_bytes(archive.read(name)) for name in set(archive.namelist())}
    group = zarr.open_group(zarr.storage.MemoryStore(store), mode="r", zarr_format=2)
    return {name: np.asarray(group[name][...]) for name in group.array_keys()}


@needs_constructed
@pytest.mark.parametrize(("level", "offsets"), [("L2A", (0.0, 0.0, -1000.0)), ("L1C", (-1000.0, 0.0, -1000.0))])
def test_real_tiles_come_out_as_zarr_reads_them(level, offsets):
    found = source(CONSTRUCTED, s2_level=level)
    listing = found.list()
    assert (len(listing.pairs), listing.refused) == (3, [])
    assert listing.notes == ["3 of 3 pairs have no NDVI, which would ride along"]
    for pair, offset in zip(listing.pairs, offsets, strict=True):
        sample = found.read(pair)
        stored = planes(sample)
        s2 = by_zarr(CONSTRUCTED / f"val/S2{level}/{SHARD}.tar", pair.key)
        for band, plane in zip(L1C if level == "L1C" else L2A, s2["bands"][0], strict=True):
            assert np.array_equal(stored[band], plane)
        s1 = by_zarr(CONSTRUCTED / f"val/S1RTC/{SHARD}.tar", pair.key)["bands"]
        assert sample.arrays["s1"].data.tobytes() == s1.tobytes()
        assert np.array_equal(stored["CLOUD"], s2["cloud_mask"][0])
        for band in ("DEM", "LULC"):
            assert np.array_equal(
                stored[band], by_zarr(CONSTRUCTED / f"val/{band}/{SHARD}.tar", pair.key)["bands"][0, 0]
            )
        assert {array.radiometric_offset for n, array in sample.arrays.items() if n.startswith("s2")} == {offset}


@needs_constructed
@pytest.mark.skipif(not (SHARED / "terramesh_examples").exists(), reason="needs ../shared/data")
def test_a_real_tile_lies_where_its_geotiff_lies():
    sample = read(CONSTRUCTED, "282D_485L_3_3")
    with rasterio.open(SHARED / "terramesh_examples/S2L2A/282D_485L_3_3.tif") as file:
        assert sample.crs == file.crs.to_string()
        assert sample.arrays["s2_10m"].transform == pytest.approx(tuple(file.transform)[:6], abs=1e-3)
        assert np.array_equal(planes(sample)["B8A"], file.read(9))


@needs_constructed
def test_a_real_tile_in_float64_becomes_float32(tmp_path):
    arrays = by_zarr(CONSTRUCTED / f"val/S1RTC/{SHARD}.tar", "282D_485L_3_3")
    for modality in ("S2L2A",):
        tar(tmp_path, modality).parent.mkdir(parents=True)
        tar(tmp_path, modality).write_bytes(tar(CONSTRUCTED, modality).read_bytes())
    double = arrays["bands"].astype(np.float64) + 1e-9
    write_tar(tar(tmp_path, "S1RTC"), {"282D_485L_3_3.zarr.zip": zipped_zarr({**arrays, "bands": double})})
    s1 = read(tmp_path, "282D_485L_3_3").arrays["s1"].data
    assert s1.dtype == np.float32
    assert np.array_equal(s1, double[0].astype(np.float32))
