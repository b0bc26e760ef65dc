"""The summary of a data set."""

import json
import shutil

import numpy as np
import pytest

from sharding import inspect, subset, summary
from sharding.sample_facts import days_apart
from tests.unit.sharding.conftest import run


def test_the_summary_counts_what_was_built(dataset, v1, reben):
    told = json.loads(run(inspect.main, "summary", dataset, "--json").out)
    patches = [*v1.patches, *reben.patches]
    assert told["samples"] == len(patches)
    assert {split: counts["samples"] for split, counts in told["splits"].items()} == {"train": 9, "val": 2, "test": 2}
    for band, figures in told["bands"].items():
        assert figures["samples"] == sum(band in patch.pixels for patch in patches)
    for split, counts in told["splits"].items():
        for label, count in counts["labels"].items():
            assert count == sum(label in patch.labels for patch in patches if patch.split == split)
    vv = np.concatenate([p.pixels["VV"].ravel() for p in patches if p.split == "train"]).astype(float)
    assert np.isclose(told["bands"]["VV"]["mean"], vv.mean())
    size = sum(path.stat().st_size for part in ("shards", "index", "metadata") for path in (dataset / part).iterdir())
    assert told["kb_per_pair"] == round(size / 1000 / len(patches), 2)


def test_the_table_has_the_same(dataset):
    ended = run(inspect.main, "summary", dataset)
    assert ended.code == 0
    assert "samples      13" in ended.out
    assert "source       reben 2.0: 6 samples, L2A" in ended.out
    assert "array        s2_20m 60x60 uint16 DN at 20 m" in ended.out
    assert any(line.startswith("train           9       1") for line in ended.out.splitlines())
    assert any(line.startswith("Coniferous forest") for line in ended.out.splitlines())


def test_the_values_of_any_split_can_be_asked_for(dataset, v1, reben):
    told = run(inspect.main, "summary", dataset, "--split", "val", "--json").figures
    vv = np.concatenate([p.pixels["VV"].ravel() for p in (*v1.patches, *reben.patches) if p.split == "val"])
    assert told["bands_over"] == "val"
    assert np.isclose(told["bands"]["VV"]["mean"], vv.astype(float).mean())
    assert "values of all splits" in run(inspect.main, "summary", dataset, "--split", "all").out
    ended = run(inspect.main, "summary", dataset, "--split", "dev")
    assert (ended.code, "there are statistics of train, val, test, all" in ended.err) == (2, True)


def test_a_subset_costs_a_pair_what_its_own_samples_take(dataset, v1, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    (tmp_path / "keys").write_text(v1.patches[0].key)
    assert run(subset.main, copy, "--name", "one", "--keys", tmp_path / "keys").code == 0
    whole = run(inspect.main, "summary", copy, "--json").figures["kb_per_pair"]
    one = run(inspect.main, "summary", f"{copy}@one", "--json").figures
    assert one["samples"] == 1
    assert one["kb_per_pair"] < 1.3 * whole


def test_pairs_of_one_moment_count_among_the_days_apart(dataset, monkeypatch):
    days = iter([0.0, 0.0, 0.0, 2.0, None, None, None, None, None, None, None, None, None])
    monkeypatch.setattr(summary, "days_apart", lambda dates: next(days))
    assert summary.summarise(str(dataset))["days_apart"] == {"samples": 4, "min": 0.0, "median": 0.0, "max": 2.0}


@pytest.mark.parametrize(
    ("s1", "s2", "days"),
    [
        ("2018-05-21", "2018-05-21", 0.0),
        ("2018-05-21T18:00:00", "2018-05-21T06:00:00Z", 0.5),
        ("2018-05-20T23:00:00", "2018-05-21", 1.0),
        ("2018-05-21", "yesterday", None),
    ],
)
def test_days_between_two_dates(s1, s2, days):
    assert days_apart({"s1": s1, "s2": s2}) == days


def test_no_data_set_is_one_sentence(tmp_path):
    ended = run(inspect.main, "summary", tmp_path)
    assert (ended.code, len(ended.err.splitlines())) == (1, 1)
    assert "holds no finished data set" in ended.err


def test_no_view_is_wrong_usage():
    assert run(inspect.main).code == 2
