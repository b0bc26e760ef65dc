"""`python -m sharding.index` on TerraMesh: what the index points to is what zarr reads, however the archive lies."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import uuid
import zipfile

import fsspec
import numcodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from zarr.core.buffer import default_buffer_prototype

from sharding import foreign_build, foreign_shard, index, inspect, subset, verify
from sharding.dataset import read_manifest
from sharding.foreign_archive import ArchiveShard
from sharding.foreign_zarr import StoredGroup
from sharding.manifest import compute_fingerprint
from sharding.sources.base import PairError
from tests.unit.sharding.conftest import ROOT, SHARED, contents, run, run_build
from tests.unit.sharding.foreign_reading import assert_planes, decode_all, lines_of, manifest_of
from tests.unit.sharding.members import open_members
from tests.unit.sharding.terramesh_archive import L1C, L2A, SIDE, make_tile, write_archive, write_tar, zipped_zarr
from tests.unit.sharding.zarr_zips import write_group

CONSTRUCTED = SHARED.parent / "layouts" / "constructed_terramesh"
SHARD = "majortom_shard_000001"
BANDS = {"S1RTC": ("VV", "VH"), "S1GRD": ("VV", "VH"), "S2L2A": L2A, "S2L1C": L1C, "DEM": ("DEM",), "NDVI": ("NDVI",)}
OFFSETS = {"a": (1000, 1000), "b": (0, 0), "c": (1000, 0), "d": (0, 1000)}
"""Radiometric offsets of level 1C and 2A by tile."""


def run_index(root, out, *arguments, source="terramesh", workers=1):
    return run(index.main, "--source", source, "--root", root, "--out", out, "--workers", workers, *arguments)


def make_tiles(names="abcd", s1="S1RTC"):
    return [
        make_tile(f"tile_{name}", seed, s1, *OFFSETS[name] if name in OFFSETS else (0, 0))
        for seed, name in enumerate(names)
    ]


def tar(root, modality, split="val", shard=SHARD):
    return root / split / modality / f"{shard}.tar"


def members_of(path):
    with tarfile.open(path) as file:
        return [(info.name, file.extractfile(info).read()) for info in file]


def rewrite(path, change):
    """The tar with its list of (name, content) changed."""
    write_tar(path, change(members_of(path)))


def zarr_planes(content, bands, name="bands"):
    """What the real zarr reads in a member."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        store = {n: default_buffer_prototype().buffer.from_bytes(file.read(n)) for n in file.namelist()}
    data = np.asarray(zarr.open_group(zarr.storage.MemoryStore(store), mode="r")[name][...])
    return dict(zip(bands, data.reshape(len(bands), *data.shape[-2:]), strict=True))


