"""The paper's tables: published figures beside ours."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.command import exit_code
from pipeline.paper import main, read_table
from tests.unit.pipeline.test_evaluate import make_data_set, make_run

TABLE = """
title: A small table
figures: [micro, macro, seventh]
scale: 100
parts:
  - title: neighbours
    evaluation: knn
    settings: [knn.neighbours=9]
    published: {ours: {s1: 50.5, s1+s2: [60.0, 61.0], s3: 1.0}, other: {s2: 40.0}}
  - title: what nobody knows
    evaluation: divination
    settings: []
    published: {ours: {s1: 99.0}}
  - title: with a setting that is not there
    evaluation: knn
    settings: [knn.telepathy=1]
    published: {}
rows:
  ours: {title: Our model}
  other: {title: Another, baseline: croma_base}
differences: [everything]
"""


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(TABLE)
    return str(path)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path, make_data_set(tmp_path / "pairs"))


def test_rows_with_a_run_are_run_and_others_are_said_to_be_not_run(table: str, run: Path, capsys: Any) -> None:
    assert main([table, "knn.neighbours=3", "--json", "--runs", f"ours={run}"]) == 0
    told = json.loads(capsys.readouterr().out)
    stored = json.loads((run / "evaluation" / "knn.json").read_text())
    assert stored["settings"]["neighbours"] == 3  # what is asked for wins over the protocol
    lines = {(line["row"], line["input"]): line for line in told["parts"][0]["lines"]}
    assert [*lines] == [("ours", "s3"), ("ours", "s1"), ("ours", "s2"), ("ours", "s1+s2"), ("other", "s2")]
    first, both = lines["ours", "s1"], lines["ours", "s1+s2"]
    expected = next(row for row in stored["results"] if row["modalities"] == "s1")["encoder"]
    assert first["ours"] == {"micro": expected["micro"] * 100, "macro": expected["macro"] * 100, "seventh": None}
    assert first["published"] == [50.5] and both["published"] == [60.0, 61.0]
    assert lines["ours", "s2"]["published"] is None
    assert (first["num_train"], first["num_test"]) == (10, 8)
    assert lines["other", "s2"]["ours"] == {} and lines["ours", "s3"]["ours"] == {}


def test_a_protocol_that_is_not_known_is_said_so(table: str, run: Path, capsys: Any) -> None:
    assert main([table, "--runs", f"ours={run}"]) == 0
    told = capsys.readouterr().out
    assert "not run: pipeline.evaluate knows no 'divination'; it has linear, knn" in told
    assert "not run: pipeline.evaluate knn does not know knn.telepathy=1" in told
    assert "- everything" in told
    lines = [line.split() for line in told.splitlines()]
    assert ["Another", "s2", "40.0", "|", "not", "run"] in lines


def test_a_name_that_is_no_row_is_one_more_and_data_are_given(
    table: str, run: Path, tmp_path: Path, capsys: Any
) -> None:
    other = make_data_set(tmp_path / "others")
    given = [table, f"baseline.out={tmp_path / 'out'}", "--data", other, "--json"]
    assert main([*given, "--runs", "floor=baseline:band_statistics"]) == 0
    lines = json.loads(capsys.readouterr().out)["parts"][0]["lines"]
    assert [line["input"] for line in lines if line["row"] == "floor"] == ["s1", "s2", "s1+s2"]
    assert json.loads((tmp_path / "out" / "knn.json").read_text())["data_url"] == other


def test_a_file_of_weights_goes_to_the_rows_baseline(table: str, run: Path, tmp_path: Path, capsys: Any) -> None:
    del run
    (tmp_path / "croma.pt").write_bytes(b"no weights")
    given = [table, "--data", str(tmp_path / "pairs"), "--runs", f"other={tmp_path / 'croma.pt'}"]
    assert exit_code(main, given) == 2
    assert f"{tmp_path / 'croma.pt'} is no file of weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["table9"], "known are table1, table2"),
        (["table1", "--runs", "imagenet"], "write name=RUN_DIR, such as imagenet=runs/first"),
        (["table1", "--runs", "a=x", "a=y"], "names 'a' twice"),
        (["table1", "--runs", "a=x", "probe.epochs=2"], "write settings of evaluations before --runs"),
    ],
)
def test_wrong_usage_says_what_to_write(given: list[str], said: str, capsys: Any) -> None:
    assert exit_code(main, given) == 2
    assert said in capsys.readouterr().err


def test_the_figures_are_the_papers() -> None:
    """Chan-To-Hing and Veeravalli, "Fus-MAE" (IGARSS 2024), tables 1 and 2, rows that the text discusses."""
    finetuned, linear = read_table("table1").parts
    assert finetuned.published["fusmae_xae"] == {"s1": 75.9, "s2": 87.6, "s1+s2": 88.1}
    assert linear.published["fusmae_xad"] == {"s1": 64.8, "s2": 71.8, "s1+s2": 72.2}
    assert linear.settings == ("probe.labels=0.01", "probe.epochs=20", "probe.batch_size=128")
    (classes,) = read_table("table2").parts
    assert classes.published["fusmae_xae"] == {"one sensor": (60.6, 94.3, 71.5, 60.6, 61.0)}
    for name in ("table1", "table2"):
        table = read_table(name)
        assert all(part.published.keys() == table.rows.keys() for part in table.parts)


def test_nothing_is_run_without_runs(capsys: Any) -> None:
    assert main(["table1"]) == 0
    told = capsys.readouterr().out
    assert told.count("not run") >= 30 and "88.1" in told
