"""A subset is a manifest and indexes over shards that are there: what it chooses, and what it never copies."""

import json

import pytest

from pipeline.stream.exact import Stream, StreamConfig
from sharding import subset, verify
from sharding.dataset import open_dataset, read_manifest
from sharding.existing import metadata_of
from sharding.shard_index import parse_index
from tests.unit.sharding.conftest import contents, run, run_build


@pytest.fixture
def out(v1, reben, tmp_path):
    folder = tmp_path / "set"
    assert run_build(*v1.arguments, *reben.arguments, "--out", folder).code == 0
    return folder


def keys_of(url):
    store, manifest = open_dataset(str(url))
    return {key for shard in manifest.shards for key in parse_index(store.read(shard.index_path), "").keys}


def choose(url, name, *arguments):
    return run(subset.main, url, "--name", name, *arguments)


def test_by_split(out, v1, reben):
    assert choose(out, "held-out", "--split", "val", "--split", "test").code == 0
    assert keys_of(f"{out}@held-out") == {p.key for p in (*v1.patches, *reben.patches) if p.split != "train"}


def test_by_label(out, v1, reben):
    assert choose(out, "water", "--label", "Inland waters", "--label", "Pastures").code == 0
    expected = {p.key for p in (*v1.patches, *reben.patches) if {"Inland waters", "Pastures"} & set(p.labels)}
    assert keys_of(f"{out}@water") == expected
    counts = read_manifest(f"{out}@water").label_counts
    assert sum(c.get("Pastures", 0) for c in counts.values()) == sum(
        "Pastures" in p.labels for p in (*v1.patches, *reben.patches)
    )


def test_by_attributes_and_dates(out, reben):
    assert choose(out, "austria", "--where", "country=Austria", "--where", "source=reben").code == 0
    assert keys_of(f"{out}@austria") == {p.key for p in reben.patches}
    assert choose(out, "snow", "--where", "contains_seasonal_snow=true").code == 0
    assert keys_of(f"{out}@snow") == {reben.patches[-1].key}
    assert choose(out, "late", "--where", "s2_date>2017-06-13T10", "--where", "source=reben").code == 0
    assert keys_of(f"{out}@late") == {p.key for p in reben.patches}


def test_by_a_file_of_keys(out, v1, tmp_path):
    wanted = sorted(p.key for p in v1.patches[:3])
    (tmp_path / "keys.txt").write_text("\n".join([*wanted, "unknown"]) + "\n")
    assert choose(out, "mine", "--keys", tmp_path / "keys.txt").code == 0
    assert sorted(keys_of(f"{out}@mine")) == wanted


def test_no_shard_is_written_and_all_is_verified(out):
    before = contents(out)
    ended = choose(out, "training", "--split", "train", "--json")
    assert ended.figures["samples"] == 9 and ended.figures["of"] == 13
    now = contents(out)
    assert {name: now[name] for name in before} == before
    assert all(name.startswith(("subsets/training/", "versions/training.json")) for name in now.keys() - before.keys())
    told = json.loads(run(verify.main, f"{out}@training", "--json").out)
    assert (told["defects"], told["strays"], told["samples"]) == ([], [], 9)


def test_the_metadata_follow_the_index(out):
    assert choose(out, "pastures", "--label", "Pastures").code == 0
    store, manifest = open_dataset(f"{out}@pastures")
    for spec, lines in metadata_of(store, manifest):
        assert [line["key"] for line in lines] == parse_index(store.read(spec.index_path), "").keys
        assert all("Pastures" in line["labels"] for line in lines)


def test_it_is_streamed_like_a_data_set_of_its_own(out, reben):
    assert choose(out, "reben", "--where", "source=reben", "--split", "train").code == 0
    wanted = {p.key for p in reben.patches if p.split == "train"}
    with Stream(StreamConfig(url=f"{out}@reben", global_batch=len(wanted), threads=1)) as stream:
        batch = next(iter(stream))
        assert set(batch.keys) == wanted
    assert stream.manifest.fingerprint != read_manifest(str(out)).fingerprint


def test_the_same_subset_again_is_left_and_another_of_the_name_refused(out):
    assert choose(out, "mine", "--split", "train").code == 0
    before = contents(out)
    assert choose(out, "mine", "--split", "train").code == 0
    assert contents(out) == before
    ended = choose(out, "mine", "--split", "val")
    assert ended.code == 1
    assert f"{out} has another subset mine" in ended.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "nothing was chosen by"),
        (["--where", "contry=Austria"], 2, "no sample has 'contry'"),
        (["--where", "country"], 2, "write NAME=VALUE"),
        (["--label", "Lava"], 2, "the data set has no label 'Lava'; it has Urban fabric, "),
        (["--split", "dev"], 2, "--split is 'dev'; there are train, val, test, unlisted"),
        (["--where", "country=Atlantis"], 1, "no sample of"),
        (["--keys", "/nowhere"], 2, "--keys /nowhere cannot be read"),
    ],
)
def test_choices_that_cannot_be_made(out, arguments, code, message):
    ended = choose(out, "mine", *arguments)
    assert ended.code == code
    assert message in ended.err
    assert not (out / "versions").exists()


@pytest.mark.parametrize("name", ["1", "a/b", "", "ä", "-x"])
def test_names_that_a_subset_cannot_have(out, name):
    ended = run(subset.main, out, f"--name={name}", "--split", "train")
    assert ended.code == 2
    assert "cannot be called" in ended.err


def test_a_subset_of_a_subset_is_refused(out):
    assert choose(out, "one", "--split", "train").code == 0
    ended = choose(f"{out}@one", "two", "--label", "Pastures")
    assert ended.code == 2
    assert "is a subset itself" in ended.err