def assert_as_zarr_reads(out, root, modalities=("S1RTC", "S2L2A"), split="val", shard=SHARD):
    found = decode_all(out)
    for modality in modalities:
        for name, content in members_of(tar(root, modality, split, shard)):
            key = name.removesuffix(".zarr.zip")
            if key in found:
                assert_planes(found[key], zarr_planes(content, BANDS[modality]))
    return found


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Four tiles with all four combinations of offsets; not to be changed."""
    root = tmp_path_factory.mktemp("terramesh")
    write_archive(root, make_tiles())
    return root


@pytest.fixture
def copy(archive, tmp_path):
    """The same, to be changed."""
    return shutil.copytree(archive, tmp_path / "archive")


def test_every_payload_is_what_zarr_reads_and_carries_its_proven_offset(archive, tmp_path):
    ended = run_index(archive, tmp_path / "out", "--json")
    assert ended.code == 0, ended.err
    found = assert_as_zarr_reads(tmp_path / "out", archive)
    assert {key: planes["offset"] for key, planes in found.items()} == {
        "tile_a": -1000, "tile_b": 0, "tile_c": 0, "tile_d": -1000,
    }  # fmt: skip
    assert ended.figures["samples"] == ended.figures["statistics_from"] == 4
    assert ended.figures["refused"] == 0
    manifest = manifest_of(tmp_path / "out")
    assert [(spec.name, spec.bands, spec.dtype, spec.units) for spec in manifest.arrays] == [
        ("s1", ("VV", "VH"), "float16", "dB"), ("s2", L2A, "int16", "DN"),
    ]  # fmt: skip
    assert [part.path for part in manifest.shards[0].parts] == [f"val/S2L2A/{SHARD}.tar", f"val/S1RTC/{SHARD}.tar"]


def test_statistics_are_of_all_pixels_with_the_offset_of_each_tile(archive, tmp_path):
    run_index(archive, tmp_path / "out")
    statistics = manifest_of(tmp_path / "out").statistics["val"]
    tiles = make_tiles()
    values = {"VH": np.concatenate([tile.bands["S1RTC"][0, 1].ravel() for tile in tiles]).astype(float)}
    offsets = [OFFSETS[name][1] for name in "abcd"]
    values["B11"] = np.concatenate(
        [t.bands["S2L2A"][0, L2A.index("B11")].ravel() - float(o) for t, o in zip(tiles, offsets, strict=True)]
    )
    for band, expected in values.items():
        assert statistics[band].count == expected.size == 4 * SIDE * SIDE
        assert statistics[band].mean == pytest.approx(expected.mean(), rel=1e-9)
        assert statistics[band].std == pytest.approx(expected.std(), rel=1e-9)
        assert (statistics[band].minimum, statistics[band].maximum) == (expected.min(), expected.max())


def test_samples_come_in_the_order_of_the_tar_of_s2_and_other_orders_join(copy, tmp_path):
    order = random.Random(3)
    for modality in ("S2L2A", "S1RTC", "S2L1C"):
        rewrite(tar(copy, modality), lambda members: order.sample(members, len(members)))
    names = [name.removesuffix(".zarr.zip") for name, _ in members_of(tar(copy, "S2L2A"))]
    assert names != [name.removesuffix(".zarr.zip") for name, _ in members_of(tar(copy, "S1RTC"))]
    assert run_index(copy, tmp_path / "out").code == 0
    assert list(assert_as_zarr_reads(tmp_path / "out", copy)) == names
    assert [line["key"] for line in lines_of(tmp_path / "out")] == names


def test_keys_without_a_partner_are_left_out_counted_and_listed(copy, tmp_path):
    rewrite(tar(copy, "S1RTC"), lambda members: members[1:])
    rewrite(tar(copy, "S2L2A"), lambda members: members[:-1])
    ended = run_index(copy, tmp_path / "out", "--json")
    assert ended.code == 0, ended.err
    assert ended.figures["refused_by_reason"] == {"missing half": 2}
    assert list(assert_as_zarr_reads(tmp_path / "out", copy)) == ["tile_b", "tile_c"]
    listed = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    assert {line["key"] for line in listed} == {"tile_a", "tile_d"}


def test_riders_join_under_their_own_names_where_they_are_asked_for(copy, tmp_path):
    rewrite(tar(copy, "DEM"), lambda members: members[:-1])
    ended = run_index(copy, tmp_path / "out", "--riders", "--json")
    assert ended.code == 0, ended.err
    assert ended.figures["arrays"].keys() == {"s1", "s2", "dem", "ndvi", "lulc", "cloud_mask"}
    assert ended.figures["notes"] == ["1 tiles have no DEM"]
    found = assert_as_zarr_reads(tmp_path / "out", copy, ("S1RTC", "S2L2A", "DEM", "NDVI"))
    assert {key for key, planes in found.items() if "DEM" not in planes} == {"tile_d"}
    for name, content in members_of(tar(copy, "S2L2A")):
        mask = zarr_planes(content, ("CLOUD",), "cloud_mask")
        assert_planes(found[name.removesuffix(".zarr.zip")], mask)
    assert "DEM" not in lines_of(tmp_path / "out")[3]["bands"]
    assert manifest_of(tmp_path / "out").statistics["all"]["DEM"].count == 3 * SIDE * SIDE


def test_a_mask_that_is_stored_nowhere_is_told_and_is_no_array(tmp_path):
    tile = make_tile("tile_b", 1)
    tile.beside["S2L2A"] = {"cloud_mask": np.zeros((1, SIDE, SIDE), np.uint8)}
    write_archive(tmp_path / "archive", [tile])
    ended = run_index(tmp_path / "archive", tmp_path / "out", "--riders", "--json")
    assert ended.code == 0, ended.err
    assert "cloud_mask" not in ended.figures["arrays"]
    assert any("1 samples store no chunk of cloud_mask" in note for note in ended.figures["notes"])


def test_a_chunk_a_band_makes_an_array_a_band(tmp_path):
    """As some of the published tiles may have it; the names say which band."""
    tile = make_tile("tile_b", 1)
    write_archive(tmp_path / "archive", [tile])
    content = members_of(tar(tmp_path / "archive", "S2L2A"))[0][1]
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        beside = {n: file.read(n) for n in file.namelist() if not n.startswith(("bands/", ".zmetadata"))}
    pixels = zipped_zarr({"bands": tile.bands["S2L2A"]}, chunks=(1, 1, SIDE, SIDE))
    with zipfile.ZipFile(io.BytesIO(pixels)) as file:
        beside |= {n: file.read(n) for n in file.namelist() if n.startswith("bands/")}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, entry in beside.items():
            file.writestr(name, entry)
    write_tar(tar(tmp_path / "archive", "S2L2A"), {"tile_b.zarr.zip": buffer.getvalue()})
    assert run_index(tmp_path / "archive", tmp_path / "out").code == 0
    manifest = manifest_of(tmp_path / "out")
    assert [spec.name for spec in manifest.arrays] == ["s1", *(f"s2_{band}" for band in L2A)]
    assert_planes(decode_all(tmp_path / "out")["tile_b"], dict(zip(L2A, tile.bands["S2L2A"][0], strict=True)))


@pytest.mark.parametrize(
    "compressor",
    [None, numcodecs.Blosc("zstd", 3, 2), numcodecs.Zstd(1), numcodecs.Zlib(1), numcodecs.GZip(1)],
    ids=["none", "blosc zstd", "zstd", "zlib", "gzip"],
)
def test_every_codec_that_can_be_streamed_is_what_zarr_reads(compressor, tmp_path):
    root, tile = tmp_path / "archive", make_tile("tile_b", 1)
    write_archive(root, [tile])
    arrays = {"bands": tile.bands["S1RTC"], "center_lon": np.float64(9.8), "center_lat": np.float64(57.2)}
    content = zipped_zarr(arrays | {"crs": np.int64(32632)}, compressors=compressor)
    write_tar(tar(root, "S1RTC"), {"tile_b.zarr.zip": content})
    ended = run_index(root, tmp_path / "out")
    assert ended.code == 0, ended.err
    assert_as_zarr_reads(tmp_path / "out", root)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"filters": [numcodecs.Delta("<i2")]}, "filtered"),
        ({"compressors": numcodecs.LZ4()}, "compressed by lz4"),
        ({"order": "F"}, "column by column"),
        ({"dtype": ">i2"}, "big-endian"),
        ({"chunks": (1, 12, SIDE // 2, SIDE)}, "chunks of 20x40 of its 40x40"),
    ],
    ids=["filter", "codec", "order", "endianness", "cut in space"],
)
def test_what_cannot_be_decoded_in_place_is_refused_with_file_array_and_what_to_do(options, words, tmp_path):
    root, tile = tmp_path / "archive", make_tile("tile_b", 1)
    write_archive(root, [tile])
    pixels = tile.bands["S2L2A"].astype(options.pop("dtype", "<i2"))
    arrays = {"bands": pixels, "center_lon": np.float64(9.8), "center_lat": np.float64(57.2), "crs": np.int64(32632)}
    write_tar(tar(root, "S2L2A"), {"tile_b.zarr.zip": zipped_zarr(arrays, **options)})
    ended = run_index(root, tmp_path / "out")
    assert ended.code == 1
    for word in (words, f"val/S2L2A/{SHARD}.tar/tile_b.zarr.zip", "'bands'", "build it with sharding.build"):
        assert word in ended.err
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(("dtype", "bits"), [(np.longdouble, 128), (np.float64, 0)])
def test_numbers_of_128_bits_are_refused(tmp_path, dtype, bits):
    write_group(tmp_path / "a.zip", {"bands": np.ones((2, 8, 8), dtype)}, compressor=None)
    content = (tmp_path / "a.zip").read_bytes()
    group = StoredGroup(lambda start, count: content[start : start + count], 0, len(content), "a.zip")
    if bits:
        with pytest.raises(PairError, match="'bands' has numbers of 128 bits"):
            group.chunks("bands")
    else:
        assert group.chunks("bands")[0].length == 2 * 8 * 8 * 8


def test_a_zip_that_deflates_is_refused(copy, tmp_path):
    def deflated(members):
        changed = []
        for name, content in members:
            buffer = io.BytesIO()
            with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
                for entry in old.namelist():
                    new.writestr(entry, old.read(entry))
            changed.append((name, buffer.getvalue()))
        return changed

    rewrite(tar(copy, "S1RTC"), deflated)
    ended = run_index(copy, tmp_path / "out")
    assert ended.code == 1
    assert "deflated by the ZIP itself" in ended.err
    assert f"val/S1RTC/{SHARD}.tar/tile_a.zarr.zip" in ended.err


def test_a_tile_of_another_kind_is_refused_by_name(copy, tmp_path):
    small = make_tile("tile_d", 9)
    small.bands = {modality: data[..., :20, :20] for modality, data in small.bands.items()}
    small.beside = {m: {"cloud_mask": np.ones((1, 20, 20), np.uint8)} for m in ("S2L1C", "S2L2A")}
    for modality in small.bands:
        rewrite(tar(copy, modality), lambda members, m=modality: [*members[:3], ("tile_d.zarr.zip", small.member(m))])
    ended = run_index(copy, tmp_path / "out", "--unproven-offset", "0")
    assert ended.code == 1
    assert "tile_d is VV VH of 20x20 float16 dB, of the first samples VV VH of 40x40" in ended.err
    assert run_index(copy, tmp_path / "out", "--unproven-offset", "0", "--max-bad", "1").code == 0
    assert list(decode_all(tmp_path / "out")) == ["tile_a", "tile_b", "tile_c"]


def test_an_unproven_offset_is_refused_by_name_or_kept_as_the_user_says(copy, tmp_path):
    shutil.rmtree(copy / "val" / "S2L1C")
    ended = run_index(copy, tmp_path / "none")
    assert ended.code == 1
    assert "radiometric offset unclear" in ended.err
    assert f"val/S2L2A/{SHARD}.tar/tile_a.zarr.zip" in ended.err
    assert "--unproven-offset" in ended.err
    kept = run_index(copy, tmp_path / "kept", "--unproven-offset", "-1000", "--json")
    assert kept.code == 0, kept.err
    assert any(note.startswith("4 tiles of S2 do not prove") for note in kept.figures["notes"])
    assert {planes["offset"] for planes in decode_all(tmp_path / "kept").values()} == {-1000.0}
    assert "unproven, --unproven-offset says -1000" in lines_of(tmp_path / "kept")[0]["attributes"]["offset_evidence"]


def test_level_1c_is_indexed_where_it_is_asked_for(archive, tmp_path):
    assert run_index(archive, tmp_path / "out", "--level", "L1C").code == 0
    found = assert_as_zarr_reads(tmp_path / "out", archive, ("S1RTC", "S2L1C"))
    assert [planes["offset"] for planes in found.values()] == [-1000, 0, -1000, 0]
    assert manifest_of(tmp_path / "out").sources[0].levels == ("L1C",)


def test_what_the_tables_of_the_archive_say_comes_along(copy, tmp_path):
    rows = {"tar": [f"{SHARD}.tar"], "zarr": ["tile_b.zarr.zip"], "center_lon": [9.8], "center_lat": [57.2]}
    pq.write_table(pa.table({**rows, "cloud_cover": [12.5]}), copy / "val_metadata.parquet")
    assert run_index(copy, tmp_path / "out").code == 0
    clouds = {line["key"]: line["attributes"].get("cloud_cover") for line in lines_of(tmp_path / "out")}
    assert clouds == {"tile_a": None, "tile_b": 12.5, "tile_c": None, "tile_d": None}
    assert {(line["lon"], line["lat"], line["crs"]) for line in lines_of(tmp_path / "out")} == {
        (9.8, 57.2, "EPSG:32632")
    }


def flip(path, name, entry):
    """One bit of an entry of a member, in the tar."""
    with tarfile.open(path) as file:
        begin, size = next((info.offset_data, info.size) for info in file if info.name == name)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(io.BytesIO(content[begin : begin + size])) as file:
        at = begin + file.getinfo(entry).header_offset + 200
    content[at] ^= 1
    path.write_bytes(content)


def test_a_damaged_tile_is_named(copy, tmp_path):
    flip(tar(copy, "S2L2A"), "tile_c.zarr.zip", "bands/0.0.0.0")
    ended = run_index(copy, tmp_path / "out")
    assert ended.code == 1
    assert f"val/S2L2A/{SHARD}.tar/tile_c.zarr.zip" in ended.err
    assert "fetch" in ended.err
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("behind", [0, 200, 512, 1200], ids=["between members", "in a header", "at data", "in data"])
def test_a_tar_that_is_cut_short_is_named(copy, tmp_path, behind):
    path = tar(copy, "S1RTC")
    with tarfile.open(path) as file:
        member = file.getmembers()[2]
    os.truncate(path, member.offset + behind)
    ended = run_index(copy, tmp_path / "out")
    assert ended.code == 1
    assert f"val/S1RTC/{SHARD}.tar" in ended.err
    assert "cut" in ended.err


def test_headers_only_reads_no_pixel_and_has_the_checksums_of_the_zip(copy, tmp_path, monkeypatch):
    monkeypatch.setattr(index.os, "sched_getaffinity", lambda _: {0})
    flip(tar(copy, "S2L2A"), "tile_d.zarr.zip", "bands/0.0.0.0")  # nobody notices, for nobody looks
    options = ("--headers-only", "--statistics-from", 1, "--unproven-offset", "0")
    ended = run_index(copy, tmp_path / "out", *options, "--json")
    assert ended.code == 0, ended.err
    assert (ended.figures["samples"], ended.figures["statistics_from"]) == (4, 1)
    assert manifest_of(tmp_path / "out").statistics["val"]["VV"].count == SIDE * SIDE
    with pytest.raises(AssertionError):
        decode_all(tmp_path / "out")  # the flipped bit
    flip(tar(copy, "S2L2A"), "tile_d.zarr.zip", "bands/0.0.0.0")
    found = assert_as_zarr_reads(tmp_path / "out", copy)
    assert len(found) == 4
    places = [(line["lon"], line["lat"], line["crs"], line["dates"]) for line in lines_of(tmp_path / "out")]
    assert run_index(copy, tmp_path / "full").code == 0
    assert [(line["lon"], line["lat"], line["crs"], line["dates"]) for line in lines_of(tmp_path / "full")] == places


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--headers-only"], "--statistics-from N"),
        (["--headers-only", "--statistics-from", "5"], "--unproven-offset -1000 or 0"),
        (["--statistics-from", "5"], "goes with --headers-only"),
        (["--unproven-offset", "-500"], "can be -1000 or 0"),
        (["--array", "s1=VV,VH:dB"], "option of webdataset"),
        (["--split", "val"], "option of webdataset"),
        (["--prefix-keys"], "option of webdataset"),
        (["--max-bad", "-1"], "give 0 or more"),
        (["--workers", "0"], "give 1 or more"),
    ],
)
def test_options_that_cannot_work_or_have_no_effect_are_refused(archive, tmp_path, arguments, words):
    ended = run_index(archive, tmp_path / "out", *arguments)
    assert ended.code == 2
    assert words in ended.err
    assert not (tmp_path / "out").exists()


def test_a_root_that_is_no_such_archive_is_refused(tmp_path):
    for root, words in ((tmp_path / "none", "there is no"), (tmp_path, "has no tar")):
        ended = run_index(root, tmp_path / "out")
        assert ended.code == 2
        assert words in ended.err


def many_shards(root, count=12):
    for number in range(count):
        write_archive(root, make_tiles("abcd"[number % 4]), shard=f"majortom_shard_{number:06d}", split="train")
        for path in (root / "train").glob(f"*/majortom_shard_{number:06d}.tar"):
            rewrite(path, lambda members, n=number: [(f"{n}_{name}", content) for name, content in members])


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Twelve shards of one tile; not to be changed."""
    root = tmp_path_factory.mktemp("many")
    many_shards(root)
    return root


