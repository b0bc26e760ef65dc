"""The study of variants end to end: two tiny models, trained as a user would, read, compared, and reused."""

import json

import pytest
import yaml

from benchmarks import variants
from benchmarks.variants import REFERENCE, STATISTICS, UNTRAINED, main
from pipeline.errors import ConfigError, FusMAEError
from tests.dist.conftest import ROOT
from tests.unit.pipeline.test_evaluate import make_data_set

pytestmark = pytest.mark.dist

TINY = (
    "--quick",
    "--neighbours",
    "3",
    "--probe-epochs",
    "3",
    "model.image_size=12",
    "model.patch_size=4",
    "model.depth=2",
)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    return make_data_set(tmp_path_factory.mktemp("data") / "pairs")


@pytest.fixture(scope="module")
def kept(tmp_path_factory, url):
    """The runs of a study."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def study(url, kept, capsys, monkeypatch):
    """Runs it, from the root as a user does; returns its JSON."""
    monkeypatch.chdir(ROOT)

    def run(*more):
        assert main([url, *TINY, "--keep", str(kept), "--json", *more]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_a_quick_study_trains_reads_and_compares(study, kept, tmp_path):
    page = tmp_path / "results.md"
    page.write_text("before\n<!-- variants: begin -->\nold\n<!-- variants: end -->\nafter\n")
    found = study("--into", str(page))
    assert (found["about"]["train_samples"], found["about"]["test_samples"]) == (10, 8)
    rows = found["rows"]
    names = [STATISTICS, UNTRAINED, REFERENCE, "satvit"]
    assert [(row["given"], row["reader"], row["name"]) for row in rows] == [
        (given, reader, name) for given in ("s1", "s2", "s1+s2") for reader in ("linear", "kNN") for name in names
    ]
    for row in rows:
        for kind in ("micro", "macro"):
            assert 0 < row[kind]["value"] <= 1 and row[kind]["lowest"] == row[kind]["highest"] == row[kind]["value"]
            assert (row[kind]["differs"] is None) == (row["name"] == REFERENCE)
    settings = yaml.safe_load((kept / "satvit-seed0" / "config.yaml").read_text())
    assert [m["name"] for m in settings["model"]["modalities"]] == ["stacked"] and settings["train"]["steps"] == 4
    text = page.read_text()
    assert "| s1+s2 | kNN | satvit |" in text and "old" not in text and text.endswith("after\n")


def test_finished_runs_are_reused(study, monkeypatch):
    first = study()
    monkeypatch.setattr(variants.subprocess, "run", lambda *_, **__: pytest.fail("trained again"))
    assert study()["rows"] == first["rows"]


def test_a_kept_run_with_another_budget_is_not_mistaken_for_this_one(study, kept):
    study()
    with pytest.raises(ConfigError, match=r"no-fusion-seed0 holds a run of another kind: train.global_batch"):
        study("train.global_batch=2")
    with pytest.raises(ConfigError, match=r"holds a run with another train.steps; give another --keep"):
        study("train.steps=5")
    environment = kept / "no-fusion-seed0" / "environment.json"
    written = environment.read_text()
    environment.write_text(json.dumps(json.loads(written) | {"data_fingerprint": "other"}))
    with pytest.raises(ConfigError, match="holds a run on another data set"):
        study()
    environment.write_text(written)


def test_a_run_that_fails_is_named_with_its_error(url, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(FusMAEError, match=r"pretraining of no-fusion with seed 0 failed: .*train.micro_batch=3"):
        main([url, *TINY, "--keep", str(tmp_path / "runs"), "train.micro_batch=3"])
