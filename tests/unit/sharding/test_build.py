"""A build: what comes out, that it always comes out the same, and that nothing half-finished looks finished."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from sharding.bands import MODALITY_ARRAYS, S1_BANDS, S2_BANDS, presence_mask, present_bands
from sharding.codec import CODECS, decode_into
from sharding.manifest import parse_manifest
from sharding.shard_index import parse_index
from tests.trees import make_reben_lmdb
from tests.unit.sharding.conftest import contents, run_build
from tests.unit.sharding.members import assert_pixels, open_members


def manifest_of(folder):
    return parse_manifest((folder / "manifest.json").read_bytes(), "manifest.json")


def test_every_pixel_of_every_source_is_in_the_shards(v1, reben, reben_lmdb, tmp_path):
    out = tmp_path / "out"
    for patch in reben_lmdb.patches:
        assert patch.key in {p.key for p in reben.patches}  # the same keys: a data set of its own
    for archives in ((v1, reben), (reben_lmdb,)):
        folder = out / archives[-1].root.name
        assert run_build(*(a for archive in archives for a in archive.arguments), "--out", folder).code == 0
        groups = open_members(folder, tmp_path)
        patches = [patch for archive in archives for patch in archive.patches]
        assert set(groups) == {patch.key for patch in patches}
        for patch in patches:
            assert_pixels(groups[patch.key], patch.pixels)


def test_the_index_leads_to_every_payload(dataset, v1, reben):
    manifest = manifest_of(dataset)
    patches = {patch.key: patch for patch in (*v1.patches, *reben.patches)}
    specs = {spec.name: spec for spec in manifest.arrays}
    seen = set()
    for shard in manifest.shards:
        content = (dataset / shard.path).read_bytes()
        index = parse_index((dataset / shard.index_path).read_bytes(), shard.index_path)
        assert index.arrays == ("s1", *MODALITY_ARRAYS["s2"])
        for record in index.records:
            patch = patches[record["key"].decode()]
            seen.add(patch.key)
            assert shard.split == patch.split
            assert record["presence"] == presence_mask(list(patch.pixels))
            labels = {label for i, label in enumerate(manifest.labels) if int(record["labels"]) >> i & 1}
            assert labels == set(patch.labels)
            assert 12 < record["lon"] < 14 and 48 < record["lat"] < 49
            for name, payload in zip(index.arrays, record["arrays"], strict=True):
                bands = present_bands(int(record["presence"]), name)
                if not bands:
                    assert payload["length"] == 0
                    continue
                out = np.empty((len(bands), specs[name].height, specs[name].width), specs[name].dtype)
                stored = content[payload["offset"] : payload["offset"] + payload["length"]]
                decode_into(stored, out, CODECS[payload["codec"]])
                assert np.array_equal(out, np.stack([patch.pixels[band] for band in bands]))
    assert seen == set(patches)


def test_the_manifest_tells_what_there_is(dataset, v1, reben):
    manifest = manifest_of(dataset)
    assert manifest.splits == {"train": 9, "val": 2, "test": 2}
    assert [(s.name, s.samples, s.levels) for s in manifest.sources] == [
        ("bigearthnet-v1", 7, ("L2A",)),
        ("reben", 6, ("L2A",)),
    ]
    assert {a.name: (a.bands, a.dtype, a.height, a.gsd_m, a.units) for a in manifest.arrays} == {
        "s1": (("VV", "VH"), "float32", 120, 10, "dB"),
        "s2_10m": (("B02", "B03", "B04", "B08"), "uint16", 120, 10, "DN"),
        "s2_20m": (("B05", "B06", "B07", "B8A", "B11", "B12"), "uint16", 60, 20, "DN"),
        "s2_60m": (("B01", "B09"), "uint16", 20, 60, "DN"),
    }
    assert set(manifest.bands) == {*S1_BANDS, *S2_BANDS} - {"B10"}
    assert len(manifest.labels) == 19
    assert sorted(path.name for path in dataset.iterdir()) == [
        "bad.jsonl",
        "build.json",
        "index",
        "manifest.json",
        "metadata",
        "shards",
        "statistics-000001.json",
    ]


# In a process of its own: webdataset leaves its files to the garbage collector, which our warnings call an error.
READ_BY_WEBDATASET = """
import json, sys, webdataset
samples = webdataset.WebDataset(sys.argv[1:], shardshuffle=False, empty_check=False)
print(json.dumps({s["__key__"]: s["zarr.zip"][:2].decode() for s in samples}))
"""


def test_webdataset_itself_reads_the_shards(dataset, v1, reben):
    urls = sorted(str(path) for path in (dataset / "shards").glob("*.tar"))
    command = [sys.executable, "-c", READ_BY_WEBDATASET, *urls]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert json.loads(told) == dict.fromkeys((patch.key for patch in (*v1.patches, *reben.patches)), "PK")


def test_shards_have_fixed_times_owner_and_mode(dataset):
    import tarfile

    for path in (dataset / "shards").glob("*.tar"):
        with tarfile.open(path) as tar:
            facts = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar}
        assert facts == {(0, 0, 0, "fusmae", "fusmae", 0o444)}


@pytest.mark.dist
@pytest.mark.parametrize("codec", ["lz4", "none", "zstd"])
def test_built_twice_it_is_the_same_bytes_however_many_workers(v1, reben, codec, tmp_path):
    for out, workers in (("one", 1), ("two", 2)):
        arguments = [*v1.arguments, *reben.arguments, "--codec", codec, "--out", tmp_path / out]
        assert run_build(*arguments, workers=workers).code == 0
    one = contents(tmp_path / "one")
    assert one == contents(tmp_path / "two")
    assert len(one) == 12  # three shards, three indexes, three of metadata, statistics, manifest, list of bad pairs


def test_another_seed_shuffles_otherwise(v1, tmp_path):
    orders = []
    for seed in (0, 1):
        out = tmp_path / str(seed)
        assert run_build(*v1.arguments, "--seed", seed, "--out", out).code == 0
        orders.append(parse_index((out / "index" / "train-000000.idx").read_bytes(), "").keys)
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_shards_are_cut_by_size_and_evenly(tmp_path):
    make_reben_lmdb(tmp_path / "lmdb", 40)
    arguments = ["--source", "reben", "--root", tmp_path / "lmdb", "--codec", "none", "--shard-mib", 1]
    assert run_build(*arguments, "--out", tmp_path / "out").code == 0
    shards = manifest_of(tmp_path / "out").shards
    train = [shard for shard in shards if shard.split == "train"]
    assert [shard.path for shard in train] == [f"shards/train-{i:06d}.tar" for i in range(6)]
    assert sum(shard.samples for shard in train) == 24
    assert {shard.samples for shard in train} == {4}


def test_the_same_command_again_does_nothing(fresh_v1, tmp_path):
    out = tmp_path / "out"
    assert run_build(*fresh_v1.arguments, "--out", out).code == 0
    before = {path: path.stat().st_mtime_ns for path in (out, *out.rglob("*"))}
    ended = run_build(*fresh_v1.arguments, "--out", out)
    assert ended.code == 0
    assert ended.out == f"{out} is finished already; nothing to do\n"
    assert {path: path.stat().st_mtime_ns for path in (out, *out.rglob("*"))} == before


@pytest.mark.parametrize("change", ["settings", "files", "source"])
def test_another_finished_data_set_is_never_touched(fresh_v1, reben, change, tmp_path):
    out = tmp_path / "out"
    assert run_build(*fresh_v1.arguments, "--out", out).code == 0
    before = contents(out)
    arguments = {"settings": [*fresh_v1.arguments, "--codec", "none"], "source": reben.arguments}.get(
        change, fresh_v1.arguments
    )
    if change == "files":
        os.utime(next(fresh_v1.patches[0].s2_path.glob("*_B02.tif")))
    ended = run_build(*arguments, "--out", out, "--recheck")
    assert ended.code == 1
    message = f"{out} holds a finished data set, built from another archive or with other settings"
    if change == "files":
        message = f"files of 1 of 2 shards of {out} have another size or time than when it was built"
    assert message in ended.err
    assert contents(out) == before


def test_a_finished_data_set_is_rechecked_against_unchanged_files(fresh_v1, tmp_path):
    out = tmp_path / "out"
    assert run_build(*fresh_v1.arguments, "--out", out).code == 0
    assert "nothing to do" in run_build(*fresh_v1.arguments, "--out", out, "--recheck").out


def test_a_folder_of_somebody_else_is_never_touched(v1, tmp_path):
    (tmp_path / "out" / "shards").mkdir(parents=True)
    (tmp_path / "out" / "shards" / "train-000000.tar").write_text("mine")
    ended = run_build(*v1.arguments, "--out", tmp_path / "out")
    assert ended.code == 1
    assert "has a folder shards that no build here left" in ended.err
    assert contents(tmp_path / "out") == {"shards/train-000000.tar": b"mine"}


def test_an_output_that_is_a_file_is_wrong_usage(v1, tmp_path):
    (tmp_path / "out").write_text("")
    ended = run_build(*v1.arguments, "--out", tmp_path / "out")
    assert (ended.code, ended.err) == (
        2,
        f"error: --out {tmp_path / 'out'} is a file; give a folder that is new or empty\n",
    )


def test_identical_keys_of_two_sources_are_kept_once_from_the_first(reben, reben_lmdb, tmp_path):
    ended = run_build(*reben.arguments, *reben_lmdb.arguments, "--out", tmp_path / "out", "--json")
    assert ended.code == 0, ended.err
    assert ended.figures["duplicates"] == 5
    assert ended.figures["samples_built"] == 6
    assert ended.figures["pairs_found"] == 11
    assert any(note.startswith("5 pairs have a key that came before") for note in ended.figures["notes"])
    groups = open_members(tmp_path / "out", tmp_path)
    for patch in reben.patches:
        assert_pixels(groups[patch.key], patch.pixels)


def test_an_object_store_as_output(v1, reben, tmp_path):
    import fsspec

    assert run_build(*v1.arguments, "--out", "memory://built").code == 0
    assert run_build(*v1.arguments, "--out", tmp_path / "local").code == 0
    fs = fsspec.filesystem("memory")
    remote = {
        path[len("/built/") :]: fs.cat_file(path) for path in fs.find("/built") if not path.endswith("build.json")
    }
    assert remote == contents(tmp_path / "local")
    assert (
        run_build(*v1.arguments, "--out", "memory://built").out == "memory://built is finished already; nothing to do\n"
    )


def test_the_table_tells_pairs_in_and_samples_out(v1, tmp_path):
    out = run_build(*v1.arguments, "--out", tmp_path / "out").out
    rows = dict(line.split("  ", 1) for line in out.splitlines() if "  " in line)
    assert rows["pairs found"].strip() == "7"
    assert rows["samples built"].strip() == "7"
    assert "samples in 1 shards" in out
    assert rows["a pair"].endswith(" kB")
    assert out.splitlines()[-1] == f"finished: {tmp_path / 'out'}"


def test_build_json_tells_how(v1, tmp_path):
    assert run_build(*v1.arguments, "--out", tmp_path / "out").code == 0
    told = json.loads((tmp_path / "out" / "build.json").read_text())
    assert told["command"][:3] == ["python", "-m", "sharding.build"]
    assert told["figures"]["samples_built"] == 7
    assert {"python", "numpy", "rasterio", "webdataset"} <= set(told["versions"])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--source", "reben", "--root", "/nowhere"], 2, "error: there is no /nowhere; give --root the folder"),
        (["--source", "reben"], 2, "the following arguments are required: --root"),
        (["--source", "reben", "--root", "a", "--root", "b"], 2, "1 --source and 2 --root were given"),
        (["--source", "tiff", "--root", "a"], 2, "invalid choice: 'tiff'"),
        (["--source", "reben", "--root", "a", "--max-bad", "-1"], 2, "--max-bad is -1"),
        (["--source", "reben", "--root", "a", "--shard-mib", "0"], 2, "--shard-mib is 0"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(arguments, code, message, tmp_path):
    ended = run_build(*arguments, "--out", tmp_path / "out")
    assert ended.code == code
    assert message in ended.err
    assert not (tmp_path / "out").exists()


def test_an_empty_archive_is_failed_work(tmp_path):
    for folder in ("BigEarthNet-S1-v1.0", "BigEarthNet-v1.0"):
        (tmp_path / folder).mkdir()
    ended = run_build("--source", "bigearthnet-v1", "--root", tmp_path, "--out", tmp_path / "out")
    assert (ended.code, len(ended.err.splitlines())) == (1, 1)
    assert f"no pair of S1 and S2 was found in {tmp_path}; is it the right folder?" in ended.err
    assert not (tmp_path / "out").exists()
