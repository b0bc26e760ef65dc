"""BigEarthNet v2.0: tables, reference maps, missing bands and halves, as a tree and as rico-hdl's LMDB."""

import shutil

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from safetensors.numpy import load, save

from sharding.errors import ConfigError, DataError
from sharding.sources import open_source
from sharding.sources.base import (
    CORRUPT,
    GRIDS,
    METADATA,
    MISSING_BAND,
    MISSING_HALF,
    WRONG_TYPE,
    PairError,
    SourceOptions,
)
from sharding.sources.listing import COLUMNS
from sharding.sources.reben_listing import listing_of_metadata
from sharding.sources.reben_metadata import read_metadata
from sharding.sources.tree import Tree
from tests.trees import BANDS_10M, BANDS_12, make_reben, make_reben_lmdb, write_metadata, write_tif
from tests.unit.sharding.conftest import SHARED
from tests.unit.sharding.test_sources import stored_bands

INDEX = SHARED.parent / "index"
LAYOUTS = SHARED.parent / "layouts"


def source_at(root, **options):
    return open_source("reben", str(root), SourceOptions(**options))


def refused(listing) -> set[tuple[str, str, str]]:
    return {(refusal.key, refusal.reason, refusal.file) for refusal in listing.refused}


def put(folder, key: str, tensors: dict[str, np.ndarray]) -> None:
    """Write one key of an LMDB; before any source has opened it."""
    with lmdb.open(str(folder), map_size=2**26) as environment, environment.begin(write=True) as out:
        out.put(key.encode(), save(tensors))


def test_a_tree_may_lack_whole_resolutions(reben):
    source = source_at(reben.root)
    samples = [source.read(pair) for pair in source.list().pairs]
    assert sorted(tuple(sample.arrays) for sample in samples) == [
        *[("s1", "s2_10m")] * 2,
        *[("s1", "s2_10m", "s2_20m", "s2_60m")] * 4,
    ]


def test_flags_of_both_tables_country_and_older_name_are_kept(reben):
    source = source_at(reben.root)
    pairs = source.list().pairs
    assert {pair.key for pair in pairs if pair.attributes["contains_seasonal_snow"]} == {reben.patches[-1].key}
    by_key = {patch.key: patch for patch in reben.patches}
    for pair in pairs:
        patch = by_key[pair.key]
        assert source.read(pair).attributes == {
            "s1_name": patch.s1_name,
            "country": "Austria",
            "s2v1_name": f"S2A_MSIL2A_20170613T101031_{patch.column}_{patch.row}",
            "contains_seasonal_snow": patch is reben.patches[-1],
            "contains_cloud_or_shadow": False,
        }


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("tables", ["parquet", "csv"])
def test_the_lmdb_with_either_table_and_either_root(tmp_path, tables, inside):
    patches = make_reben_lmdb(tmp_path / "BENv2", 3, tables=tables)
    source = source_at(patches[0].s1_path if inside else tmp_path / "BENv2")
    listing = source.list()
    assert {pair.key: set(pair.labels) for pair in listing.pairs} == {p.key: set(p.labels) for p in patches}
    assert {pair.key: pair.split for pair in listing.pairs} == {p.key: p.split for p in patches}
    assert {pair.attributes["country"] for pair in listing.pairs} == {"Austria"}
    assert set(stored_bands(source.read(listing.pairs[0]))) == {"VV", "VH", *BANDS_12}


def test_reference_maps_ride_along_in_a_tree(tmp_path):
    patches = make_reben(tmp_path, 4, num_maps=3)
    source = source_at(tmp_path)
    for pair in source.list().pairs:
        [patch] = [patch for patch in patches if patch.key == pair.key]
        sample = source.read(pair)
        paths = {file.path for file in source.files(pair)}
        path = f"Reference_Maps/{pair.key.rsplit('_', 2)[0]}/{pair.key}/{pair.key}_reference_map.tif"
        assert (path in paths) == ("reference_map" in sample.arrays) == (patch.reference_map is not None)
        if patch.reference_map is not None:
            array = sample.arrays["reference_map"]
            with rasterio.open(tmp_path / path) as file:
                assert np.array_equal(array.data, file.read())
            assert (array.data.dtype, array.bands, array.units, array.gsd_m) == (np.uint16, ("CLC",), "class", 10)
            assert list(sample.arrays)[-1] == "reference_map"


