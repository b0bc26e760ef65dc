"""Splits by the archive, by cells of the earth, and by a file."""

import json
import shutil

import numpy as np
import pytest

from sharding import inspect, verify
from sharding.manifest import parse_manifest
from sharding.shard_index import parse_index
from sharding.splits import SERIES, cells, geographic, split_of_cell
from tests.trees import smooth, write_tif
from tests.unit.sharding.conftest import run, run_build


def cell(lon, lat):
    row, column = cells(np.array([float(lon)]), np.array([float(lat)]))
    return int(row[0]), int(column[0])


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


def test_pairs_that_a_source_leaves_out_are_kept_in_a_split_of_their_own(fresh_v1, tmp_path):
    out = tmp_path / "out"
    left_out = fresh_v1.patches[3]
    (fresh_v1.root / "splits" / f"{left_out.split}.csv").unlink()
    ended = run_build(*fresh_v1.arguments, "--out", out, "--json")
    assert ended.figures["splits"] == {
        "train": {"samples": 3, "shards": 1},
        "unlisted": {"samples": 1, "shards": 1},
    }
    assert ended.figures["notes"] == [
        f"1 of 4 pairs of {fresh_v1.root} are in none of its splits: they are kept in the split unlisted, "
        "which is not trained on"
    ]
    assert keys_by_split(out)["unlisted"] == {left_out.key}
    assert (out / "shards" / "unlisted-000000.tar").exists()
    assert (out / "index" / "unlisted-000000.idx").exists()
    manifest = parse_manifest((out / "manifest.json").read_bytes(), "")
    assert manifest.splits == {"train": 3, "unlisted": 1}
    trained = np.stack([patch.pixels["VV"] for patch in fresh_v1.patches if patch is not left_out]).astype(float)
    assert manifest.statistics["train"]["VV"].count == trained.size
    assert np.isclose(manifest.statistics["train"]["VV"].mean, trained.mean())
    assert manifest.statistics["all"]["VV"].count == trained.size + left_out.pixels["VV"].size
    assert run(verify.main, out).code == 0
    told = run(inspect.main, "summary", out).out.splitlines()
    assert any(line.split()[:3] == ["unlisted", "1", "1"] for line in told)
    assert next(line for line in told if line.startswith("label")).split() == ["label", "train", "unlisted"]


def test_pairs_listed_nowhere_are_not_trained_on_even_when_no_pair_is_listed(fresh_v1, tmp_path):
    for path in (fresh_v1.root / "splits").iterdir():
        path.unlink()
    (fresh_v1.root / "splits" / "train.csv").write_text("S2A_MSIL2A_20170613T101031_88_88\n")
    ended = run_build(*fresh_v1.arguments, "--out", tmp_path / "out", "--json")
    assert ended.figures["splits"] == {"unlisted": {"samples": 4, "shards": 1}}


def test_a_source_without_any_splits_goes_to_train_and_says_so(fresh_v1, fresh_reben, tmp_path):
    shutil.rmtree(fresh_v1.root / "splits")
    ended = run_build(*fresh_v1.arguments, *fresh_reben.arguments, "--out", tmp_path / "out", "--json")
    assert ended.figures["notes"] == [f"{fresh_v1.root} has no splits, so all of its 4 pairs go to train"]
    found = keys_by_split(tmp_path / "out")
    assert found["train"] == {p.key for p in fresh_v1.patches} | {
        p.key for p in fresh_reben.patches if p.split == "train"
    }
    assert "unlisted" not in found


def test_left_over_shards_of_unlisted_pairs_are_removed(fresh_v1, tmp_path):
    out = tmp_path / "out"
    (out / ".build").mkdir(parents=True)
    (out / "shards").mkdir()
    (out / "shards" / "unlisted-000000.tar").write_bytes(b"stale")
    assert run_build(*fresh_v1.arguments, "--out", out).code == 0
    assert sorted(path.name for path in (out / "shards").iterdir()) == ["train-000000.tar", "val-000000.tar"]


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
        ("{0},unlisted\n", 1, "row 1: 'unlisted' is no split"),
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
            own = split_of_cell(*cell(float(record["lon"]), float(record["lat"])))
            assert shard.split == own or (own, shard.split) == ("train", "unlisted")


