"""The report: whole and self-contained with everything there, and useful with pieces missing."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.command import exit_code
from pipeline.errors import DataError
from pipeline.report import loss_fall, read_events, write_report
from pipeline.report.command import main
from pipeline.report.pictures import evenly
from pipeline.report.probe_curve import probe_curves
from tests.unit.pipeline.report_runs import add_evaluations, add_probes, add_reconstructions, make_events, make_run


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path)


def test_a_whole_report_is_one_file_that_asks_the_network_for_nothing(run):
    add_evaluations(run)
    html = write_report(run).read_text()
    assert (run / "report.html").exists()
    links = re.findall(r"""(?:src|href|url|action)\s*[=(]\s*["']?([^"')>\s]+)""", html)
    assert links, "the pattern finds the pictures at least"
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"<script|<link|<iframe|@import", html)
    assert "To make it:" not in html
    for expected in ("Pastures &lt;&amp;&gt;", "VV", "B12", "without a word", "pair_b", "0.610", "2.35 M", "64.4 G"):
        assert expected in html, expected


def test_knn_stands_beside_the_probe_when_it_was_run(run):
    add_evaluations(run)
    assert "<h2>kNN</h2>" not in write_report(run).read_text()
    folder = run / "evaluation"
    result = json.loads((folder / "linear.json").read_text()) | {"settings": {"neighbours": 20}}
    for row in result["results"]:
        row["encoder"] = {"micro": 0.777, "macro": 0.666, "per_class": {}}
    (folder / "knn.json").write_text(json.dumps(result))
    html = write_report(run).read_text()
    assert "<h2>kNN</h2>" in html and "by the labels of the 20 nearest of 20 samples of split" in html
    assert html.count("<strong>0.777</strong>") == 3 and "trained on 20 samples of split" in html


def test_figures_follow_the_page_between_light_and_dark(run):
    html = write_report(run).read_text()
    assert "#0102" not in html
    assert "var(--ink)" in html and "prefers-color-scheme: dark" in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("metrics.jsonl", "python -m pipeline.pretrain"),
        ("evaluation/linear.json", "python -m pipeline.evaluate linear"),
        ("evaluation/reconstruction.json", "python -m pipeline.evaluate reconstruction"),
        ("evaluation/reconstructions.npz", "python -m pipeline.evaluate reconstruction"),
        ("environment.json", "no environment.json"),
        ("events-rank00000.jsonl", "no events"),
        ("../dataset/manifest.json", "python -m sharding.build"),
    ],
)
def test_a_missing_piece_is_named_with_the_command_that_makes_it(run, missing, says):
    add_evaluations(run)
    (run / missing).unlink()
    assert says in write_report(run).read_text()


def test_a_run_that_has_only_begun_has_a_report(run):
    for name in ("metrics.jsonl", "environment.json", "events-rank00000.jsonl"):
        (run / name).unlink()
    assert "Nothing has been logged yet" in write_report(run).read_text()


def test_the_report_goes_where_it_is_asked_to(run, tmp_path, capsys):
    out = tmp_path / "elsewhere" / "my.html"
    assert main([str(run), "--out", str(out)]) == 0
    assert out.exists() and not (run / "report.html").exists()
    assert capsys.readouterr().out == f"report: {out}\n"


def test_a_folder_that_is_no_run_is_wrong_usage(tmp_path, capsys):
    assert exit_code(main, [str(tmp_path)]) == 2
    assert "no config.yaml" in capsys.readouterr().err


def test_an_attempt_that_ended_without_a_word_is_told(run):
    names = [event["event"] for event in read_events(run)]
    assert names == ["start", "checkpoint", "lost", "resume", "done"]


def test_a_recorded_kill_is_told_in_its_place(run):
    make_events(run / "events-demo.jsonl", ("kill", 66), first_s=15)
    assert [(e["event"], e["step"]) for e in read_events(run)] == [
        ("start", 0),
        ("checkpoint", 60),
        ("kill", 66),
        ("resume", 60),
        ("done", 120),
    ]


