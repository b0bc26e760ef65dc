"""Every source gives the pixels that rasterio or lmdb read, and what the archive says of them."""

import bz2
import shutil

import lmdb
import numpy as np
import pytest
import rasterio
from safetensors.numpy import load

from sharding.errors import ConfigError, DataError
from sharding.sources import open_source
from tests.trees import BANDS_10M, BANDS_12, make_reben_lmdb
from tests.unit.sharding.conftest import Archive


def stored_bands(sample) -> dict[str, np.ndarray]:
    return {b: p for array in sample.arrays.values() for b, p in zip(array.bands, array.data, strict=True)}


def by_rasterio(archive: Archive, patch) -> dict[str, np.ndarray]:
    planes = {}
    for band in patch.pixels:
        folder, name = (patch.s1_path, patch.s1_name) if band in ("VV", "VH") else (patch.s2_path, patch.key)
        with rasterio.open(folder / f"{name}_{band}.tif") as file:
            planes[band] = file.read(1)
    return planes


def by_lmdb(archive: Archive, patch) -> dict[str, np.ndarray]:
    # The source keeps its environment open, and a process may have only one.
    copy = archive.root / "copy"
    if not copy.exists():
        shutil.copytree(patch.s1_path, copy)
    with lmdb.open(str(copy), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return {**load(transaction.get(patch.s1_name.encode())), **load(transaction.get(patch.key.encode()))}


@pytest.mark.parametrize(("name", "read"), [("v1", by_rasterio), ("reben", by_rasterio), ("reben_lmdb", by_lmdb)])
def test_samples_are_pixel_exact(name, read, request):
    archive = request.getfixturevalue(name)
    source = open_source(archive.source, str(archive.root))
    pairs = source.list().pairs
    assert [pair.key for pair in pairs] == sorted(patch.key for patch in archive.patches)
    by_key = {patch.key: patch for patch in archive.patches}
    for pair in pairs:
        patch = by_key[pair.key]
        sample = source.read(pair)
        expected = read(archive, patch)
        assert set(expected) == set(patch.pixels)
        stored = stored_bands(sample)
        assert set(stored) == set(expected) == set(pair.bands)
        for band, plane in expected.items():
            assert stored[band].dtype == plane.dtype
            assert np.array_equal(stored[band], plane)
        assert sample.crs == "EPSG:32633"
        left, top = patch.corner
        assert sample.arrays["s1"].transform == (10, 0, left, 0, -10, top)
        assert source.centre(pair) == ("EPSG:32633", *sample.centre) == ("EPSG:32633", left + 600, top - 600)
        assert sample.dates == {"s1": "2017-06-13T16:50:43", "s2": "2017-06-13T10:10:31"}
        assert set(sample.labels) == set(patch.labels)
        assert {"validation": "val"}.get(sample.split, sample.split) == patch.split
        assert sample.attributes["s1_name"] == patch.s1_name
        assert sample.level == "L2A"


def test_arrays_are_at_native_resolution_in_the_documented_order(v1):
    source = open_source(v1.source, str(v1.root))
    sample = source.read(source.list().pairs[0])
    assert {name: (a.bands, a.data.shape, a.gsd_m, a.units) for name, a in sample.arrays.items()} == {
        "s1": (("VV", "VH"), (2, 120, 120), 10, "dB"),
        "s2_10m": (BANDS_10M, (4, 120, 120), 10, "DN"),
        "s2_20m": (("B05", "B06", "B07", "B8A", "B11", "B12"), (6, 60, 60), 20, "DN"),
        "s2_60m": (("B01", "B09"), (2, 20, 20), 60, "DN"),
    }


def test_v1_keeps_the_43_labels_beside_the_19(v1):
    pair = open_source(v1.source, str(v1.root)).list().pairs[0]
    assert set(dict(pair.attributes)["labels_43"]) == {"Non-irrigated arable land", "Pastures"}
    assert pair.labels == ("Arable land", "Pastures")


@pytest.mark.parametrize(
    ("s1", "s2"),
    [
        ("BigEarthNet-S1-v1.0", "BigEarthNet-S2-v1.0"),
        ("BigEarthNet-S1-Example", "BigEarthNet-S2-Example"),
    ],
)
def test_v1_under_its_other_names(fresh_v1, s1, s2):
    (fresh_v1.root / "BigEarthNet-S1-v1.0").rename(fresh_v1.root / s1)
    (fresh_v1.root / "BigEarthNet-v1.0").rename(fresh_v1.root / s2)
    source = open_source("bigearthnet-v1", str(fresh_v1.root))
    assert len([source.read(pair) for pair in source.list().pairs]) == 4


@pytest.mark.parametrize("form", ["splits/{}.csv", "bigearthnet-{}.csv", "{}.csv.bz2"])
def test_v1_splits_wherever_they_lie(fresh_v1, form):
    for split in ("train", "val", "test"):
        old = fresh_v1.root / "splits" / f"{split}.csv"
        content = old.read_bytes()
        old.unlink()
        new = fresh_v1.root / form.format(split)
        new.write_bytes(bz2.compress(content) if new.suffix == ".bz2" else content)
    splits = {pair.key: pair.split for pair in open_source("bigearthnet-v1", str(fresh_v1.root)).list().pairs}
    assert splits == {patch.key: patch.split for patch in fresh_v1.patches}


def test_v1_tells_of_patches_that_are_only_in_the_split_files(fresh_v1):
    with (fresh_v1.root / "splits" / "val.csv").open("a") as file:
        file.write("S2A_MSIL2A_20170613T101031_88_88\n")
    notes = open_source("bigearthnet-v1", str(fresh_v1.root)).list().notes
    assert notes == [f"1 patches of the split files are not in {fresh_v1.root}"]


def test_reben_tree_with_few_bands(reben):
    listing = open_source("reben", str(reben.root)).list()
    assert {len(pair.bands) for pair in listing.pairs} == {6, 14}
    assert sum(len(pair.bands) == 6 for pair in listing.pairs) == 2


def test_reben_flags_of_both_tables_are_kept(reben):
    pairs = open_source("reben", str(reben.root)).list().pairs
    snow = {pair.key for pair in pairs if dict(pair.attributes)["contains_seasonal_snow"]}
    assert snow == {reben.patches[-1].key}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("tables", ["parquet", "csv"])
def test_reben_lmdb_with_either_table_and_either_root(tmp_path, tables, inside):
    patches = make_reben_lmdb(tmp_path / "BENv2", 3, tables=tables)
    root = patches[0].s1_path if inside else tmp_path / "BENv2"
    source = open_source("reben", str(root))
    pairs = source.list().pairs
    assert {pair.key: set(pair.labels) for pair in pairs} == {p.key: set(p.labels) for p in patches}
    assert set(stored_bands(source.read(pairs[0]))) == {"VV", "VH", *BANDS_12}


def test_reben_without_metadata_says_what_to_fetch(fresh_reben):
    for path in fresh_reben.root.glob("*.parquet"):
        path.unlink()
    with pytest.raises(DataError, match=r"has no metadata\.parquet.*fetch it"):
        open_source("reben", str(fresh_reben.root)).list()


def test_reben_with_a_broken_table_names_it(fresh_reben):
    (fresh_reben.root / "metadata.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"metadata\.parquet cannot be read as Parquet"):
        open_source("reben", str(fresh_reben.root)).list()


def test_a_broken_lmdb_is_named(tmp_path):
    patches = make_reben_lmdb(tmp_path, 2)
    (patches[0].s1_path / "data.mdb").write_bytes(b"no database" * 1000)
    with pytest.raises(DataError, match="BigEarthNet-V2-LMDB cannot be opened as an LMDB"):
        open_source("reben", str(tmp_path)).list()


@pytest.mark.parametrize("name", ["bigearthnet-v1", "reben"])
def test_a_folder_without_the_archive_is_wrong_usage(tmp_path, name):
    with pytest.raises(ConfigError, match=str(tmp_path)):
        open_source(name, str(tmp_path)).list()


@pytest.mark.parametrize("name", ["bigearthnet-v1", "reben", "folder"])
def test_a_missing_root_is_wrong_usage(tmp_path, name):
    with pytest.raises(ConfigError, match=r"there is no .*nowhere"):
        open_source(name, str(tmp_path / "nowhere")).list()


def test_an_unknown_source_names_the_known_ones():
    with pytest.raises(ConfigError, match="bigearthnet-v1, reben, folder"):
        open_source("sen12ms", "/")


def test_the_tree_is_read_from_an_object_store_too(fresh_v1):
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.put(str(fresh_v1.root), "/ben1-remote", recursive=True)
    local, remote = (
        open_source("bigearthnet-v1", str(fresh_v1.root)),
        open_source("bigearthnet-v1", "memory://ben1-remote"),
    )
    pairs = remote.list().pairs
    assert [pair.key for pair in pairs] == [pair.key for pair in local.list().pairs]
    for pair in pairs:
        ours, theirs = stored_bands(remote.read(pair)), stored_bands(local.read(pair))
        assert all(np.array_equal(ours[band], theirs[band]) for band in theirs)
