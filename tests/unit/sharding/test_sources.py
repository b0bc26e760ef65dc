"""Every form of BigEarthNet gives the pixels that rasterio or lmdb read, and what the archive says of them."""

import dataclasses
import shutil

import lmdb
import numpy as np
import pytest
import rasterio
from safetensors.numpy import load

from sharding.errors import ConfigError
from sharding.sources import SOURCES, open_source
from sharding.sources.base import SourceOptions
from sharding.sources.raster import to_degrees
from tests.trees import BANDS_10M
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
        assert set(stored) == set(expected)
        for band, plane in expected.items():
            assert stored[band].dtype == plane.dtype
            assert np.array_equal(stored[band], plane)
        assert sample.crs == "EPSG:32633"
        left, top = patch.corner
        assert sample.arrays["s1"].transform == (10, 0, left, 0, -10, top)
        assert sample.dates == {"s1": "2017-06-13T16:50:43", "s2": "2017-06-13T10:10:31"}
        assert set(sample.labels) == set(patch.labels)
        assert sample.split == patch.split
        assert sample.attributes["s1_name"] == patch.s1_name
        assert sample.level == "L2A"
        assert set(sample.arrays) <= set(source.arrays)


@pytest.mark.parametrize("name", ["v1", "reben", "reben_lmdb"])
def test_the_listing_tells_place_and_dates_before_a_raster_is_opened(name, request):
    archive = request.getfixturevalue(name)
    source = open_source(archive.source, str(archive.root))
    for pair in source.list().pairs:
        sample = source.read(pair)
        crs, x, y = sample.centre
        assert [(pair.lon, pair.lat)] == to_degrees(crs, [(x, y)])
        assert (pair.s1_date, pair.s2_date) == (sample.dates["s1"], sample.dates["s2"])


@pytest.mark.parametrize("name", ["v1", "reben"])
def test_files_are_those_that_are_read_with_their_sizes(name, request):
    archive = request.getfixturevalue(name)
    source = open_source(archive.source, str(archive.root))
    by_key = {patch.key: patch for patch in archive.patches}
    for pair in source.list().pairs:
        files = source.files(pair)
        for file in files:
            stat = (archive.root / file.path).stat()
            assert (file.size, file.version) == (stat.st_size, str(stat.st_mtime_ns))
        bands = {file.path.rpartition("_")[2].removesuffix(".tif") for file in files if file.path.endswith(".tif")}
        assert bands == set(by_key[pair.key].pixels)


def test_arrays_are_at_native_resolution_in_the_documented_order(v1):
    source = open_source(v1.source, str(v1.root))
    sample = source.read(source.list().pairs[0])
    assert {name: (a.bands, a.data.shape, a.gsd_m, a.units) for name, a in sample.arrays.items()} == {
        "s1": (("VV", "VH"), (2, 120, 120), 10, "dB"),
        "s2_10m": (BANDS_10M, (4, 120, 120), 10, "DN"),
        "s2_20m": (("B05", "B06", "B07", "B8A", "B11", "B12"), (6, 60, 60), 20, "DN"),
        "s2_60m": (("B01", "B09"), (2, 20, 20), 60, "DN"),
    }


@pytest.mark.parametrize("name", ["bigearthnet-v1", "reben"])
def test_a_folder_without_the_archive_is_wrong_usage(tmp_path, name):
    with pytest.raises(ConfigError, match=str(tmp_path)):
        open_source(name, str(tmp_path)).list()


@pytest.mark.parametrize("name", ["bigearthnet-v1", "reben"])
def test_a_missing_root_is_wrong_usage(tmp_path, name):
    with pytest.raises(ConfigError, match=r"there is no .*nowhere"):
        open_source(name, str(tmp_path / "nowhere")).list()


@pytest.mark.parametrize(("name", "other"), [("v1", "reben"), ("reben", "bigearthnet-v1")])
def test_the_other_version_is_named(name, other, request):
    archive = request.getfixturevalue(name)
    with pytest.raises(ConfigError, match=f"give it to --source {archive.source}"):
        open_source(other, str(archive.root)).list()


@pytest.mark.parametrize("name", ["bigearthnet-v1", "reben"])
def test_a_level_that_there_is_not_is_wrong_usage(tmp_path, name):
    assert open_source(name, str(tmp_path), SourceOptions(s2_level="L2A"))
    with pytest.raises(ConfigError, match=f"{name} has Sentinel-2 as L2A only, not as L1C"):
        open_source(name, str(tmp_path), SourceOptions(s2_level="L1C"))


def test_an_unknown_source_names_the_known_ones():
    with pytest.raises(ConfigError, match=", ".join(SOURCES)):
        open_source("sen12ms-cr", "/")


@pytest.mark.parametrize("name", ["v1", "reben"])
def test_a_tree_is_read_from_an_object_store_too(name, request):
    import fsspec

    archive = request.getfixturevalue(name)
    fs = fsspec.filesystem("memory")
    fs.put(str(archive.root), f"/remote-{name}", recursive=True)
    local = open_source(archive.source, str(archive.root))
    remote = open_source(archive.source, f"memory://remote-{name}")
    listings = local.list(), remote.list()
    assert listings[0].table.equals(listings[1].table)
    for pair in listings[1].pairs:
        ours, theirs = stored_bands(remote.read(pair)), stored_bands(local.read(pair))
        assert all(np.array_equal(ours[band], theirs[band]) for band in theirs)
        files = local.files(pair), remote.files(pair)
        assert [dataclasses.replace(file, version="") for file in files[0]] == [
            dataclasses.replace(file, version="") for file in files[1]
        ]
        assert all(file.version for file in files[1])