def test_an_event_of_several_ranks_is_told_once(run):
    make_events(run / "events-rank00001.jsonl", ("start", 0), ("checkpoint", 60), first_s=0.4)
    assert [event["event"] for event in read_events(run)].count("checkpoint") == 1


def test_the_fall_compares_the_first_tenth_with_the_last():
    fall = loss_fall([4.0, 4.0] + [3.0] * 16 + [1.0, 2.0])
    assert (fall.first, fall.last) == (4.0, 1.5)
    assert fall.share == pytest.approx(0.625)
    with pytest.raises(DataError, match="no loss"):
        loss_fall([])


def test_the_settings_and_the_data_bear_their_hashes(run):
    fingerprint, settings = fingerprint_of(run), hashlib.sha256((run / "config.yaml").read_bytes()).hexdigest()
    about = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps(about | {"data_fingerprint": fingerprint, "git": "abc123-dirty"}))
    html = write_report(run).read_text()
    assert f"<code>{settings[:16]}</code>" in html and settings not in html
    assert f"data fingerprint</th><td><code>{fingerprint}</code>" in html
    assert "<th>git</th><td>abc123-dirty</td>" in html


def test_the_online_probe_is_a_curve(run):
    assert "was not probed" in write_report(run).read_text()
    add_probes(run)
    html = write_report(run).read_text()
    assert "was not probed" not in html
    assert "kNN 0.42<" in html and "ridge 0.56<" in html  # macro and micro at step 120, at the curves' ends
    assert "100 training and 43 test samples" in html