def test_the_same_archive_gives_the_same_bytes_whoever_indexes_it(many, tmp_path):
    assert run_index(many, tmp_path / "a").code == 0
    assert run_index(many, tmp_path / "b", workers=2).code == 0
    a, b = contents(tmp_path / "a"), contents(tmp_path / "b")
    a.pop(".build/lock"), b.pop(".build/lock")
    assert a == b
    assert list(decode_all(tmp_path / "a")) == [f"{n}_tile_{'abcd'[n % 4]}" for n in range(12)]


def test_the_same_command_again_does_no_work(many, tmp_path, monkeypatch):
    assert run_index(many, tmp_path / "out").code == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}

    def never(*_):
        raise AssertionError("an archive that has not changed is not read")

    monkeypatch.setattr("sharding.foreign_build._probe", never)
    monkeypatch.setattr("sharding.foreign_pool.index_shard", never)
    ended = run_index(many, tmp_path / "out", "--json")
    assert ended.code == 0, ended.err
    assert ended.figures["finished_before"]
    assert ended.figures["samples"] == 12
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_what_has_changed_or_is_new_is_indexed_again_and_nothing_else(many, tmp_path, monkeypatch):
    root = shutil.copytree(many, tmp_path / "archive")
    assert run_index(root, tmp_path / "out").code == 0
    fingerprint = manifest_of(tmp_path / "out").fingerprint
    done = []
    real = foreign_shard.index_shard
    monkeypatch.setattr("sharding.foreign_pool.index_shard", lambda task: done.append(task.shard.name) or real(task))
    os.utime(tar(root, "S1RTC", "train", "majortom_shard_000003"), (1, 1))
    ended = run_index(root, tmp_path / "out")
    assert "11 of 12 shards are indexed already" in ended.err
    assert done == ["train-majortom_shard_000003"]
    assert manifest_of(tmp_path / "out").fingerprint == fingerprint  # the same pixels
    done.clear()
    tar(root, "S1RTC", "train", "majortom_shard_000011").unlink()
    write_archive(root, make_tiles("b"), shard="majortom_shard_000012", split="train")
    ended = run_index(root, tmp_path / "out", "--json")
    assert ended.code == 0, ended.err
    assert ended.figures["refused_by_reason"] == {"missing half": 1}
    assert done == ["train-majortom_shard_000011", "train-majortom_shard_000012"]
    assert list(decode_all(tmp_path / "out"))[10:] == ["10_tile_c", "tile_b"]
    assert not (tmp_path / "out" / "index" / "train-majortom_shard_000011.idx").exists()