def test_reference_maps_ride_along_in_the_lmdb(tmp_path):
    patches = make_reben_lmdb(tmp_path, 4, num_maps=3)
    copy = shutil.copytree(patches[0].s1_path, tmp_path / "copy")
    shutil.move(copy, tmp_path.parent / f"{tmp_path.name}-copy")
    source = source_at(tmp_path)
    pairs = source.list().pairs
    assert [pair.key for pair in pairs] == sorted(patch.key for patch in patches)  # the maps are no patches
    samples = {pair.key: source.read(pair) for pair in pairs}
    with (
        lmdb.open(str(tmp_path.parent / f"{tmp_path.name}-copy"), readonly=True, lock=False) as environment,
        environment.begin() as transaction,
    ):
        for patch in patches:
            value = transaction.get(f"{patch.key}_reference_map".encode())
            array = samples[patch.key].arrays.get("reference_map")
            assert (value is None) == (array is None) == (patch.reference_map is None)
            assert array is None or np.array_equal(array.data[0], load(value)["Data"])
            assert array is None or array.transform == samples[patch.key].arrays["s1"].transform


@pytest.mark.parametrize("make", [make_reben, make_reben_lmdb])
def test_no_riders_no_maps(tmp_path, make):
    make(tmp_path, 2, num_maps=2)
    source = source_at(tmp_path, riders=False)
    for pair in source.list().pairs:
        assert "reference_map" not in source.read(pair).arrays
        assert not any("Reference_Maps" in file.path for file in source.files(pair))


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        (GRIDS, lambda path, patch: write_tif(path, patch.reference_map, (patch.corner[0] + 10, patch.corner[1]))),
        (GRIDS, lambda path, patch: write_tif(path, patch.reference_map, patch.corner, crs="EPSG:32634")),
        (GRIDS, lambda path, patch: write_tif(path, patch.reference_map[:60], patch.corner)),
        (WRONG_TYPE, lambda path, patch: write_tif(path, patch.reference_map.astype(np.uint8), patch.corner)),
        (CORRUPT, lambda path, _: path.write_bytes(path.read_bytes()[:100])),
    ],
)
def test_a_map_that_does_not_fit_is_refused(tmp_path, reason, change):
    [patch] = make_reben(tmp_path, 1, num_maps=1)
    [path] = (tmp_path / "Reference_Maps").rglob("*.tif")
    change(path, patch)
    source = source_at(tmp_path)
    [pair] = source.list().pairs
    with pytest.raises(PairError) as caught:
        source.read(pair)
    assert (caught.value.reason, caught.value.file) == (reason, str(path.relative_to(tmp_path)))


def test_a_single_band_may_not_be_missing_in_a_tree(fresh_reben):
    source = source_at(fresh_reben.root)
    pair = source.list().pairs[1]
    path = f"{source.store.s2_path(pair.s2)}/{pair.s2}_B05.tif"
    (fresh_reben.root / path).unlink()
    for ask in (source.files, source.read):
        with pytest.raises(PairError, match="B05 missing beside the others of s2_20m") as caught:
            ask(pair)
        assert (caught.value.reason, caught.value.file) == (MISSING_BAND, path)


def test_a_single_band_may_not_be_missing_in_the_lmdb(tmp_path):
    patches = make_reben_lmdb(tmp_path, 2)
    folder = patches[0].s1_path
    put(folder, patches[0].key, {band: patches[0].pixels[band] for band in (*BANDS_10M, "B05")})
    put(folder, patches[1].s1_name, {"VV": patches[1].pixels["VV"]})
    source = source_at(tmp_path)
    pairs = {pair.key: pair for pair in source.list().pairs}
    for patch, missing in zip(patches, ("B06, B07, B8A, B11, B12 missing", "it has no VH"), strict=True):
        with pytest.raises(PairError, match=missing) as caught:
            source.read(pairs[patch.key])
        assert caught.value.reason == MISSING_BAND


def test_a_value_that_is_no_safetensors_is_corrupt(tmp_path):
    patches = make_reben_lmdb(tmp_path, 1)
    with lmdb.open(str(patches[0].s1_path), map_size=2**26) as environment, environment.begin(write=True) as out:
        out.put(patches[0].key.encode(), b"pickle")
    source = source_at(tmp_path)
    with pytest.raises(PairError, match=r"no safetensors .*make the LMDB again") as caught:
        source.read(source.list().pairs[0])
    assert (caught.value.reason, caught.value.file) == (CORRUPT, f"BigEarthNet-V2-LMDB/{patches[0].key}")


