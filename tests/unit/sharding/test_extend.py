"""A data set grows by new shards under a new version; what was there is not touched, and stays readable."""

import json

import numpy as np
import pytest

from sharding import extend, subset, verify
from sharding.dataset import open_dataset, read_manifest
from sharding.shard_index import parse_index
from tests.trees import make_reben
from tests.unit.sharding.conftest import Archive, contents, run, run_build
from tests.unit.sharding.members import assert_pixels, open_members


def run_extend(url, *arguments):
    return run(extend.main, url, *arguments, "--workers", 1)


def keys_of(url):
    store, manifest = open_dataset(str(url))
    return {key for shard in manifest.shards for key in parse_index(store.read(shard.index_path), "").keys}


@pytest.fixture
def grown(v1, reben, tmp_path):
    """A data set of v1 that reben was added to, and the bytes that it had before."""
    out = tmp_path / "set"
    assert run_build(*v1.arguments, "--out", out).code == 0
    before = contents(out)
    ended = run_extend(out, *reben.arguments, "--json")
    assert ended.code == 0, ended.err
    return out, before, ended.figures


def test_new_samples_lie_in_new_shards_and_nothing_else_changes(grown, v1, reben, tmp_path):
    out, before, figures = grown
    now = contents(out)
    assert {name for name in before if now.get(name) != before[name]} == {"manifest.json"}
    assert figures["version"] == 2
    assert figures["pairs_found"] == 6
    groups = open_members(out, tmp_path)
    for patch in (*v1.patches, *reben.patches):
        assert_pixels(groups[patch.key], patch.pixels)
    assert run(verify.main, out).code == 0


def test_the_version_before_stays_readable(grown, v1, reben):
    out, before, _ = grown
    assert keys_of(f"{out}@1") == {patch.key for patch in v1.patches}
    assert keys_of(out) == keys_of(f"{out}@2") == {patch.key for patch in (*v1.patches, *reben.patches)}
    old, new = read_manifest(f"{out}@1"), read_manifest(str(out))
    assert (out / "versions" / "000001.json").read_bytes() == before["manifest.json"]
    assert (new.version, new.parent) == (2, old.fingerprint)
    assert new.fingerprint != old.fingerprint
    assert run(verify.main, f"{out}@1").code == 0


def test_statistics_are_those_of_all_samples(grown, v1, reben):
    statistics = read_manifest(str(grown[0])).statistics["train"]
    for band in ("VV", "B02"):
        planes = [p.pixels[band] for p in (*v1.patches, *reben.patches) if p.split == "train"]
        values = np.stack(planes).astype(np.float64)
        assert statistics[band].count == values.size
        assert np.isclose(statistics[band].mean, values.mean(), rtol=1e-10)
        assert np.isclose(statistics[band].std, values.std(), rtol=1e-10)


def test_the_same_again_does_nothing(grown, reben):
    out, _, _ = grown
    before = contents(out)
    ended = run_extend(out, *reben.arguments)
    assert ended.code == 0
    assert "6 pairs are in the data set already" in ended.out
    assert "nothing to do" in ended.out
    assert contents(out) == before


def test_a_killed_extension_leaves_the_version_before(v1, reben, tmp_path, monkeypatch):
    out = tmp_path / "set"
    assert run_build(*v1.arguments, "--out", out).code == 0
    before = read_manifest(str(out)).fingerprint
    with monkeypatch.context() as patched:
        patched.setattr("sharding.commit.write_statistics", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run_extend(out, *reben.arguments).code == 1
    assert read_manifest(str(out)).fingerprint == before
    ended = run_extend(out, *reben.arguments)
    assert ended.code == 0
    assert "shards are built already" in ended.err
    assert run(verify.main, out).code == 0


def test_a_patch_of_another_archive_at_the_same_place_and_day_is_left_out(reben, tmp_path):
    out = tmp_path / "set"
    assert run_build(*reben.arguments, "--out", out).code == 0
    again = make_reben(tmp_path / "again", 8)
    rows = [
        f"other/{p.key},{p.s1_path},{p.s2_path},'VV,VH','B02,B03,B04,B08',dB,L2A,2017-06-13".replace("'", '"')
        for p in again
    ]
    header = "key,s1_path,s2_path,s1_bands,s2_bands,s1_units,s2_level,s2_date\n"
    (tmp_path / "pairs.csv").write_text(header + "\n".join(rows) + "\n")
    ended = run_extend(out, "--source", "folder", "--root", tmp_path / "pairs.csv", "--json")
    assert ended.code == 0, ended.err
    assert ended.figures["duplicates"] == 6
    assert keys_of(out) == {p.key for p in reben.patches} | {f"other/{p.key}" for p in again[6:]}


def test_samples_unlike_the_data_set_are_refused(reben, tmp_path):
    from tests.trees import smooth, write_tif

    out = tmp_path / "set"
    assert run_build(*reben.arguments, "--out", out).code == 0
    rng = np.random.default_rng(0)
    for band, dtype, mean in (("VV", np.float32, -12), ("VH", np.float32, -19), ("B02", np.uint16, 600)):
        field = (mean + 5 * smooth(rng, 64)).astype(dtype)
        write_tif(tmp_path / "small" / f"{band}.tif", field, (400_000, 5_000_000))
    row = 'a,small,small,"VV,VH",B02,dB,L2A\n'
    (tmp_path / "pairs.csv").write_text("key,s1_path,s2_path,s1_bands,s2_bands,s1_units,s2_level\n" + row)
    ended = run_extend(out, "--source", "folder", "--root", tmp_path / "pairs.csv")
    assert ended.code == 1
    assert "1 unlike the data set" in ended.err
    assert "s1 of a is 64x64 float32 dB at 10 m, of the data set 120x120 float32 dB at 10 m" in ended.err
    assert read_manifest(str(out)).version == 1


@pytest.mark.parametrize(
    ("url", "code", "message"),
    [
        ("{out}@1", 2, "is a version or a subset; only the newest version can be extended"),
        ("{out}/nothing", 1, "holds no finished data set"),
    ],
)
def test_what_cannot_be_extended(grown, reben, url, code, message):
    ended = run_extend(url.format(out=grown[0]), *reben.arguments)
    assert ended.code == code
    assert message in ended.err


def test_a_version_that_is_not_there_names_those_that_are(grown):
    assert run(subset.main, grown[0], "--name", "even", "--split", "val").code == 0
    ended = run(verify.main, f"{grown[0]}@7")
    assert ended.code == 1
    assert "has no version or subset '7'; it has 1, 2, even" in ended.err


def test_an_archive_of_another_shape_of_folder_is_wrong_usage(grown, tmp_path):
    ended = run_extend(grown[0], "--source", "reben", "--root", tmp_path / "nowhere")
    assert ended.code == 2


def test_build_json_of_each_version_is_kept(grown):
    out, _, _ = grown
    first = json.loads((out / "versions" / "000001-build.json").read_text())
    second = json.loads((out / "build.json").read_text())
    assert first["figures"]["samples_built"] == 7
    assert second["command"][2] == "sharding.extend"


def test_memory_stores_can_be_extended(v1, reben):
    assert run_build(*v1.arguments, "--out", "memory://grown").code == 0
    assert run_extend("memory://grown", *reben.arguments).code == 0
    assert len(keys_of("memory://grown")) == 13
    archive = Archive("reben", reben.root, reben.patches)
    assert "nothing to do" in run_extend("memory://grown", *archive.arguments).out