def choose(out, name, *arguments):
    assert run(subset.main, out, "--name", name, *arguments).code == 0


def test_subsets_of_an_index_go_when_what_they_point_to_has_changed(copy, tmp_path):
    out = tmp_path / "out"
    assert run_index(copy, out).code == 0
    choose(out, "few", "--where", "level=L2A")
    choose(out, "held-out", "--split", "val")
    rewrite(tar(copy, "S2L2A"), lambda members: members[1:])
    ended = run_index(copy, out, "--json")
    assert ended.code == 0, ended.err
    assert "the subsets few, held-out were of another index and are removed" in "".join(ended.figures["notes"])
    assert not [path for path in contents(out) if path.startswith(("subsets/", "versions/"))]
    assert run(verify.main, f"{out}@few").code == 1
    choose(out, "few", "--where", "level=L2A")
    assert read_manifest(f"{out}@few").parent == manifest_of(out).fingerprint
    assert run_index(copy, out, "--json").figures["notes"] == []


def test_subsets_of_an_index_stay_when_it_is_the_same_again(copy, tmp_path):
    out = tmp_path / "out"
    assert run_index(copy, out).code == 0
    choose(out, "few", "--where", "level=L2A")
    (out / "versions" / "notes.json").write_text('{"mine": true}')
    before = {path: content for path, content in contents(out).items() if path.startswith(("subsets/", "versions/"))}
    os.utime(tar(copy, "S2L2A"), (1, 1))
    ended = run_index(copy, out, "--json")
    assert ended.figures["notes"] == []
    assert not ended.figures["finished_before"]
    assert before.items() <= contents(out).items()
    assert run(verify.main, f"{out}@few").code == 0


