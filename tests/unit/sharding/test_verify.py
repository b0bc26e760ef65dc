"""Verification finds whatever is not as it was written, names it, and goes on to find the rest."""

import json
import shutil

import pytest

from sharding import verify
from sharding.shard_index import parse_index
from tests.unit.sharding.conftest import run


@pytest.fixture
def copy(dataset, tmp_path):
    return shutil.copytree(dataset, tmp_path / "copy")


def flip(path, at, bit=2):
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def records(copy, shard):
    return parse_index((copy / "index" / f"{shard}.idx").read_bytes(), shard).records


def test_a_whole_data_set_passes(dataset):
    ended = run(verify.main, dataset)
    assert (ended.code, ended.err) == (0, "")
    assert "everything is as it was written" in ended.out
    assert "read 3 shards, 13 samples, 48 arrays" in ended.out
    told = json.loads(run(verify.main, dataset, "--json", "--workers", 2).out)
    assert (told["defects"], told["strays"], told["samples"]) == ([], [], 13)


def test_one_flipped_bit_of_any_payload_names_shard_sample_and_array(copy):
    for number, name in enumerate(("s1", "s2_10m", "s2_20m", "s2_60m")):
        record = records(copy, "train-000000")[number % 2]
        payload = record["arrays"][number]
        if not payload["length"]:
            continue
        tar = copy / "shards" / "train-000000.tar"
        at = int(payload["offset"]) + int(payload["length"]) // 2
        flip(tar, at)
        ended = run(verify.main, copy)
        assert ended.code == 1
        assert (
            f"shards/train-000000.tar, sample {record['key'].decode()}: the CRC-32C of {name} does not match"
            in ended.out
        )
        assert "shards/train-000000.tar: its SHA-256 is not the manifest's" in ended.out
        assert len(ended.err.splitlines()) == 1
        flip(tar, at)
    assert run(verify.main, copy).code == 0


@pytest.mark.parametrize("place", ["tar header", "zip header", "metadata", "padding", "last byte"])
def test_one_flipped_bit_elsewhere_is_found_too(copy, place):
    record = records(copy, "test-000000")[1]
    start, length = int(record["member_offset"]), int(record["member_length"])
    tar = copy / "shards" / "test-000000.tar"
    last = int(record["arrays"][1]["offset"] + record["arrays"][1]["length"])
    at = {
        "tar header": start - 500,
        "zip header": start + 20,
        "metadata": max(last, start + length - 1200),
        "padding": start + length + 1 if length % 512 else start + length - 1,
        "last byte": tar.stat().st_size - 1,
    }[place]
    flip(tar, at)
    ended = run(verify.main, copy)
    assert ended.code == 1
    assert "shards/test-000000.tar" in ended.out
    if place in ("zip header", "metadata"):
        assert record["key"].decode() in ended.out


@pytest.mark.parametrize("where", ["in a sample", "between samples", "in the end"])
def test_a_truncated_tar_is_named_with_the_samples_that_are_gone(copy, where):
    tar = copy / "shards" / "train-000000.tar"
    third = records(copy, "train-000000")[2]
    size = {
        "in a sample": int(third["member_offset"]) + 1000,
        "between samples": int(third["member_offset"]) - 512,
        "in the end": tar.stat().st_size - 1024,
    }[where]
    with tar.open("r+b") as file:
        file.truncate(size)
    ended = run(verify.main, copy)
    assert ended.code == 1
    assert f"shards/train-000000.tar: it has {size} bytes, the manifest says" in ended.out
    if where != "in the end":
        assert f"sample {third['key'].decode()}: it ends at byte" in ended.out


@pytest.mark.parametrize("empty", [False, True])
def test_a_missing_shard_is_named(copy, empty):
    tar = copy / "shards" / "val-000000.tar"
    tar.unlink()
    if empty:
        tar.write_bytes(b"")
    ended = run(verify.main, copy)
    assert ended.code == 1
    assert "shards/val-000000.tar: it" in ended.out


@pytest.mark.parametrize("damage", ["cut", "missing", "flipped"])
def test_a_damaged_index_is_named(copy, damage):
    index = copy / "index" / "train-000000.idx"
    content = index.read_bytes()
    if damage == "flipped":
        flip(index, 200)
    else:
        index.write_bytes(content[:-5])
    if damage == "missing":
        index.unlink()
    ended = run(verify.main, copy)
    assert ended.code == 1
    assert "defect: index/train-000000.idx: it cannot be read" in ended.out


def test_all_defects_are_listed(copy):
    (copy / "shards" / "val-000000.tar").unlink()
    flip(copy / "index" / "test-000000.idx", 300)
    victims = [records(copy, "train-000000")[i] for i in (0, 3)]
    for record in victims:
        flip(copy / "shards" / "train-000000.tar", int(record["arrays"][0]["offset"]) + 50)
    ended = run(verify.main, copy, "--json")
    defects = json.loads(ended.out)["defects"]
    assert {d["file"] for d in defects} == {"shards/val-000000.tar", "index/test-000000.idx", "shards/train-000000.tar"}
    assert {d["key"] for d in defects if d["key"]} == {record["key"].decode() for record in victims}
    assert f"has {len(defects)} defects" in ended.err


def test_a_shard_in_place_of_another_is_found(copy):
    shutil.copy(copy / "shards" / "val-000000.tar", copy / "shards" / "test-000000.tar")
    ended = run(verify.main, copy)
    assert ended.code == 1
    assert "shards/test-000000.tar: its keys are not the index's: 2 missing" in ended.out


def test_strays_are_told_and_are_no_defect(copy):
    (copy / "shards" / "train-000001.tar").write_bytes(b"")
    ended = run(verify.main, copy)
    assert ended.code == 0
    assert "shards/train-000001.tar is no part of the data set" in ended.out


@pytest.mark.parametrize("damage", ["edited", "cut", "missing"])
def test_a_damaged_manifest_is_named(copy, damage):
    path = copy / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"samples": 2', '"samples": 3') if damage == "edited" else text[:-30])
    if damage == "missing":
        path.unlink()
    ended = run(verify.main, copy)
    assert ended.code == 1
    assert len(ended.err.splitlines()) == 1
    assert "manifest.json" in ended.err


def test_nothing_there_is_one_sentence(tmp_path):
    ended = run(verify.main, tmp_path / "nowhere")
    assert ended.code == 1
    assert "nowhere holds no finished data set" in ended.err


def test_an_object_store_is_verified_too(dataset):
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.put(str(dataset), "/verified", recursive=True)
    assert run(verify.main, "memory://verified").code == 0
    content = bytearray(fs.cat_file("/verified/shards/test-000000.tar"))
    content[30_000] ^= 1
    fs.pipe_file("/verified/shards/test-000000.tar", bytes(content))
    assert run(verify.main, "memory://verified").code == 1