def test_halves_without_partner_or_row_are_refused_and_rows_without_pixels_noted(tmp_path):
    no_s1, no_s2, no_row, nothing, whole = patches = make_reben(tmp_path, 5)
    shutil.rmtree(no_s1.s1_path)
    shutil.rmtree(no_s2.s2_path)
    shutil.rmtree(nothing.s1_path)
    shutil.rmtree(nothing.s2_path)
    write_metadata(tmp_path, [patch for patch in patches if patch is not no_row])
    listing = source_at(tmp_path).list()
    assert [pair.key for pair in listing.pairs] == [whole.key]

    def path(full) -> str:
        return str(full.relative_to(tmp_path))

    assert refused(listing) == {
        (no_s1.key, MISSING_HALF, path(no_s1.s1_path)),
        (no_s2.key, MISSING_HALF, path(no_s2.s1_path)),
        (no_row.key, METADATA, path(no_row.s2_path)),
        (no_row.s1_name, MISSING_HALF, path(no_row.s1_path)),
    }
    assert listing.notes == [f"1 of 4 patches of the metadata have no pixels in {tmp_path}"]
    assert len(listing.refused) == 4


def test_rows_that_contradict_themselves_are_refused(tmp_path):
    other_place, lava, good = patches = make_reben(tmp_path, 3)
    other_place.s1_name = other_place.s1_name.replace("33UUP", "33UUQ")
    lava.labels = ("Pastures", "Lava")
    write_metadata(tmp_path, patches)
    listing = source_at(tmp_path).list()
    assert [pair.key for pair in listing.pairs] == [good.key]
    messages = {refusal.key: refusal.message for refusal in listing.refused if refusal.reason == METADATA}
    assert messages[other_place.key].endswith("_33UUQ_3_22', which is another place")
    assert messages[lava.key] == "its label 'Lava' is not in the nomenclature of BigEarthNet"


@pytest.mark.parametrize("name", ["S2A_MSIL2A_20170613T101031_N9999_R022_T33IUP_03_22", "S2A_patch", "S2"])
def test_a_row_with_a_name_that_is_none_is_refused(tmp_path, name):
    patches = make_reben(tmp_path, 2)
    patches[0].key = name
    write_metadata(tmp_path, patches)
    listing = listing_of_metadata(read_metadata(Tree(str(tmp_path)), ""))
    assert [pair.key for pair in listing.pairs] == [patches[1].key]
    assert [refusal.message for refusal in listing.refused] == [f"'{name}' is no name of a patch of BigEarthNet v2.0"]


def test_without_metadata_it_says_what_to_fetch(fresh_reben):
    for path in fresh_reben.root.glob("*.parquet"):
        path.unlink()
    with pytest.raises(DataError, match=r"has no metadata\.parquet.*fetch it"):
        source_at(fresh_reben.root).list()