def test_there_is_no_manifest_while_shards_that_are_gone_are_taken_out(many, tmp_path, monkeypatch):
    root = shutil.copytree(many, tmp_path / "archive")
    out = tmp_path / "out"
    assert run_index(root, out).code == 0
    choose(out, "all", "--split", "train")
    for modality in ("S1RTC", "S2L2A", "S2L1C"):
        tar(root, modality, "train", "majortom_shard_000011").unlink()

    def stopped(*_):
        assert not (out / "manifest.json").exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sharding.foreign_build._remove_strays", stopped)
        assert run_index(root, out).code == 1
    ended = run_index(root, out, "--json")
    assert ended.code == 0, ended.err
    assert ended.figures["samples"] == 11
    assert "the subsets all were of another index" in "".join(ended.figures["notes"])


def test_statistics_by_headers_only_are_of_train(many, tmp_path):
    root = shutil.copytree(many, tmp_path / "archive")
    write_archive(root, make_tiles("ab"))
    options = ("--headers-only", "--unproven-offset", "0", "--statistics-from")
    ended = run_index(root, tmp_path / "one", *options, 1, "--json")
    assert ended.code == 0, ended.err
    manifest = manifest_of(tmp_path / "one")
    assert manifest.splits == {"train": 12, "val": 2}
    assert manifest.statistics.keys() == {"train", "all"}
    assert manifest.training_statistics["VV"].count == SIDE * SIDE
    assert ended.figures["statistics_from"] == 1
    refused = run(inspect.main, "summary", tmp_path / "one", "--split", "val")
    assert refused.code == 2
    assert "there are statistics of train, all" in refused.err


