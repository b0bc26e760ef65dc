"""The report: whole and self-contained with everything there, and useful with pieces missing."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from pipeline.command import exit_code
from pipeline.errors import DataError
from pipeline.report import loss_fall, main, read_events, write_report
from sharding.bands import ARRAY_BANDS, ARRAY_GSD_M
from sharding.manifest import (
    ArraySpec,
    BandStatistics,
    Manifest,
    ShardSpec,
    SourceSpec,
    dump_manifest,
)
from sharding.shard_index import ShardIndex, dump_index, record_dtype

LABELS = ("Arable land", "Inland waters", "Pastures <&>")
SIZES = {"train": 20, "validation": 6, "test": 8}


def make_data_set(folder: Path) -> None:
    """A manifest and indexes, as many as the report reads; the shards themselves are not there."""
    draws = np.random.default_rng(0)
    arrays = tuple(ARRAY_BANDS)
    shards = []
    (folder / "index").mkdir(parents=True)
    for split, samples in SIZES.items():
        records = np.zeros(samples, record_dtype(len(arrays), 8))
        records["labels"] = draws.integers(1, 8, samples)
        records["lon"] = np.where(draws.random(samples) < 0.3, 24.2, 15.5) + draws.normal(0, 0.1, samples)
        records["lat"] = np.where(records["lon"] > 20, 62.0, 48.1) + draws.normal(0, 0.05, samples)
        index = dump_index(ShardIndex(arrays=arrays, records=records))
        (folder / "index" / f"{split}.idx").write_bytes(index)
        shards.append(
            ShardSpec(
                path=f"shards/{split}.tar",
                split=split,
                samples=samples,
                tar_samples=samples,
                num_bytes=201_000 * samples,
                sha256="0" * 64,
                index_path=f"index/{split}.idx",
                index_bytes=len(index),
                index_sha256="0" * 64,
                metadata_path=f"metadata/{split}.jsonl",
                metadata_bytes=0,
                metadata_sha256="0" * 64,
            )
        )
    specs = tuple(
        ArraySpec(
            name=name,
            bands=bands,
            dtype="float32" if name == "s1" else "uint16",
            height=1200 // ARRAY_GSD_M[name],
            width=1200 // ARRAY_GSD_M[name],
            gsd_m=ARRAY_GSD_M[name],
            units="dB" if name == "s1" else "DN",
        )
        for name, bands in ARRAY_BANDS.items()
    )
    statistics = {
        band: BandStatistics(
            count=288_000, mean=-12.6, std=5.0, minimum=-40.0, maximum=11.0, nodata=0, percentiles={"50": -12.5}
        )
        for spec in specs
        for band in spec.bands
        if band != "B10"
    }
    source = SourceSpec(name="reben", version="2", samples=sum(SIZES.values()), levels=("L2A",))
    manifest = Manifest(
        arrays=specs,
        shards=tuple(shards),
        labels=LABELS,
        statistics={"train": statistics},
        sources=(source,),
        codec="lz4",
    )
    (folder / "manifest.json").write_bytes(dump_manifest(manifest))


def make_run(folder: Path) -> Path:
    """A run that was killed after step 66 and resumed from step 60."""
    make_data_set(folder / "dataset")
    run = folder / "run"
    (run / "evaluation").mkdir(parents=True)
    (run / "config.yaml").write_text(
        f"data: {{url: {folder}/dataset}}\ntrain: {{steps: 120}}\nrun: {{dir: {run}}}\n"
        "model: {encoder_fusion: xae, decoder_fusion: xad}\n"
    )
    (run / "environment.json").write_text(
        json.dumps({"packages": {"torch": "2.13.0"}, "parameters": 2_345_678, "train_flops_per_sample": 64_400_000_000})
    )
    draws = np.random.default_rng(1)
    with (run / "metrics.jsonl").open("w") as metrics:
        for step in range(1, 121):
            s1, s2 = (0.9 * np.exp(-step / scale) + 0.35 + draws.normal(0, 0.02) for scale in (50, 30))
            line = {"step": step, "samples": 16 * step, "loss": s1 + s2, "loss_s1": s1, "loss_s2": s2}
            speed = {"samples_per_s": 90 + draws.normal(0, 4), "mfu": None, "memory_gib": 0.8}
            wait = {"data_wait_s": abs(draws.normal(0, 0.002)), "step_s": 0.17}
            metrics.write(json.dumps(line | speed | wait) + "\n")
    make_events(run / "events-rank00000.jsonl", ("start", 0), ("checkpoint", 60), ("resume", 60), ("done", 120))
    return run


def make_events(path: Path, *events: tuple[str, int], first_s: float = 0.0) -> None:
    began = datetime(2026, 3, 1, tzinfo=UTC)
    with path.open("w") as file:
        for number, (name, step) in enumerate(events):
            time = (began + timedelta(seconds=first_s + 10 * number)).isoformat()
            event = {"time": time, "event": name, "step": step}
            file.write(json.dumps(event | ({"from_step": step} if name == "resume" else {})) + "\n")


def add_evaluations(run: Path) -> None:
    losses = {"s1": 0.5, "s2": 0.4, "total": 0.9}
    measured = {
        "samples": 20,
        "model": losses,
        "shuffled": losses | {"total": 1.4},
        "band_mean": losses | {"total": 2.0},
    }
    (run / "evaluation" / "reconstruction.json").write_text(
        json.dumps({"step": 120, "seed": 0, "modalities": ["s1", "s2"], "splits": {"train": measured}})
    )
    scores = {"micro": 0.61, "macro": 0.52, "per_class": {}}
    rows = [{"modalities": name, "encoder": scores, "colour_statistics": scores} for name in ("s1", "s2", "s1+s2")]
    split = {"samples": 20, "without_labels": 1, "without_a_modality": 0}
    (run / "evaluation" / "linear.json").write_text(
        json.dumps(
            {
                "step": 120,
                "splits": {"train": split | {"split": "train"}, "test": split | {"split": "test"}},
                "classes_without_positives": ["Inland waters"],
                "prevalence": scores,
                "results": rows,
            }
        )
    )
    draws = np.random.default_rng(2)
    panels = [
        {"name": "s1", "title": "Sentinel-1 VV", "bands": ["VV"], "units": "dB"},
        {"name": "s2", "title": "Sentinel-2 true colour", "bands": ["B04", "B03", "B02"], "units": "DN"},
    ]
    arrays = {"keys": np.array(["pair_a", "pair_b"]), "panels": np.array(json.dumps(panels))}
    for name, bands in (("s1", 1), ("s2", 3)):
        arrays[f"{name}.input"] = draws.normal(-12, 4, (2, bands, 24, 24)).astype(np.float32)
        arrays[f"{name}.reconstruction"] = arrays[f"{name}.input"] * 0.9
        arrays[f"{name}.hidden"] = draws.random((2, 3, 3)) < 0.75
    np.savez_compressed(run / "evaluation" / "reconstructions.npz", **arrays)


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
    assert ("<code>" + "0" * 64) in html if is_changed else "f" * 64 not in html
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