def test_a_broken_table_is_named(fresh_reben):
    (fresh_reben.root / "metadata.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"metadata\.parquet cannot be read as reBEN's metadata in Parquet"):
        source_at(fresh_reben.root).list()


def test_a_table_without_the_columns_is_named(fresh_reben):
    pq.write_table(pa.table({"patch_id": ["a"], "labels": [["b"]]}), fresh_reben.root / "metadata.parquet")
    with pytest.raises(DataError, match=r"metadata\.parquet has no column s1_name, split; it is not reBEN's"):
        source_at(fresh_reben.root).list()


def test_a_split_that_is_none_is_named(fresh_reben):
    fresh_reben.patches[0].split = "exam"
    write_metadata(fresh_reben.root, fresh_reben.patches)
    with pytest.raises(DataError, match=r"column split of the metadata is wrong: 'exam' is no split"):
        source_at(fresh_reben.root).list()


def test_a_broken_lmdb_is_named(tmp_path):
    patches = make_reben_lmdb(tmp_path, 2)
    (patches[0].s1_path / "data.mdb").write_bytes(b"no database" * 1000)
    with pytest.raises(DataError, match="BigEarthNet-V2-LMDB cannot be opened as an LMDB"):
        source_at(tmp_path).list()


def test_an_lmdb_in_an_object_store_is_wrong_usage():
    import fsspec

    fsspec.filesystem("memory").pipe_file("/remote-lmdb/BENv2/data.mdb", b"x")
    with pytest.raises(ConfigError, match="read from a disk only; copy it first"):
        source_at("memory://remote-lmdb").list()


def test_a_tree_without_its_s1_half_is_wrong_usage(fresh_reben):
    shutil.rmtree(fresh_reben.root / "BigEarthNet-S1")
    with pytest.raises(ConfigError, match="fetch the S1 half"):
        source_at(fresh_reben.root).list()


def test_the_part_in_copernicus_bench_is_wrong_usage(tmp_path):
    for half in ("S1", "S2"):
        (tmp_path / f"BigEarthNet-{half}-5%").mkdir()
    with pytest.raises(ConfigError, match=r"BigEarthNet-S2-5%.*Copernicus-Bench.*--source folder"):
        source_at(tmp_path).list()


@pytest.fixture(scope="module")
def official():
    if not INDEX.exists():
        pytest.skip("needs ../shared/index, the official tables")
    return INDEX


def link_tables(official, folder) -> None:
    for name in ("metadata", "metadata_for_patches_with_snow_cloud_or_shadow"):
        (folder / f"{name}.parquet").symlink_to(official / f"reben_{name}.parquet")


def test_the_official_tables_are_549488_pairs(official, tmp_path):
    link_tables(official, tmp_path)
    rows = read_metadata(Tree(str(tmp_path)), "")
    listing = listing_of_metadata(rows)
    table = listing.table
    assert (len(table), listing.refused, listing.notes, listing.has_splits) == (549_488, [], [], True)
    assert table.schema.names[: len(COLUMNS)] == COLUMNS.names
    assert [table.schema.field(name).type for name in COLUMNS.names] == COLUMNS.types
    keys = table["key"].to_pylist()
    assert keys == sorted(keys)
    counts = {count["values"]: count["counts"] for count in table["split"].value_counts().to_pylist()}
    assert counts == {"train": 272_544, "val": 139_577, "test": 137_367}
    assert not any(table[name].null_count for name in ("lon", "lat", "s1_date", "s2_date", "country", "labels"))
    by_key = {row["patch_id"]: row for row in rows.slice(0, 50).to_pylist()}
    chosen = table.filter(pa.array([key in by_key for key in keys])).to_pylist()
    for row in chosen:
        official_row = by_key[row["key"]]
        assert set(row["labels"]) == set(official_row["labels"])
        assert (row["s1"], row["country"]) == (official_row["s1_name"], official_row["country"])
    assert len(chosen) == 50


@pytest.mark.skipif(not LAYOUTS.exists(), reason="needs ../shared/layouts")
class TestLayouts:
    def test_configilms_24_pairs_are_read_as_lmdb_has_them(self, tmp_path):
        copy = shutil.copytree(LAYOUTS / "configilm" / "BENv2" / "BigEarthNet-V2-LMDB", tmp_path / "copy")
        source = source_at(LAYOUTS / "configilm" / "BENv2")
        listing = source.list()
        assert (len(listing.pairs), listing.refused, listing.notes) == (24, [], [])
        with lmdb.open(str(copy), readonly=True, lock=False) as environment, environment.begin() as transaction:
            for pair in listing.pairs:
                expected = {**load(transaction.get(pair.s1.encode())), **load(transaction.get(pair.s2.encode()))}
                stored = stored_bands(source.read(pair))
                assert set(stored) == set(expected)
                assert all(np.array_equal(stored[band], plane) for band, plane in expected.items())

    def test_rico_hdls_unpaired_patches_are_halves_and_its_map_is_read(self, official, tmp_path):
        root = tmp_path / "tree"
        shutil.copytree(LAYOUTS / "rico_hdl" / "BigEarthNet_v2_real_unpaired", root)
        root.chmod(0o755)
        link_tables(official, root)
        source = source_at(root)
        listing = source.list()
        assert len(listing.pairs) == 0
        assert {(refusal.key[-5:], refusal.reason) for refusal in listing.refused} == {
            ("75_43", MISSING_HALF),
            ("70_48", MISSING_HALF),
        }
        assert listing.notes == [f"549486 of 549488 patches of the metadata have no pixels in {root}"]
        raster = source.store.reference_map("S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57")
        assert (raster.data.shape, raster.data.dtype) == ((1, 120, 120), np.uint16)
        assert raster.grid.transform[2::3] == (300_000 + 26 * 1200, 5_400_000 - 57 * 1200)

    def test_torchgeos_fake_rows_pair_other_places(self):
        listing = source_at(LAYOUTS / "torchgeo" / "bigearthnet_v2").list()
        assert len(listing.pairs) == 0
        assert [refusal.reason for refusal in listing.refused] == [METADATA] * 4

    def test_copernicus_bench_is_told_apart(self):
        with pytest.raises(ConfigError, match="Copernicus-Bench"):
            source_at(LAYOUTS / "torchgeo" / "copernicusbench_bigearthnet_s1s2" / "bigearthnet_s1s2").list()
