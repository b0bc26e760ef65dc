"""SEN12MS's protocol: one class a scene, from a data set that was built from the published layout."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.evaluate import evaluate, main
from sharding.build import main as build
from sharding.manifest import MANIFEST_NAME, Manifest, SourceSpec, dump_manifest
from sharding.sources.sen12ms_labels import CLASSES
from sharding.statistics import band_statistics
from tests.trees import write_sen12ms_patch
from tests.unit.pipeline.exported_runs import make_run
from tests.unit.pipeline.small_shards import BANDS_L2A, LABELS, array_specs, random_sample, write_shard

SHORT = ["device=cpu", "data.threads=1"]
NUM_TRAIN, NUM_TEST = 12, 6


@pytest.fixture(scope="module")
def dominant():
    """By key: the class with the largest share, of shares that are drawn; several classes have a tenth."""
    return {}


@pytest.fixture(scope="module")
def url(tmp_path_factory, dominant):
    """18 patches of 256 pixels: real SEN12MS is not at hand, so the pixels are smooth noise in its layout."""
    folder = tmp_path_factory.mktemp("sen12ms")
    root = folder / "tree"
    draws, shares, lists = np.random.default_rng(0), {}, {"train": [], "test": []}
    for number in range(NUM_TRAIN + NUM_TEST):
        write_sen12ms_patch(root, "ROIs1158_spring", 63, f"p{number}", ("s1", "s2"))
        name = f"ROIs1158_spring_s2_63_p{number}.tif"
        shares[name] = draws.dirichlet(np.full(17, 0.5))
        merged = np.zeros(10)
        np.add.at(merged, np.array([1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 6, 8, 9, 10]) - 1, shares[name])
        dominant[f"ROIs1158_spring_63_p{number}"] = CLASSES[int(merged.argmax())]
        lists["train" if number < NUM_TRAIN else "test"].append(name)
    (root / "IGBP_probability_labels.pkl").write_bytes(pickle.dumps(shares))
    for split, names in lists.items():
        (root / f"{split}_list.txt").write_text("".join(f"{name}\n" for name in names))
    arguments = ["--source", "sen12ms", "--root", str(root), "--out", str(folder / "set"), "--workers", "1"]
    assert build(arguments) == 0
    return str(folder / "set")


@pytest.fixture
def run(tmp_path, url):
    return make_run(tmp_path, url)


def test_a_data_set_of_sen12ms_is_probed_for_one_class_a_scene(run, dominant, capsys):
    assert main(["linear", str(run), *SHORT]) == 0
    told = capsys.readouterr().out
    stored = json.loads((run / "evaluation" / "linear.json").read_text())
    assert stored["task"] == "single-label" and "10 classes, single-label" in told
    assert [key for key, _ in stored["columns"]] == ["top1", "top3", "precision", "recall", "f1"]
    assert stored["splits"]["train"]["samples"] == NUM_TRAIN and stored["splits"]["test"]["samples"] == NUM_TEST
    test_classes = {dominant[f"ROIs1158_spring_63_p{n}"] for n in range(NUM_TRAIN, NUM_TRAIN + NUM_TEST)}
    assert set(CLASSES) - set(stored["classes_without_positives"]) == test_classes
    train_classes = [dominant[f"ROIs1158_spring_63_p{n}"] for n in range(NUM_TRAIN)]
    most = max(CLASSES, key=train_classes.count)
    in_test = [dominant[f"ROIs1158_spring_63_p{n}"] for n in range(NUM_TRAIN, NUM_TRAIN + NUM_TEST)]
    assert stored["prevalence"]["top1"] == pytest.approx(in_test.count(most) / NUM_TEST)
    for row in stored["results"]:
        for kind in ("encoder", "random_encoder", "colour_statistics"):
            assert row[kind]["top1"] == pytest.approx(row[kind]["recall"]) and row[kind]["top3"] >= row[kind]["top1"]


def test_knn_and_fine_tuning_have_the_accuracy_of_one_class_too(run):
    for name, own in (("knn", ["knn.neighbours=3"]), ("finetune", ["finetune.epochs=1", "finetune.inputs=[s2]"])):
        result, _ = evaluate(name, str(run), [*SHORT, *own])
        assert result["task"] == "single-label"
        assert {"top1", "top3", "precision", "recall", "f1"} <= result["results"][0]["encoder"].keys()


def test_the_same_data_set_can_be_probed_for_all_labels_of_a_scene(run):
    result, _ = evaluate("linear", str(run), [*SHORT, "probe.task=multi-label", "probe.epochs=1"])
    assert result["task"] == "multi-label" and "micro" in result["results"][0]["encoder"]


def make_labelled(root, labels, dominant):
    """Four training and two test pairs with these labels each, the dominant one named where `dominant` says so."""
    draws, known = np.random.default_rng(0), array_specs(12, "float32")
    shards = []
    for split, numbers in (("train", range(4)), ("test", range(4, 6))):
        samples = []
        for number in numbers:
            sample = random_sample(number, known, BANDS_L2A, 0.0, draws)
            named = {"dominant_label": labels[-1]} if dominant(number) else {}
            samples.append(replace(sample, labels=labels, attributes=named))
        spec, counted = write_shard(root, split, known, "lz4", samples)
        shards.append(replace(spec, split=split))
    statistics = {band: band_statistics(moments) for band, moments in counted.items()}
    source = SourceSpec(name="sen12ms", version="1", samples=6, levels=("L1C",))
    manifest = Manifest(
        arrays=known,
        shards=tuple(shards),
        labels=LABELS,
        statistics={"train": statistics},
        sources=(source,),
        codec="lz4",
    )
    (root / MANIFEST_NAME).write_bytes(dump_manifest(manifest))
    return str(root)


def test_several_labels_without_a_dominant_one_are_left_out_and_told(tmp_path, capsys):
    url = make_labelled(tmp_path / "pairs", LABELS[:2], lambda number: number != 2)
    assert main(["knn", str(make_run(tmp_path, url)), *SHORT, "knn.neighbours=3"]) == 0
    stored = json.loads((tmp_path / "run" / "evaluation" / "knn.json").read_text())
    assert stored["splits"]["train"]["samples"] == 3 and stored["splits"]["train"]["without_a_dominant_label"] == 1
    assert stored["classes_without_positives"] == [LABELS[0], LABELS[2]]  # the dominant one alone counts
    assert "0 without a modality, 1 without a dominant label" in capsys.readouterr().out


def test_a_scene_of_one_label_needs_no_dominant_one(tmp_path):
    url = make_labelled(tmp_path / "pairs", LABELS[:1], lambda number: False)
    result, _ = evaluate("knn", str(make_run(tmp_path, url)), [*SHORT, "knn.neighbours=3"])
    assert result["splits"]["train"]["samples"] == 4 and result["results"][0]["encoder"]["top1"] == 1.0


def test_a_data_set_where_no_scene_has_one_class_is_refused(tmp_path):
    url = make_labelled(tmp_path / "pairs", LABELS[:2], lambda number: False)
    with pytest.raises(DataError, match=r"4 of several labels without a dominant one"):
        evaluate("linear", str(make_run(tmp_path, url)), SHORT)