def test_statistics_by_headers_only_tell_how_many_samples_they_are_of(many, tmp_path):
    """A shard of one sample gives one, whatever is asked of it."""
    options = ("--headers-only", "--unproven-offset", "0", "--statistics-from")
    ended = run_index(many, tmp_path / "out", *options, 30, "--json")
    assert ended.figures["statistics_from"] == 12


def test_statistics_of_no_sample_are_an_error(copy, tmp_path):
    flip(tar(copy, "S2L2A"), "tile_c.zarr.zip", "bands/0.0.0.0")  # the one of four that is read
    options = ("--headers-only", "--unproven-offset", "0", "--max-bad", 1, "--statistics-from")
    ended = run_index(copy, tmp_path / "out", *options, 1)
    assert ended.code == 1
    assert "raise --statistics-from" in ended.err
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert run_index(copy, tmp_path / "out", *options, 4, "--json").figures["statistics_from"] == 3


@pytest.mark.parametrize("splits", ["ttt", "tttvv", "vvttt", "vvv", "t", "ttttttt"])
@pytest.mark.parametrize("wanted", [0, 1, 2, 3, 10])
def test_every_wanted_sample_is_drawn_from_train_or_from_all_where_there_is_none(splits, wanted):
    names = {"t": "train", "v": "val"}
    shards = [ArchiveShard(name=str(number), split=names[split], parts=()) for number, split in enumerate(splits)]
    quotas = foreign_build._quotas(shards, wanted)
    assert sum(quotas) == wanted
    drawn = [quota for quota, split in zip(quotas, splits, strict=True) if split == "t" or "t" not in splits]
    assert sum(drawn) == wanted
    assert max(drawn) - min(drawn) <= 1


