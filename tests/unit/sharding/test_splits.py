"""Splits by the archive, by cells of the earth, and by a file."""

import numpy as np
import pytest

from sharding.index import parse_index
from sharding.manifest import parse_manifest
from sharding.splits import cell, split_of_cell
from tests.unit.sharding.conftest import run_build


def keys_by_split(out):
    manifest = parse_manifest((out / "manifest.json").read_bytes(), "")
    keys = {}
    for shard in manifest.shards:
        keys.setdefault(shard.split, set()).update(parse_index((out / shard.index_path).read_bytes(), "").keys)
    return keys


def test_official_splits_are_kept(v1, reben, dataset):
    expected = {}
    for patch in (*v1.patches, *reben.patches):
        expected.setdefault(patch.split, set()).add(patch.key)
    assert keys_by_split(dataset) == expected


def test_a_file_of_splits(v1, tmp_path):
    names = {"train": "training", "val": "Validation", "test": "test"}
    order = [list(names)[i % 3] for i in range(7)]
    rows = [f"{patch.key},{names[split]}" for patch, split in zip(v1.patches, order, strict=True)]
    (tmp_path / "splits.csv").write_text("key,split\n" + "\n".join(rows) + "\n")
    assert run_build(*v1.arguments, "--splits", tmp_path / "splits.csv", "--out", tmp_path / "out").code == 0
    expected = {split: {p.key for p, s in zip(v1.patches, order, strict=True) if s == split} for split in names}
    assert keys_by_split(tmp_path / "out") == expected


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("{0},train\n", 1, "has no row for 6 of 7 keys ("),
        ("{0},holdout\n", 1, "row 1: 'holdout' is no split"),
        ("{0}\n", 1, "is not key,split"),
        ("{0},\n", 1, "has no split; write train, val or test"),
        ("{0},train\n{0},test\n", 1, "row 2: '{0}' is in split train already"),
    ],
)
def test_a_file_of_splits_that_cannot_be_used(v1, text, code, message, tmp_path):
    key = v1.patches[0].key
    (tmp_path / "splits.csv").write_text(text.format(key))
    ended = run_build(*v1.arguments, "--splits", tmp_path / "splits.csv", "--out", tmp_path / "out")
    assert ended.code == code
    assert message.format(key) in ended.err
    assert str(tmp_path / "splits.csv") in ended.err


def test_a_rule_that_is_no_file_is_wrong_usage(v1, tmp_path):
    ended = run_build(*v1.arguments, "--splits", "ofical", "--out", tmp_path / "out")
    assert ended.code == 2
    assert "there is no ofical; give --splits official, geographic, or a CSV of key,split" in ended.err


def test_geographic_splits_follow_the_cells(v1, reben_lmdb, tmp_path):
    arguments = [*v1.arguments, *reben_lmdb.arguments, "--splits", "geographic", "--out", tmp_path / "out"]
    assert run_build(*arguments).code == 0
    manifest = parse_manifest((tmp_path / "out" / "manifest.json").read_bytes(), "")
    for shard in manifest.shards:
        for record in parse_index((tmp_path / "out" / shard.index_path).read_bytes(), "").records:
            assert split_of_cell(*cell(float(record["lon"]), float(record["lat"]))) == shard.split


@pytest.mark.parametrize("lat", [-75, -33, 0, 47, 65])
def test_cells_are_about_25_km_wide_and_high_everywhere(lat):
    along = np.linspace(0, 10, 20_000, endpoint=False)
    columns = len({cell(float(lon), lat)[1] for lon in along})
    rows = len({cell(12, lat - float(step))[0] for step in along})
    assert 22 < 10 * 111.32 * np.cos(np.radians(lat)) / columns < 26
    assert 24 < 10 * 111.32 / rows < 26


def test_the_last_column_meets_the_first():
    row, last = cell(179.9999, 47)
    assert cell(-179.9999, 47) == (row, 0)
    assert cell(180.0, 47) == (row, 0)
    assert last == max(cell(float(lon), 47)[1] for lon in np.linspace(-180, 179.99, 5000))


def test_shares_of_cells_are_80_10_10():
    splits = [split_of_cell(row, column) for row in range(200) for column in range(200)]
    shares = [splits.count(split) / len(splits) for split in ("train", "val", "test")]
    assert np.allclose(shares, [0.8, 0.1, 0.1], atol=0.01)
