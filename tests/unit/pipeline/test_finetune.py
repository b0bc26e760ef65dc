"""Fine-tuning: it learns, repeats exactly, leaves the given model as it is, and chooses no epoch by the test split."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fusmae import FusMAE, FusMAEConfig
from pipeline.errors import ConfigError
from pipeline.evaluate import evaluate, main, resolve_settings
from pipeline.evaluation.finetune import FinetuneSettings, finetune
from pipeline.evaluation.layer_decay import layers_of, parameter_groups
from pipeline.evaluation.training import training_steps
from pipeline.frozen import open_frozen
from tests.unit.pipeline.exported_runs import SMALL, make_run
from tests.unit.pipeline.mapped_set import make_mapped_set

ROOT = Path(__file__).parents[3]
MODEL = {"image_size": 16, "depth": 2}
SHORT = ["device=cpu", "data.threads=1", "finetune.batch_size=8", "finetune.lr=3e-3"]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    return make_mapped_set(tmp_path_factory.mktemp("mapped") / "pairs", same_in_val_and_test=True)


@pytest.fixture
def run(tmp_path, url):
    return make_run(tmp_path, url, MODEL)


def opened(run):
    return open_frozen(str(run), resolve_settings(str(run), SHORT).data, "cpu")


def test_fine_tuning_learns_and_leaves_its_figures_in_the_run_folder(run, capsys):
    assert main(["finetune", str(run), *SHORT, "finetune.epochs=6"]) == 0
    said = capsys.readouterr()
    stored = json.loads((run / "evaluation" / "finetune.json").read_text())
    assert [row["modalities"] for row in stored["results"]] == ["s1", "s2", "s1+s2"]
    assert stored["task"] == "multi-label" and stored["epoch_chosen_by"] == "nothing: the last epoch is scored"
    for row in stored["results"]:
        assert row["encoder"]["micro"] > 0.9 > stored["prevalence"]["micro"]
        for kind in ("encoder", "random_encoder"):
            [training] = row["training"][kind]
            assert len(training["loss"]) == 6 and training["loss"][-1] < training["loss"][0]
            assert training["epoch"] == 6 and "validation" not in training
    assert "from random weights" in said.out and "colour statistics (floor)" in said.out
    assert "finetune s1+s2, fine-tuned, seed 0: epoch 6 of 6: loss" in said.err


def test_the_same_seed_gives_the_same_figures_and_another_seed_others(run):
    settings = FinetuneSettings(epochs=2, batch_size=8, inputs=("s1+s2",), flips=True, from_scratch=False)
    first, again = (finetune(opened(run), settings, 0) for _ in range(2))
    assert first == again
    other = FinetuneSettings(epochs=2, batch_size=8, inputs=("s1+s2",), flips=True, from_scratch=False, seeds=(1,))
    losses = [told["results"][0]["training"]["encoder"][0]["loss"] for told in (first, finetune(opened(run), other, 0))]
    assert losses[0] != losses[1]
    unturned = FinetuneSettings(epochs=2, batch_size=8, inputs=("s1+s2",), from_scratch=False)
    assert finetune(opened(run), unturned, 0)["results"][0]["training"]["encoder"][0]["loss"] != losses[0]


def test_the_given_model_stays_as_it_is(run):
    frozen = opened(run)
    before = {name: value.clone() for name, value in frozen.model.state_dict().items()}
    finetune(frozen, FinetuneSettings(epochs=1, batch_size=8, inputs=("s1",), from_scratch=False), 0)
    assert not frozen.model.training
    assert all(torch.equal(value, before[name]) for name, value in frozen.model.state_dict().items())


def test_the_best_epoch_is_chosen_by_the_validation_split_and_is_the_one_scored(run):
    # The validation split holds the pixels of the test split, so that the chosen epoch's figure must come back.
    overrides = [*SHORT, "finetune.epochs=5", "finetune.val_split=val", "finetune.inputs=[s2]", "finetune.lr=0.05"]
    result, _ = evaluate("finetune", str(run), overrides)
    assert result["epoch_chosen_by"] == "the best micro on 'val'"
    for kind in ("encoder", "random_encoder"):
        [training] = result["results"][0]["training"][kind]
        assert len(training["validation"]) == 5
        assert training["epoch"] == training["validation"].index(max(training["validation"])) + 1
        assert result["results"][0][kind]["micro"] == max(training["validation"])


def test_each_sample_is_trained_on_once_an_epoch(run):
    frozen, seen, ends = opened(run), [], []
    for step in training_steps(frozen, "train", batch_size=16, epochs=3, seed=0):
        epochs = step.batch.epoch[step.batch.epoch < 3].tolist()
        seen += list(zip(epochs, [k for k, e in zip(step.batch.keys, step.batch.epoch.tolist(), strict=True) if e < 3],
                         strict=True))  # fmt: skip
        counts = dict(zip(step.batch.keys, step.counts.tolist(), strict=True))
        assert counts.get("pair-0005", False) is False  # has no S1
        ends.append(step.ended_epoch)
    assert len(seen) == len(set(seen)) == 3 * 40
    assert [end for end in ends if end] == [1, 2, 3] and ends[-1] == 3 and len(ends) == step.num_steps == 8


def test_batches_larger_than_the_split_are_the_split(run):
    steps = list(training_steps(opened(run), "test", batch_size=512, epochs=2, seed=0))
    assert [(step.num_steps, step.ended_epoch, int(step.counts.sum())) for step in steps] == [(2, 1, 16), (2, 2, 16)]


@pytest.mark.parametrize("fusion", ["xae", "none"])
def test_layer_decay_falls_from_the_norm_to_the_patches_and_every_parameter_has_one_rate(fusion):
    model = FusMAE(FusMAEConfig(**SMALL | {"encoder_fusion": fusion}))
    head = torch.nn.Linear(16, 3)
    groups = parameter_groups(model, head, weight_decay=0.05, layer_decay=0.5)
    scale = {id(p): group["scale"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    named = {**dict(model.named_parameters()), **{f"head.{n}": p for n, p in head.named_parameters()}}
    assert sorted(scale) == sorted(id(p) for p in named.values())
    assert sum(len(group["params"]) for group in groups) == len(named)
    layers = layers_of(model)
    assert len(layers) == 5 and [n for n in named if n.startswith("encoder.")] == [
        n for n in named if any(n in layer for layer in layers) and n.startswith("encoder.")
    ]
    for depth, names in enumerate(layers):
        assert names and {scale[id(named[name])] for name in names} == {0.5 ** (4 - depth)}
    assert {scale[id(p)] for p in head.parameters()} == {1.0}
    assert decay[id(head.weight)] == 0.05 and decay[id(head.bias)] == 0.0
    assert {decay[id(p)] for n, p in named.items() if n.endswith(("bias", "_D")) or ".norm" in n} == {0.0}


def test_a_model_that_does_not_say_its_layers_has_no_layer_decay():
    with pytest.raises(ConfigError, match=r"Linear does not say its layers; write finetune\.layer_decay=1"):
        parameter_groups(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), weight_decay=0.0, layer_decay=0.5)


WRONG = [
    {"epochs": 0}, {"batch_size": 0}, {"lr": 0.0}, {"min_lr": -1.0}, {"clip": -1.0}, {"warmup_share": 1.0},
    {"layer_decay": 0.0}, {"layer_decay": 1.1}, {"label_smoothing": 1.0}, {"seeds": ()},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(ConfigError, match=rf"finetune\.{next(iter(wrong))} = "):
        FinetuneSettings(**wrong)


@pytest.mark.slow
def test_a_killed_run_leaves_the_earlier_result_and_nothing_half(run):
    (run / "evaluation").mkdir()
    (run / "evaluation" / "finetune.json").write_text('{"step": 1}\n')
    command = [sys.executable, "-m", "pipeline.evaluate", "finetune", str(run), *SHORT, "finetune.epochs=5000"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stderr is not None
    said = process.stderr.readline()
    process.send_signal(signal.SIGKILL)
    rest = process.communicate()[1]
    assert said.startswith("finetune s1, fine-tuned, seed 0: epoch 1 of 5000"), said + rest
    assert [path.name for path in (run / "evaluation").iterdir()] == ["finetune.json"]
    assert json.loads((run / "evaluation" / "finetune.json").read_text()) == {"step": 1}