def test_a_step_that_was_probed_again_is_shown_once(run):
    lines = [{"step": 20, "knn_map_macro": 0.1}, {"step": 40, "knn_map_macro": 0.2}, {"step": 20, "knn_map_macro": 0.3}]
    (run / "probe.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert probe_curves(run) == {"macro": {"kNN": ([20, 40], [0.3, 0.2])}}


def test_reconstructions_over_time_are_a_strip_for_each_sample_and_modality(run):
    add_evaluations(run)
    assert "Over time" not in write_report(run).read_text()
    add_reconstructions(run, range(10, 121, 10))
    html = write_report(run).read_text()
    shown = [int(step) for step in re.findall(r'alt="Sentinel-1 VV, reconstruction at step (\d+)"', html)]
    assert shown == 2 * [10, 30, 50, 80, 100, 120]
    assert html.count('<div class="strip">') == 4
    assert "at 6 of 12 steps stored" in html


def test_a_file_of_pictures_that_cannot_be_read_is_named(run):
    add_evaluations(run)
    add_reconstructions(run, range(10, 31, 10))
    cut = run / "reconstructions" / "step-00000020.npz"
    cut.write_bytes(cut.read_bytes()[:100])
    html = write_report(run).read_text()
    assert "step-00000020.npz holds no reconstructions" in html
    assert 'reconstruction at step 10"' in html and 'reconstruction at step 30"' in html


def test_a_sample_that_was_not_stored_at_a_step_has_a_gap_there(run):
    add_evaluations(run)
    add_reconstructions(run, range(10, 31, 10))
    path = run / "reconstructions" / "step-00000020.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    np.savez_compressed(path, **arrays | {"keys": np.array(["pair_a", "another"])})
    assert write_report(run).read_text().count("not stored") == 2


@pytest.mark.parametrize(("given", "chosen"), [(1, [0]), (6, [0, 1, 2, 3, 4, 5]), (11, [0, 2, 4, 6, 8, 10])])
def test_steps_are_chosen_evenly_with_the_first_and_the_last(given, chosen):
    assert evenly(range(given), 6) == chosen


FINGERPRINT = re.compile(r"no longer the one that was trained on")


def fingerprint_of(run: Path) -> str:
    return json.loads((run.parent / "dataset" / "manifest.json").read_text())["fingerprint"]


def make_mixture(run: Path, fingerprint: str) -> None:
    """Make the run one of a mixture, whose first data set had `fingerprint` and is the one that evaluations use."""
    config, first = (run / "config.yaml").read_text(), f"{run.parent}/dataset"
    both = f"[{{url: {first}, weight: 3}}, {{url: s3://bucket/other, weight: 1}}]"
    (run / "config.yaml").write_text(config.replace("data: {", f"data: {{mixture: {both}, "))
    about = json.loads((run / "environment.json").read_text())
    of_set = {"split": "train", "samples": 20, "share": 0.75, "fingerprint": fingerprint, "url": first}
    other = of_set | {"samples": 31, "share": 0.25, "url": "s3://bucket/other", "fingerprint": "e" * 64}
    about |= {"data_fingerprint": "f" * 64, "mixture": {"dataset": of_set, "other": other}}
    (run / "environment.json").write_text(json.dumps(about))


@pytest.mark.parametrize("is_changed", [False, True])
def test_data_that_has_changed_since_the_training_is_told(run, is_changed):
    about = json.loads((run / "environment.json").read_text())
    about["data_fingerprint"] = "0" * 64 if is_changed else fingerprint_of(run)
    (run / "environment.json").write_text(json.dumps(about))
    assert bool(FINGERPRINT.search(write_report(run).read_text())) is is_changed


@pytest.mark.parametrize("is_changed", [False, True])
def test_of_a_mixture_the_data_set_described_is_compared_with_what_was_trained_on_there(run, is_changed):
    make_mixture(run, "0" * 64 if is_changed else fingerprint_of(run))
    html = write_report(run).read_text()
    assert bool(FINGERPRINT.search(html)) is is_changed
    assert (("<code>" + "0" * 64) in html) is is_changed
    assert "mixture's fingerprint</th><td><code>" + "f" * 64 in html and html.count("f" * 64) == 1
    assert "51 pairs" in html and "mixture of 2 data sets" in html


def test_a_data_set_that_is_not_of_the_mixture_has_not_changed(run):
    make_mixture(run, "0" * 64)
    about = json.loads((run / "environment.json").read_text())
    about["mixture"]["dataset"]["url"] = "s3://bucket/elsewhere"
    (run / "environment.json").write_text(json.dumps(about))
    assert not FINGERPRINT.search(write_report(run).read_text())


def test_a_mixtures_loss_is_not_set_beside_the_baselines_of_one_of_its_data_sets(run):
    add_evaluations(run)
    single = write_report(run).read_text()
    (run / "evaluation" / "reconstruction.json").rename(run / "kept.json")
    assert "two baselines" in write_report(run).read_text()
    make_mixture(run, fingerprint_of(run))
    assert "two baselines" not in write_report(run).read_text()
    (run / "kept.json").rename(run / "evaluation" / "reconstruction.json")
    mixed = write_report(run).read_text()
    assert mixed.count("means") < single.count("means")  # the figure names its baselines; the table stays
    assert "each band&#39;s mean" in mixed and "trained on <strong>" in single and "trained on <strong>" not in mixed


def test_baselines_of_another_data_set_do_not_stand_beside_the_loss(run):
    add_evaluations(run)
    own = write_report(run).read_text()
    path = run / "evaluation" / "reconstruction.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data_url": "s3://b/other"}))
    assert write_report(run).read_text().count("means") < own.count("means")


def test_the_table_of_baselines_says_which_data_set_of_a_mixture_it_is_of_and_what_that_lacks(run):
    add_evaluations(run)
    make_mixture(run, fingerprint_of(run))
    path = run / "evaluation" / "reconstruction.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"data_url": "s3://b/val", "absent_bands": ["B01", "B09"]})
    )
    html = write_report(run).read_text()
    assert "of <code>s3://b/val</code>" in html and "The data set lacks B01, B09." in html
