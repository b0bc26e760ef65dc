"""Settings: one YAML, typed keys, and an answer for each mistake."""

from pathlib import Path

import pytest

from pipeline.config import dump_settings, load_settings, lookup, model_config, to_dict, with_model
from pipeline.errors import ConfigError

MINIMAL = "data: {url: somewhere}\ntrain: {steps: 10, global_batch: 8}\nrun: {dir: run}\n"


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(MINIMAL)
    return path


def test_override_wins_over_file_and_keeps_its_type(minimal: Path) -> None:
    settings = load_settings(minimal, ["optim.lr=1e-3", "train.steps=20", "log.trace=true"])
    assert (settings.optim.lr, settings.train.steps, settings.log.trace) == (1e-3, 20, True)


def test_resolved_settings_read_back_equal(minimal: Path, tmp_path: Path) -> None:
    settings = load_settings(minimal, ["optim.betas=[0.8, 0.9]"])
    settings = with_model(settings, model_config(settings))
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump_settings(settings))
    assert to_dict(load_settings(resolved, [])) == to_dict(settings)
    assert model_config(load_settings(resolved, [])) == model_config(settings)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
        ("global_batch=1", "did you mean 'train.global_batch'?"),
        ("train.steps=ten", "'train.steps' = 'ten'"),
        ("train.steps=0", "train.steps = 0; a run needs at least 1"),
        ("engine.zero_stage=0", "write engine.zero_stage=1, or engine.precision=fp32"),
        ("engine.zero_stage=4", "Input should be 0, 1, 2 or 3"),
        ("checkpoint.keep=1", "checkpoint.keep must be at least 2"),
        ("checkpoint.keep_best=-1", "checkpoint.keep_best = -1; it must be 0 (none) or more"),
        ("checkpoint.keep_every=-1", "checkpoint.keep_every = -1; it must be 0 (none) or more"),
        ("optim.warmup_steps=10", "must be below train.steps = 10"),
        ("train.steps.much=1", "'steps' is a value, not a group"),
        ("train", "write key.sub=value"),
        ("log.every=0", "log.every = 0"),
        ("train.seed=-1", "train.seed = -1; it must be 0 or more"),
        ("optim.betas=[2, 3]", "optim.betas = [2.0, 3.0]; it must be two numbers"),
        ("optim.lr=-1", "optim.lr = -1.0; it must be above 0"),
        ("run.timeout_s=0", "run.timeout_s = 0.0; it must be above 0"),
        ("data.threads=0", "data.threads = 0; it must be 1 or more"),
        ("data.window_gib=0", "data.window_gib = 0.0; it must be above 0"),
    ],
)
def test_mistake_is_named_with_what_to_write(minimal: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_settings(minimal, [override])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["checkpoint.best_by=knn"], "probe.every = 0 and checkpoint.every = 500"),
        (["checkpoint.best_by=ridge", "probe.every=300"], "must be a divisor of checkpoint.every"),
        (["log.every=501"], "log.every must be at most checkpoint.every"),
    ],
)
def test_the_best_of_checkpoints_without_a_score_are_refused(minimal: Path, overrides: list[str], message: str) -> None:
    load_settings(minimal, overrides)
    with pytest.raises(ConfigError) as error:
        load_settings(minimal, ["checkpoint.keep_best=1", *overrides])
    assert message in str(error.value)


def test_missing_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("data: {url: somewhere}\ntrain: {steps: 10}\nrun: {}\n")
    with pytest.raises(ConfigError, match=r"lacks the key 'run\.dir'"):
        load_settings(path, [])


@pytest.mark.parametrize("text", ["", "- a list", "data: {url: a, url: b}", "data: [unclosed"])
def test_file_that_is_no_settings_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load_settings(path, [])


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        load_settings(tmp_path / "none.yaml", [])


def test_wrong_model_keys_and_values_are_named(minimal: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'model\.widht'; did you mean 'model\.width'"):
        model_config(load_settings(minimal, ["model.widht=12"]))
    with pytest.raises(ConfigError, match=r"'model'|'model\.patch_size'"):
        model_config(load_settings(minimal, ["model.patch_size=7"]))


def test_lookup_gives_any_key_and_names_the_nearest(minimal: Path) -> None:
    settings = load_settings(minimal, [])
    assert lookup(settings, "run.dir") == "run"
    with pytest.raises(ConfigError, match=r"did you mean 'run\.dir'"):
        lookup(settings, "run.dri")
