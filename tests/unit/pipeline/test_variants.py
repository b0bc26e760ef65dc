"""The study of variants, without training: intervals, verdicts, inputs of one sensor, and what is refused."""

import numpy as np
import pytest
import torch

from benchmarks import variants
from benchmarks.bootstrap import draw_resamples, interval, resampled_precision
from benchmarks.sensor_features import INPUTS, of_bands
from benchmarks.variants import CONFIG, REFERENCE, VARIANTS, main, run_overrides
from benchmarks.variants_table import Study, as_markdown
from fusmae import FusMAEConfig, Modality
from pipeline.config import load_settings, model_config
from pipeline.errors import ConfigError
from pipeline.scores import average_precision

ROOT = CONFIG.parent.parent


@pytest.fixture
def scored():
    """30 samples, 4 classes, many equal scores, and a class that is rare enough to be missing from some draws."""
    draws = np.random.default_rng(3)
    labels = draws.random((30, 4)) < [0.5, 0.3, 0.2, 0.05]
    labels[0, 3] = True
    return draws.integers(0, 12, (30, 4)) / 4 - 1, labels


def test_a_resamples_precision_is_that_of_the_samples_written_out(scored):
    scores, labels = scored
    counts = draw_resamples(30, 20, seed=0)
    found = resampled_precision(scores, labels, counts)
    assert (counts @ labels == 0).any(), "no draw misses a class"
    for number, count in enumerate(counts):
        chosen = np.repeat(np.arange(30), count)
        expected = average_precision(torch.from_numpy(scores[chosen]), torch.from_numpy(labels[chosen]))
        # torchmetrics computes in float32.
        assert found.micro[number] == pytest.approx(expected.micro, abs=1e-6)
        assert found.macro[number] == pytest.approx(expected.macro, abs=1e-6)


def test_a_resample_is_as_large_as_the_split_and_the_same_for_a_seed():
    counts = draw_resamples(17, 50, seed=4)
    assert counts.shape == (50, 17) and (counts.sum(axis=1) == 17).all()
    assert np.array_equal(counts, draw_resamples(17, 50, seed=4))
    assert not np.array_equal(counts, draw_resamples(17, 50, seed=5))


def test_an_interval_holds_95_of_100():
    assert interval(np.arange(1001.0)) == (25, 975)


def study_of(labels, scores):
    study = Study(
        labels=labels,
        num_train=1,
        about={"steps": 1, "seeds": 2},
        reference=REFERENCE,
        num_resamples=200,
    )
    for name, runs in scores.items():
        for run in runs:
            study.add(name, "s1", "linear", run.astype(float))
    return {row.name: row for row in study.rows}, study


def test_only_what_differs_in_the_same_draws_is_said_to_differ(scored):
    noise, labels = scored
    close = noise + 0.01 * np.random.default_rng(0).normal(size=noise.shape)
    rows, study = study_of(labels, {REFERENCE: [noise], "same": [noise], "close": [close], "perfect": [labels]})
    assert rows[REFERENCE].micro.differs is None and rows[REFERENCE].micro.difference is None
    assert rows["same"].micro.differs is False and rows["same"].micro.difference == (0, 0)
    assert rows["close"].micro.differs is False
    assert rows["perfect"].micro.differs is True and rows["perfect"].macro.differs is True
    assert rows["perfect"].micro.value == 1 and rows["perfect"].micro.interval == (1, 1)
    assert "2 of 6 comparisons differ" in as_markdown(study)


def test_the_seeds_mean_is_compared_and_their_spread_is_told(scored):
    noise, labels = scored
    rows, _ = study_of(labels, {REFERENCE: [noise, noise], "two": [noise, labels]})
    single = rows[REFERENCE].micro.value
    assert rows["two"].micro.value == pytest.approx((single + 1) / 2)
    assert (rows["two"].micro.lowest, rows["two"].micro.highest) == (single, 1)
    # Draw by draw the gain is half of what is missing to 1, so the difference's interval is half as wide.
    low, high = rows[REFERENCE].micro.interval
    assert rows["two"].micro.difference == pytest.approx(((1 - high) / 2, (1 - low) / 2))


def test_without_the_reference_nothing_is_compared(scored):
    rows, study = study_of(scored[1], {"xae": [scored[0]]})
    assert rows["xae"].macro.differs is None and "comparisons" not in as_markdown(study)


