"""The evaluations end to end: a small untrained model before a small data set."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fusmae import FusMAE
from pipeline.command import exit_code
from pipeline.config import load_settings, model_config
from pipeline.errors import CheckpointError, ConfigError, DataError
from pipeline.evaluate import evaluate, main, resolve_settings
from pipeline.evaluation.labelled import read_labelled
from pipeline.evaluation.untrained import untrained_twin
from pipeline.features import collect_features, standardise
from pipeline.frozen import open_frozen
from pipeline.neighbours import neighbour_scores
from pipeline.reconstruction import ConstantPredictor
from pipeline.scores import as_dict, average_precision, micro_ap_per_batch
from sharding.manifest import MANIFEST_NAME, Manifest, SourceSpec, dump_manifest, parse_manifest
from sharding.statistics import band_statistics
from tests.unit.pipeline.small_shards import BANDS_L2A, LABELS, array_specs, random_sample, write_shard

CONFIG = """
data: {{url: {url}}}
train: {{steps: 7}}
run: {{dir: {run}}}
model: {{image_size: 12, patch_size: 4, width: 16, depth: 2, heads: 2, decoder_width: 16, decoder_depth: 1,
        decoder_heads: 2, attention_backend: sdpa, target_norm: {target_norm}}}
"""


def make_data_set(root: Path, labels: tuple[str, ...] = LABELS, without: tuple[str, ...] = ()) -> str:
    """12 training pairs, of which one has no label and one no S1, and 8 test pairs; no positive of one class there."""
    draws = np.random.default_rng(0)
    known = tuple(band for band in BANDS_L2A if band not in without)
    specs = tuple(
        replace(spec, bands=tuple(band for band in spec.bands if band in known))
        for spec in array_specs(12, "float32")
        if set(spec.bands) & set(known)
    )
    shards = []
    for split, numbers in (("train", range(12)), ("test", range(12, 20))):
        samples = []
        for number in numbers:
            bands = tuple(b for b in known if b not in ("VV", "VH")) if number == 5 else known
            sample = random_sample(number, specs, bands, 0.0, draws)
            classes = 2 if split == "test" else 3
            own = () if number == 3 or not labels else (LABELS[number % classes],)
            samples.append(replace(sample, labels=own))
        spec, counted = write_shard(root, split, specs, "lz4", samples)
        shards.append(replace(spec, split=split))
        if split == "train":
            statistics = {band: band_statistics(moments) for band, moments in counted.items()}
    source = SourceSpec(name="synthetic", version="1", samples=20, levels=("L2A",))
    manifest = Manifest(
        arrays=specs,
        shards=tuple(shards),
        labels=labels,
        statistics={"train": statistics},
        sources=(source,),
        codec="lz4",
    )
    (root / MANIFEST_NAME).write_bytes(dump_manifest(manifest))
    return str(root)


def make_run(folder: Path, url: str, target_norm: str = "none") -> Path:
    run = folder / "run"
    checkpoint = run / "checkpoints" / "step-00000007"
    checkpoint.mkdir(parents=True)
    (run / "config.yaml").write_text(CONFIG.format(url=url, run=run, target_norm=target_norm))
    torch.manual_seed(0)
    store_weights(run, FusMAE(model_config(load_settings(run / "config.yaml", []))))
    return run


def store_weights(run: Path, model: FusMAE) -> None:
    checkpoint = run / "checkpoints" / "step-00000007"
    weights = checkpoint / "model.safetensors"
    save_file(model.state_dict(), weights)
    crc = google_crc32c.value(weights.read_bytes())
    files = {weights.name: [weights.stat().st_size, crc]}
    (checkpoint / "manifest.json").write_text(json.dumps({"step": 7, "world_size": 1, "files": files}))


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    return make_data_set(tmp_path_factory.mktemp("data") / "pairs")


@pytest.fixture
def run(tmp_path, url):
    return make_run(tmp_path, url)


def test_linear_leaves_its_figures_in_the_run_folder(run, capsys):
    assert main(["linear", str(run), "probe.epochs=3", "device=cpu"]) == 0
    told = capsys.readouterr().out
    stored = json.loads((run / "evaluation" / "linear.json").read_text())
    assert [row["modalities"] for row in stored["results"]] == ["s1", "s2", "s1+s2"]
    assert stored["step"] == 7 and stored["settings"]["epochs"] == 3
    assert len(stored["data_fingerprint"]) == 64
    used = [f"pair-{number:04d}" for number in range(12) if number not in (3, 5)]
    assert stored["splits"]["train"] == {
        "split": "train",
        "samples": 10,
        "without_labels": 1,
        "without_a_modality": 1,
        "keys_sha256": hashlib.sha256("".join(f"{key}\n" for key in used).encode()).hexdigest(),
    }
    assert stored["classes_without_positives"] == [LABELS[2]]
    assert stored["prevalence"]["macro"] == 0.5
    assert "left out of 'train': 1 samples without labels, 1 without a modality" in told
    for row in ("frozen encoder", "random encoder (untrained)", "colour statistics (floor)", "spread of the seeds"):
        assert row in told


def test_knn_leaves_its_figures_in_the_run_folder(run, capsys):
    assert main(["knn", str(run), "knn.neighbours=4", "device=cpu"]) == 0
    told = capsys.readouterr().out
    stored = json.loads((run / "evaluation" / "knn.json").read_text())
    assert stored["step"] == 7 and stored["settings"]["neighbours"] == 4
    assert stored["splits"]["train"]["samples"] == 10 and stored["splits"]["test"]["samples"] == 8
    frozen = open_frozen(str(run), resolve_settings(str(run), []).data, "cpu")
    splits = [read_labelled(frozen, split, single_label=False) for split in ("train", "test")]
    models = {"encoder": frozen.model, "random_encoder": untrained_twin(frozen.model, 0)}
    train, test = (collect_features(frozen, models, split.split, 64, split.numbers) for split in splits)
    train_labels, test_labels = (torch.from_numpy(split.labels_NC) for split in splits)
    assert [row["modalities"] for row in stored["results"]] == ["s1", "s2", "s1+s2"]
    for row in stored["results"]:
        for key in ("encoder", "random_encoder", "colour_statistics"):
            pair = standardise(train[key][row["modalities"]], test[key][row["modalities"]])
            scores = neighbour_scores(*pair, train_labels, 4)
            by_batch = {"micro_ap_per_batch": micro_ap_per_batch(scores, test_labels, 128)}
            assert row[key] == as_dict(average_precision(scores, test_labels), LABELS) | by_batch
    assert "kNN (4 neighbours) at step 7: 10 samples of 'train', scored on 8 of 'test', 3 classes" in told
    assert "left out of 'train': 1 samples without labels, 1 without a modality" in told
    assert "colour statistics (floor)" in told


def test_more_neighbours_than_labelled_training_samples_are_wrong_usage(run, capsys):
    assert evaluate("knn", str(run), ["knn.neighbours=10"])[0]["settings"]["neighbours"] == 10
    assert exit_code(main, ["knn", str(run), "knn.neighbours=11"]) == 2
    said = capsys.readouterr().err
    assert "knn.neighbours = 11 is more than the 10 labelled samples of 'train'; write knn.neighbours=10 or" in said


def test_json_on_the_terminal_is_what_is_stored(run, capsys):
    main(["linear", str(run), "--json", "probe.epochs=1"])
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((run / "evaluation" / "linear.json").read_text())


def test_the_same_evaluation_gives_the_same_figures_whatever_the_batch(run):
    first, _ = evaluate("linear", str(run), ["probe.epochs=2"])
    again, _ = evaluate("linear", str(run / "checkpoints" / "step-00000007"), ["probe.epochs=2"])
    assert first == again


def test_each_set_of_modalities_is_encoded_alone(run, url):
    frozen = open_frozen(str(run), resolve_settings(str(run), []).data, "cpu")
    whole, small = (collect_features(frozen, {"encoder": frozen.model}, "test", size) for size in (64, 3))
    for name, features in whole["encoder"].items():
        torch.testing.assert_close(features, small["encoder"][name])
    (_, images, _), *_ = frozen.batches("test", 64)
    with torch.no_grad():
        expected = frozen.model.features({"s1": images["s1"]})
    torch.testing.assert_close(whole["encoder"]["s1"], expected)
    assert whole["colour_statistics"]["s1+s2"].shape == (8, 2 * 14)


@pytest.mark.parametrize("name", ["linear", "knn", "finetune"])
def test_a_data_set_without_labels_is_refused(run, tmp_path, name):
    unlabelled = make_data_set(tmp_path / "unlabelled", labels=())
    with pytest.raises(DataError, match="has no labels, which this evaluation needs"):
        evaluate(name, str(run), [f"data.url={unlabelled}"])


@pytest.mark.parametrize(("name", "group"), [("linear", "probe"), ("knn", "knn"), ("finetune", "finetune")])
def test_a_missing_split_is_named_with_those_there_are(run, name, group):
    for split in ("train_split", "test_split"):
        with pytest.raises(DataError, match=r"no split 'validation'; it has train, test"):
            evaluate(name, str(run), [f"{group}.{split}=validation"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("probe.epoch=3", r"did you mean 'probe\.epochs'"),
        ("probe.epochs=many", r"key 'probe\.epochs' = 'many'"),
        ("probe.epochs=0", r"probe\.epochs = 0"),
        ("probe", "sets nothing"),
        ("knn.neighbors=5", r"did you mean 'knn\.neighbours'"),
        ("knn.neighbours=0", r"knn\.neighbours = 0"),
        ("probe.seeds=[]", r"probe\.seeds = \[\]"),
        ("probe.labels=1.5", r"probe\.labels = 1\.5"),
        ("probe.task=many", r"key 'probe\.task"),
        ("finetune.val_split=test", r"finetune\.val_split = test is the test split"),
        ("segment.lr=0", r"segment\.lr = 0"),
        ("regress.strengths=[0]", r"regress\.strengths = \[0"),
        ("reconstruction.batch_size=0", r"reconstruction\.batch_size = 0"),
    ],
)
def test_a_wrong_key_or_value_is_wrong_usage(run, override, message):
    with pytest.raises(ConfigError, match=message):
        resolve_settings(str(run), [override])
    assert exit_code(main, ["linear", str(run), override]) == 2


def test_exponents_are_numbers(run):
    assert resolve_settings(str(run), ["probe.lr=1e-4"]).probe.lr == 1e-4


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no folder .*; give the run.dir"):
        evaluate("linear", str(tmp_path / "nothing"), [])


@pytest.mark.parametrize("target_norm", ["none", "per_patch"])
def test_reconstruction_losses_are_means_over_all_samples(tmp_path, url, target_norm):
    run = make_run(tmp_path, url, target_norm)
    small, _ = evaluate("reconstruction", str(run), ["reconstruction.batch_size=5"])
    whole, _ = evaluate("reconstruction", str(run), ["reconstruction.batch_size=64"])
    assert list(whole["splits"]) == ["train", "test"]
    for split, measured in whole["splits"].items():
        for key in ("model", "shuffled", "untrained", "band_mean"):
            assert measured[key] == pytest.approx(small["splits"][split][key], rel=1e-5)
            assert measured[key]["total"] == pytest.approx(measured[key]["s1"] + measured[key]["s2"])
        assert measured["model"]["total"] != measured["shuffled"]["total"] != measured["untrained"]["total"]
        # Pixels are independent noise here: nothing beats the mean, which leaves the variance.
        assert measured["band_mean"]["s2"] == pytest.approx(1.0, abs=0.05)


def test_a_fitted_constant_is_each_bands_mean():
    target = torch.tensor([[[1.0, 10.0, 3.0, 10.0]], [[1.0, 10.0, 3.0, 10.0]]])
    constant = ConstantPredictor()
    constant.add(target, torch.ones(2, 1, 2, dtype=torch.bool))
    assert constant.loss(fit=True) == pytest.approx(0.5)
    assert constant.loss(fit=False) == pytest.approx((1 + 9 + 100 + 100) / 4)


def test_an_absent_band_does_not_count_in_the_baseline():
    target = torch.tensor([[[1.0, float("nan"), 3.0, float("nan")]]])
    constant = ConstantPredictor()
    constant.add(target, torch.tensor([[[True, False]]]))
    assert constant.loss(fit=False) == pytest.approx(5.0)
    assert constant.loss(fit=True) == pytest.approx(1.0)


def test_pictures_are_in_physical_units_and_keep_visible_patches(run):
    result, _ = evaluate("reconstruction", str(run), ["reconstruction.pictures=3"])
    assert result["pictures_of"] == "test"
    with np.load(run / "evaluation" / "reconstructions.npz") as stored:
        assert stored["keys"].tolist() == ["pair-0012", "pair-0013", "pair-0014"]
        panels = json.loads(str(stored["panels"]))
        assert [panel["units"] for panel in panels] == ["dB", "DN"]
        assert [panel["bands"] for panel in panels] == [["VV"], ["B04", "B03", "B02"]]
        before, after = stored["s2.input"], stored["s2.reconstruction"]
        hidden = np.kron(stored["s2.hidden"], np.ones((4, 4))).astype(bool)
        assert before.min() >= 999 and before.max() <= 4001
        assert stored["s1.input"].mean() == pytest.approx(-12, abs=1)
    differs = np.abs(after - before).max(axis=1) > 0.5
    assert not differs[~hidden].any()
    assert differs[hidden].mean() > 0.9


def trained_on_a_mixture(run: Path, url: str) -> None:
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("data: {", f"data: {{mixture: [{{url: {url}}}], "))


@pytest.fixture(scope="module")
def optical_url(tmp_path_factory):
    """The same without S1 and without B08, which true colour does not need."""
    return make_data_set(tmp_path_factory.mktemp("optical") / "pairs", without=("VV", "VH", "B08"))


def test_a_model_of_a_mixture_is_evaluated_on_a_data_set_that_lacks_bands(run, url, optical_url, capsys):
    trained_on_a_mixture(run, url)
    assert main(["reconstruction", str(run), f"data.url={optical_url}"]) == 0
    assert "the data set lacks VV, VH, B08: absent from all samples" in capsys.readouterr().out
    stored = json.loads((run / "evaluation" / "reconstruction.json").read_text())
    assert stored["absent_bands"] == ["VV", "VH", "B08"] and stored["modalities"] == ["s2"]
    for measured in stored["splits"].values():
        assert all(np.isfinite(losses["s2"]) and losses["total"] == losses["s2"] for losses in
                   (measured["model"], measured["shuffled"], measured["band_mean"]))  # fmt: skip
    with np.load(run / "evaluation" / "reconstructions.npz") as pictures:
        assert [panel["name"] for panel in json.loads(str(pictures["panels"]))] == ["s2"]
        assert pictures["s2.input"].min() >= 999 and "s1.input" not in pictures.files
    probed, _ = evaluate("linear", str(run), [f"data.url={optical_url}", "probe.epochs=1"])
    assert [row["modalities"] for row in probed["results"]] == ["s2"]
    assert probed["splits"]["test"]["samples"] == 8 and probed["splits"]["test"]["without_a_modality"] == 0


def test_a_picture_shows_a_band_that_is_there(run, url, tmp_path):
    trained_on_a_mixture(run, url)
    without_red = make_data_set(tmp_path / "pairs", without=("B04", "VV"))
    evaluate("reconstruction", str(run), [f"data.url={without_red}"])
    with np.load(run / "evaluation" / "reconstructions.npz") as pictures:
        panels = {panel["name"]: panel["bands"] for panel in json.loads(str(pictures["panels"]))}
        assert panels["s1"] == ["VH"] and len(panels["s2"]) == 1 and panels["s2"] != ["B04"]
        assert pictures["s1.input"].mean() == pytest.approx(-12, abs=1)


def test_a_model_of_one_data_set_refuses_one_that_lacks_bands(run, optical_url):
    with pytest.raises(ConfigError, match="asks for band VV, which the data set does not have"):
        evaluate("linear", str(run), [f"data.url={optical_url}"])


def test_it_is_told_what_images_are_normalised_over(run, url, tmp_path):
    assert evaluate("linear", str(run), ["probe.epochs=1"])[0]["normalised_over"] == "train"
    other = Path(make_data_set(tmp_path / "pairs"))
    manifest = parse_manifest((other / MANIFEST_NAME).read_bytes(), MANIFEST_NAME)
    of_all = replace(manifest, statistics={"all": manifest.statistics["train"]})
    (other / MANIFEST_NAME).write_bytes(dump_manifest(of_all))
    result, _ = evaluate("linear", str(run), ["probe.epochs=1", f"data.url={other}"])
    assert result["normalised_over"] == "all" and result["absent_bands"] == []