def unplaced_archive(root, change):
    """Three pairs of the folder source, whose places only their rasters tell; `change` spoils one of them."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(3):
        corner = (400_000 + 2000 * i, 5_400_000)
        for band, dtype, mean in (("VV", np.float32, -12), ("B02", np.uint16, 600)):
            place = change(corner) if (i, band) == (1, "VV") else {"corner": corner}
            field = (mean + 5 * smooth(rng, 120)).astype(dtype)
            write_tif(root / f"pair{i}" / f"{band}.tif", field, **place)
        rows.append(f"pair{i},pair{i},pair{i},VV,B02,dB,L2A")
    (root / "pairs.csv").write_text(
        "key,s1_path,s2_path,s1_bands,s2_bands,s1_units,s2_level\n" + "\n".join(rows) + "\n"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda corner: {"corner": (1e20, corner[1])}, "is no place on earth"),
        (lambda corner: {"corner": (float("nan"), corner[1])}, "is no place on earth"),
    ],
)
def test_a_pair_that_cannot_be_placed_is_refused_and_the_others_are_built(change, message, tmp_path):
    unplaced_archive(tmp_path, change)
    arguments = ["--source", "folder", "--root", tmp_path / "pairs.csv", "--splits", "geographic"]
    ended = run_build(*arguments, "--out", tmp_path / "out")
    assert ended.code == 1
    assert "1 of 3 pairs are refused (1 metadata missing or wrong), --max-bad allows 0" in ended.err
    [line] = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    assert (line["key"], line["reason"]) == ("pair1", "metadata missing or wrong")
    assert message in line["message"]
    ended = run_build(*arguments, "--out", tmp_path / "out", "--max-bad", 1, "--json")
    assert ended.code == 0, ended.err
    assert (ended.figures["pairs_found"], ended.figures["samples_built"], ended.figures["refused"]) == (3, 2, 1)
    assert set.union(*keys_by_split(tmp_path / "out").values()) == {"pair0", "pair2"}


def test_a_raster_that_cannot_be_read_is_refused_when_it_is_to_be_placed(tmp_path):
    unplaced_archive(tmp_path, lambda corner: {"corner": corner})
    (tmp_path / "pair1" / "VV.tif").write_bytes(b"II*")
    arguments = ["--source", "folder", "--root", tmp_path / "pairs.csv", "--splits", "geographic"]
    ended = run_build(*arguments, "--out", tmp_path / "out")
    assert ended.code == 1
    assert "1 of 3 pairs are refused (1 corrupt file)" in ended.err


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


def test_no_neighbour_of_a_test_patch_is_trained_on():
    """A lattice of touching patches of 1.2 km: around each of val and test lie none of train."""
    rng = np.random.default_rng(0)
    lat0, lon0 = 60.0, 20.0
    rows, columns = (axis.ravel() for axis in np.mgrid[0:120, 0:120])
    lat = lat0 + rows * 1.2 / 111.32
    lon = lon0 + columns * 1.2 / 111.32 / np.cos(np.radians(lat))
    order = rng.permutation(len(lat))
    codes = np.empty(len(lat), np.int8)
    codes[order] = geographic(lon[order], lat[order], cell_km=25.0, side_m=1200.0).codes
    grid = codes.reshape(120, 120)
    train, held_out = grid == SERIES.index("train"), np.isin(grid, (1, 2))
    assert train.sum() > 0.5 * grid.size and held_out.sum() > 0.1 * grid.size
    for north in (-1, 0, 1):
        for east in (-1, 0, 1):
            moved = np.roll(held_out, (north, east), axis=(0, 1))
            inner = (slice(1, -1), slice(1, -1))
            assert not (train & moved)[inner].any()


def test_without_the_margin_neighbours_would_be_trained_on():
    lat = np.full(400, 47.0)
    lon = 10 + np.arange(400) * 1.2 / 111.32 / np.cos(np.radians(47))
    bare = geographic(lon, lat, cell_km=25.0, side_m=0.0).codes
    held_out = np.isin(bare, (1, 2))
    assert ((bare[:-1] == 0) & held_out[1:]).any()