def test_one_sensor_of_stacked_bands_is_zeros_in_place_of_the_other():
    config = FusMAEConfig(
        modalities=(Modality(name="stacked", bands=("VV", "B02", "VH")),), encoder_fusion="none", decoder_fusion="none"
    )
    images, valid = {"stacked": torch.ones(2, 3, 4, 4)}, {"stacked": torch.tensor([[True] * 3, [False, True, True]])}
    own, there = of_bands(config, images, valid, INPUTS["s1"])
    assert own["stacked"][:, :, 0, 0].tolist() == [[1, 0, 1], [1, 0, 1]]
    assert there["stacked"].tolist() == [[True, False, True], [False, False, True]]
    own, there = of_bands(config, images, valid, INPUTS["s1+s2"])
    assert torch.equal(own["stacked"], images["stacked"]) and torch.equal(there["stacked"], valid["stacked"])


def test_one_sensor_of_two_modalities_is_the_other_left_out():
    config = FusMAEConfig()
    images = {m.name: torch.randn(2, len(m.bands), 4, 4) for m in config.modalities}
    valid = {m.name: torch.ones(2, len(m.bands), dtype=torch.bool) for m in config.modalities}
    own, there = of_bands(config, images, valid, INPUTS["s2"])
    assert list(own) == list(there) == ["s2"] and torch.equal(own["s2"], images["s2"])


@pytest.fixture
def plan(monkeypatch):
    """The plan that the given arguments make; nothing is trained."""

    def make(*arguments):
        found = []

        def stop(plan, folder):
            found.append((plan, folder, folder.exists()))
            raise KeyboardInterrupt

        monkeypatch.setattr(variants, "run_study", stop)
        with pytest.raises(KeyboardInterrupt):
            main([str(argument) for argument in arguments])
        return found[0]

    return make


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("no-fusion", "fusmae_nofusion_vitb"),
        ("xae", "fusmae_xae_vitb"),
        ("xad", "fusmae_xad_vitb"),
        ("xae-xad", "fusmae_xae_xad_vitb"),
        ("multimae", "multimae_vitb"),
        ("satvit", "satvit_vitb"),
    ],
)
def test_a_variant_is_its_preset_made_small(plan, name, preset):
    small = model_config(load_settings(CONFIG, [*run_overrides(plan("url")[0], name, 0), "run.dir=run"]))
    large = model_config(load_settings(ROOT / "configs" / f"{preset}.yaml", []))
    kinds = ("encoder_fusion", "decoder_fusion", "masking", "mask_ratio", "global_token", "decode_global_token")
    for key in (*kinds, "target_norm", "decoder_depth", "modality_names", "decoder_attention", "decoder_queries"):
        assert getattr(small, key) == getattr(large, key), key
    assert [m.bands for m in small.modalities] == [m.bands for m in large.modalities]


def test_all_variants_have_the_same_budget(plan):
    made = plan("url", "--steps", 50, "--global-batch", 8, "model.depth=4")[0]
    for name in VARIANTS:
        settings = load_settings(CONFIG, [*run_overrides(made, name, 2), "run.dir=run"])
        train = settings.train
        assert (train.steps, train.global_batch, train.seed, settings.optim.warmup_steps) == (50, 8, 2, 5)
        assert (settings.data.url, settings.model["depth"], settings.run.num_processes) == ("url", 4, 1)
    consistent = model_config(load_settings(CONFIG, [*run_overrides(made, "xae-consistent", 0), "run.dir=run"]))
    assert (consistent.encoder_fusion, consistent.masking) == ("xae", "consistent")


def test_runs_are_only_kept_when_asked_for(plan, tmp_path):
    _, folder, was_there = plan("url")
    assert was_there and not folder.exists()
    assert plan("url", "--keep", tmp_path)[1] == tmp_path and tmp_path.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "xae,xab"), "there is no variant 'xab'; known are no-fusion, xae"),
        (("--seeds", "0"), "--seeds 0 must be at least 1"),
        (("--steps", "-1"), "--steps -1 must be at least 1"),
        (("--resamples", "0"), "--resamples 0 must be at least 1"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(arguments, message):
    with pytest.raises(ConfigError, match=message):
        main(["nowhere", *arguments])
