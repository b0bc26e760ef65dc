"""Several runs on one page: what differs, and whether their losses can be compared at all."""

import json
import re
from pathlib import Path

import pytest

from pipeline.command import exit_code
from pipeline.errors import ConfigError
from pipeline.report import write_comparison
from pipeline.report.command import main
from pipeline.report.comparison import short_names
from tests.unit.pipeline.report_runs import add_evaluations, add_probes, add_times, make_run, time_line, write_times

NOT_COMPARABLE = "Their losses are not comparable."


@pytest.fixture
def runs(tmp_path):
    """Two runs on the same data, which differ in nothing but their folders."""
    made = []
    for name in ("first", "second"):
        run = make_run(tmp_path / name)
        config = (run / "config.yaml").read_text().replace(f"{tmp_path}/{name}/dataset", "s3://bucket/set")
        (run / "config.yaml").write_text(config)
        about = json.loads((run / "environment.json").read_text())
        (run / "environment.json").write_text(json.dumps(about | {"data_fingerprint": "ab" * 32}))
        made.append(run)
    return made


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def compared(runs: list[Path]) -> str:
    return write_comparison(runs, runs[0].parent.parent / "page.html").read_text()


def section(html: str, title: str) -> str:
    return re.search(rf"<h2>{title}</h2>(.*?)(?:<h2>|$)", html, re.DOTALL)[1]


def test_runs_that_differ_in_nothing_are_said_to_be_comparable(runs):
    html = compared(runs)
    assert NOT_COMPARABLE not in html and "All were trained on the same data" in html
    assert "None but <code>run.dir</code>" in section(html, "Settings that differ")


def test_only_the_settings_that_differ_are_in_the_table(runs):
    change(runs[1] / "config.yaml", "steps: 120", "steps: 120, seed: 7")
    html = compared(runs)
    keys = re.findall(r'<code class="whole">(.*?)</code>', section(html, "Settings that differ"))
    assert keys == ["train.seed"]
    assert re.search(r"train\.seed.*?<td>0</td><td>7</td>", html)
    assert NOT_COMPARABLE not in html


def test_a_setting_that_one_run_alone_has_is_a_difference(runs):
    change(runs[1] / "config.yaml", "decoder_fusion: xad", "decoder_fusion: xad, width: 96")
    assert re.search(r"model\.width.*?<td>–</td><td>96</td>", compared(runs))  # noqa: RUF001 - a dash in a table


def test_other_data_are_warned_of(runs):
    change(runs[1] / "environment.json", "ab" * 32, "cd" * 32)
    html = compared(runs)
    assert "not trained on the same data" in html and NOT_COMPARABLE in html
    assert "ab" * 8 in html and "cd" * 8 in html


def test_unknown_data_are_warned_of(runs):
    (runs[1] / "environment.json").unlink()
    html = compared(runs)
    assert "Of second/run it is not known what data" in html and NOT_COMPARABLE in html


@pytest.mark.parametrize("setting", ["mask_ratio: 0.5", "masking: union", "target_norm: per_patch", "cross_scale: {}"])
def test_other_masks_or_targets_are_warned_of(runs, setting):
    change(runs[1] / "config.yaml", "decoder_fusion: xad", f"decoder_fusion: xad, {setting}")
    html = compared(runs)
    assert f"they differ in model.{setting.partition(':')[0]}" in html and NOT_COMPARABLE in html


def test_curves_bars_and_scores_of_all_runs_stand_beside_each_other(runs):
    for run in runs:
        add_evaluations(run)
        add_probes(run)
    add_times(runs[0])
    write_times(runs[1], time_line("a", 70, 120, 72.5, data=2.0, forward=60.0, augment=1.0))
    html = compared(runs)
    for panel in ("total loss", "S1 loss", "S2 loss"):
        assert panel in section(html, "Loss")
    for panel in ("kNN macro mAP", "ridge micro mAP"):
        assert panel in section(html, "Online probe")
    time = section(html, "Wall time")
    assert time.count('<div class="stack"') == 2
    assert '<div style="width: 100.0%">' in time and '<div style="width: 50.0%">' in time
    assert "augment" in time and "<strong>145.0</strong>" in time and "<strong>72.5</strong>" in time
    evaluations = section(html, "Evaluations")
    assert evaluations.count("<td>first/run</td>") == evaluations.count("<td>second/run</td>") == 4
    assert "scores are not comparable" not in evaluations


def test_scores_on_other_data_are_told(runs):
    for number, run in enumerate(runs):
        add_evaluations(run)
        path = run / "evaluation" / "linear.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"data_fingerprint": str(number)}))
    assert "scores are not comparable" in compared(runs)


def test_curves_of_other_batch_sizes_are_over_samples(runs):
    assert "optimiser step" in section(compared(runs), "Loss")
    change(runs[1] / "config.yaml", "steps: 120", "steps: 120, global_batch: 16")
    assert "samples seen" in section(compared(runs), "Loss")


def test_runs_that_have_only_begun_can_be_compared(runs):
    for run in runs:
        for name in ("metrics.jsonl", "environment.json", "events-rank00000.jsonl"):
            (run / name).unlink()
    html = compared(runs)
    assert "None of the runs has logged anything yet" in html and "None of the runs was evaluated" in html


def test_the_page_is_one_file_that_asks_the_network_for_nothing(runs):
    for run in runs:
        add_times(run)
        add_probes(run)
    html = compared(runs)
    assert "#0102" not in html and not re.search(r"<script|<link|<iframe|@import|<img", html)
    links = re.findall(r"""(?:src|href|url|action)\s*[=(]\s*["']?([^"')>\s]+)""", html)
    assert links and all(link.startswith("#") for link in links)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/a", "runs/b"], ["a", "b"]),
        (["x/run", "y/run"], ["x/run", "y/run"]),
        (["x/1/run", "x/2/run", "x/2/other"], ["1/run", "2/run", "2/other"]),
        (["x/run", "x/run/run"], ["x/run", "run/run"]),
    ],
)
def test_a_run_is_called_by_the_shortest_end_of_its_path(tmp_path, paths, names):
    assert short_names([tmp_path / path for path in paths]) == names


def test_a_run_given_twice_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="given twice"):
        short_names([tmp_path / "a", tmp_path / "b" / ".." / "a"])


def test_a_comparison_must_be_told_where_to_go(runs, capsys):
    assert exit_code(main, [str(run) for run in runs]) == 2
    assert "--out FILE" in capsys.readouterr().err
    out = runs[0].parent / "both.html"
    assert main([*map(str, runs), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"report: {out}\n" and out.exists()


def test_json_of_several_runs_is_a_line_for_each(runs, capsys):
    add_times(runs[1])
    assert main([*map(str, runs), "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["run"] for line in told] == [str(run) for run in runs]
    assert [line["wall_time"] is None for line in told] == [True, False]


def test_json_and_a_page_at_once_are_wrong_usage(runs, capsys):
    with pytest.raises(SystemExit) as ended:
        main([str(runs[0]), "--json", "--out", "page.html"])
    assert ended.value.code == 2
    assert "not allowed with" in capsys.readouterr().err