def test_an_index_that_was_killed_goes_on_where_it_was(many, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "sharding.index", "--source", "terramesh", "--root", many, "--out", out]
    process = subprocess.Popen([*command, "--workers", "1"], cwd=ROOT)
    markers = out / ".build"
    deadline = time.monotonic() + 60
    while not list(markers.glob("train-*.json")) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list(markers.glob("train-*.json")))
    assert 0 < done < 12
    assert not (out / "manifest.json").exists()
    ended = run_index(many, out)
    assert ended.code == 0, ended.err
    assert f"{done} of 12 shards are indexed already" in ended.err
    assert run_index(many, tmp_path / "fresh").code == 0
    ours, fresh = contents(out), contents(tmp_path / "fresh")
    ours.pop(".build/lock"), fresh.pop(".build/lock")
    assert ours == fresh


def test_an_index_of_other_settings_takes_nothing_over(archive, tmp_path):
    assert run_index(archive, tmp_path / "out").code == 0
    ended = run_index(archive, tmp_path / "out", "--level", "L1C")
    assert ended.code == 0
    assert "indexed already" not in ended.err
    assert "B10" in decode_all(tmp_path / "out")["tile_a"]


def test_an_index_may_lie_in_its_archive_and_move_with_it(copy, tmp_path):
    ended = run_index(copy, copy, "--json")
    assert ended.code == 0, ended.err
    assert ended.figures["out"] == f"{copy}/fusmae-index"
    assert manifest_of(copy / "fusmae-index").data_url == ".."
    assert not (copy / "manifest.json").exists()
    assert run_index(copy, f"{copy}/", "--json").figures["finished_before"]
    fingerprint = manifest_of(copy / "fusmae-index").fingerprint
    moved = copy.rename(tmp_path / "moved")
    assert_as_zarr_reads(moved / "fusmae-index", moved)
    assert manifest_of(moved / "fusmae-index").fingerprint == fingerprint


def test_where_an_archive_lies_is_no_part_of_the_fingerprint(archive, copy, tmp_path):
    shutil.copytree(copy, tmp_path / "c", dirs_exist_ok=True)
    assert run_index(archive, tmp_path / "a").code == run_index(tmp_path / "c", tmp_path / "b").code == 0
    a, b = manifest_of(tmp_path / "a"), manifest_of(tmp_path / "b")
    assert a.data_url != b.data_url
    assert a.fingerprint == b.fingerprint == compute_fingerprint(a)


def test_a_key_in_two_shards_is_told(copy, tmp_path):
    for modality in ("S1RTC", "S2L2A", "S2L1C"):
        shutil.copy(tar(copy, modality), tar(copy, modality, shard="majortom_shard_000002"))
    ended = run_index(copy, tmp_path / "out")
    assert ended.code == 1
    for word in ("4 keys", "tile_a", "val-majortom_shard_000001.idx", "val-majortom_shard_000002.idx"):
        assert word in ended.err


def test_a_data_set_of_another_kind_is_left_alone(archive, tmp_path, dataset):
    out = shutil.copytree(dataset, tmp_path / "out")
    before = contents(out)
    ended = run_index(archive, out)
    assert ended.code == 1
    assert "sharding.index did not make" in ended.err
    assert contents(out) == before


def test_an_archive_in_an_object_store_has_the_same_index(archive, tmp_path):
    memory = fsspec.filesystem("memory")
    url = f"memory://{uuid.uuid4().hex}"
    memory.put(f"{archive}/", url, recursive=True)
    options = ("--headers-only", "--statistics-from", "2", "--unproven-offset", "0")
    for number, arguments in enumerate(((), options)):
        out = tmp_path / f"out{number}"
        assert run_index(url, out, *arguments).code == 0
        assert run_index(archive, tmp_path / f"local{number}", *arguments).code == 0
        assert manifest_of(out).data_url == url
        assert manifest_of(out).fingerprint == manifest_of(tmp_path / f"local{number}").fingerprint
    ended = run_index(url, url, "--json")
    assert ended.code == 0, ended.err
    assert ended.figures["out"] == f"{url}/fusmae-index"
    assert run(verify.main, f"{url}/fusmae-index").code == 0


@pytest.mark.skipif(not CONSTRUCTED.exists(), reason="needs ../shared/layouts, three real tiles of TerraMesh")
def test_real_tiles_are_what_zarr_reads(tmp_path):
    ended = run_index(CONSTRUCTED, tmp_path / "out", "--riders", "--json")
    assert ended.code == 0, ended.err
    found = assert_as_zarr_reads(tmp_path / "out", CONSTRUCTED, ("S1RTC", "S2L2A", "DEM"))
    assert {key: planes["offset"] for key, planes in found.items()} == {
        "282D_485L_3_3": 0, "38D_378R_2_3": 0, "433D_629L_3_1": -1000,
    }  # fmt: skip


def test_a_tile_is_the_same_through_an_index_and_through_a_build(archive, tmp_path):
    out = tmp_path / "built"
    assert run_build("--source", "terramesh", "--root", archive, "--out", out, "--no-riders").code == 0
    assert run_index(archive, tmp_path / "out").code == 0
    indexed, lines = decode_all(tmp_path / "out"), {line["key"]: line for line in lines_of(tmp_path / "out")}
    built = open_members(out, tmp_path)
    assert built.keys() == indexed.keys()
    for key, member in built.items():
        for band, plane in member.bands.items():
            assert np.array_equal(indexed[key][band], plane)
        for name in ("crs", "level", "dates", "labels"):
            assert lines[key][name] == member.attrs[name]
    ours, theirs = manifest_of(tmp_path / "out"), manifest_of(out)
    assert ours.statistics == theirs.statistics
