"""Clouds filled and speckle taken out: the measures by their definitions, the ways beside each other, the command."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from fusmae import FusMAE
from pipeline.command import exit_code
from pipeline.config import load_settings, model_config
from pipeline.errors import ConfigError
from pipeline.frozen import open_frozen
from pipeline.restore.clouds import TITLES, cloud_masks, measure_clouds
from pipeline.restore.command import main, restore
from pipeline.restore.filters import boxcar, lee, speckle
from pipeline.restore.homogeneous import WindowLevels
from pipeline.restore.inpainting import interpolate, pixels_of, visible_mean
from pipeline.restore.scores import ScoreSum, psnr_db, ssim_map, times_better
from pipeline.restore.settings import resolve
from pipeline.restore.speckle import blind_spot, divisions, mean_db, measure_speckle
from pipeline.restore.tables import standing
from tests.unit.pipeline.test_evaluate import make_data_set, make_run, store_weights

ROOT = Path(__file__).resolve().parents[3]
REAL = ROOT / "demo" / "data" / "bigearthnet-v1"
needs_wheel = pytest.mark.skipif(not REAL.exists(), reason=f"needs {REAL.relative_to(ROOT)}: make setup fetches it")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    return make_data_set(tmp_path_factory.mktemp("data") / "pairs")


@pytest.fixture
def run(tmp_path, url):
    return make_run(tmp_path, url)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Measures


def test_ssim_is_that_of_torchmetrics_in_each_pixel():
    x, y = noise(2, 3, 24, 31), noise(2, 3, 24, 31, seed=1)
    ours = ssim_map(x, y, 0.7)
    _, full = structural_similarity_index_measure(x, y, data_range=0.7, return_full_image=True)
    torch.testing.assert_close(ours, full, rtol=0, atol=1e-10)


def test_psnr_and_mae_are_of_the_counted_pixels_alone():
    true, restored = noise(2, 2, 16, 16).numpy(), noise(2, 2, 16, 16, seed=1).numpy()
    counted = noise(2, 2, 16, 16, seed=2).numpy() < 0.3
    total = ScoreSum(("a", "b"), 2.0)
    for row in range(2):
        one = (torch.from_numpy(array[row : row + 1]) for array in (restored, true, counted))
        total.add(*one)
    told = total.as_dict()
    mse = ((restored - true) ** 2)[counted].mean()
    assert told["psnr_db"] == pytest.approx(10 * math.log10(4 / mse))
    assert told["mae"] == pytest.approx(np.abs(restored - true)[counted].mean())
    assert told["mae_of_band"]["b"] == pytest.approx(np.abs(restored - true)[:, 1][counted[:, 1]].mean())
    assert total.errors[1] == pytest.approx(((restored - true) ** 2)[1][counted[1]].mean())


def test_a_perfect_restoration_has_no_error_and_an_ssim_of_1():
    true = noise(1, 2, 16, 16)
    total = ScoreSum(("a", "b"), 1.0)
    total.add(true, true, torch.ones_like(true, dtype=torch.bool))
    told = total.as_dict()
    assert psnr_db(0.0, 1.0) == math.inf
    assert told["psnr_db"] is None and told["mae"] == 0
    assert told["ssim"] == pytest.approx(1, abs=1e-12)


def test_a_band_that_no_sample_has_is_not_told():
    counted = torch.ones(1, 2, 16, 16, dtype=torch.bool)
    counted[:, 1] = False
    total = ScoreSum(("a", "b"), 1.0)
    total.add(noise(1, 2, 16, 16), noise(1, 2, 16, 16, seed=1), counted)
    assert list(total.as_dict()["mae_of_band"]) == ["a"]


def test_samples_in_which_the_model_is_nearer_are_counted():
    scores = {"model": SimpleNamespace(errors=[1.0, 2.0, 3.0]), "other": SimpleNamespace(errors=[2.0, 2.0, 4.0])}
    assert times_better("model", scores) == {"other": 2}


@pytest.mark.parametrize(
    ("model", "other", "said"),
    [(20.0, 23.5, "3.50 dB WORSE than"), (23.5, 20.0, "3.50 dB better than"), (None, 20.0, "inf dB better than")],
)
def test_the_table_says_plainly_where_the_model_stands(model, other, said):
    rows = {name: {"psnr_db": 1.0} for name in TITLES} | {
        "model": {"psnr_db": model},
        "interpolation": {"psnr_db": other},
    }
    result = {"scores": rows, "samples": 9, "better_than": {"interpolation": 2, "without_radar": 9}}
    lines = standing(result, TITLES, ("interpolation", "band_mean"), "without_radar")
    assert f"the model is {said} the best that learns nothing (smooth interpolation); better in 2 of 9" in lines[0]


# Clouds


def test_a_cloud_is_a_function_of_seed_and_key_and_covers_what_was_asked_for():
    masks = cloud_masks(["a", "b", "c"], 15, 0.4, 7)
    assert masks.sum(1).tolist() == [90, 90, 90]
    assert torch.equal(cloud_masks(["c", "a"], 15, 0.4, 7), masks[[2, 0]])
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(cloud_masks(["a"], 15, 0.4, 8)[0], masks[0])


def test_more_cover_hides_what_less_cover_hides_and_more():
    less, more = (cloud_masks(["a"], 15, cover, 0)[0] for cover in (0.2, 0.6))
    assert bool((more >= less).all())


def test_a_cloud_hangs_together_where_patches_drawn_apart_do_not():
    def edges(mask_BN):
        grid = mask_BN.reshape(-1, 15, 15)
        return float((grid[:, 1:] != grid[:, :-1]).double().mean())

    apart = torch.stack([torch.randperm(225, generator=torch.Generator().manual_seed(n)) < 112 for n in range(20)])
    assert edges(cloud_masks([str(n) for n in range(20)], 15, 0.5, 0)) < 0.3 * edges(apart)


def test_interpolation_gives_planes_back_and_the_mean_does_not():
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    plane = torch.stack([0.2 * rows - 0.1 * columns, 3.0 + columns])[None].double()
    hidden = torch.zeros(1, 1, 24, 24, dtype=torch.bool)
    hidden[..., 6:18, 3:15] = True
    given = plane.where(~hidden, 99.0)
    torch.testing.assert_close(interpolate(given, hidden, tolerance=1e-9), plane, rtol=0, atol=1e-6)
    assert (visible_mean(given, hidden) - plane).abs().max() > 1


def test_interpolation_solves_laplaces_equation_up_to_the_border():
    image = noise(1, 1, 8, 8)
    hidden = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    hidden[..., :5, 2:7] = True
    filled = interpolate(image, hidden, tolerance=1e-10)[0, 0].numpy()
    numbers = {place: n for n, place in enumerate(zip(*np.nonzero(hidden[0, 0].numpy()), strict=True))}
    matrix, right = np.zeros((len(numbers),) * 2), np.zeros(len(numbers))
    for (row, column), n in numbers.items():
        for place in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if not (0 <= place[0] < 8 and 0 <= place[1] < 8):
                continue
            matrix[n, n] += 1
            if place in numbers:
                matrix[n, numbers[place]] -= 1
            else:
                right[n] += image[0, 0].numpy()[place]
    expected = np.linalg.solve(matrix, right)
    np.testing.assert_allclose([filled[place] for place in numbers], expected, atol=1e-8)


def test_pixels_of_patches_are_those_that_the_model_cuts():
    from fusmae.patch import unpatchify

    mask_BN = cloud_masks(["a", "b"], 4, 0.4, 0)
    assert torch.equal(pixels_of(mask_BN, 3), unpatchify(mask_BN[:, :, None].expand(-1, -1, 9), 3, 12, 12))


# Speckle


def test_lee_is_what_its_definition_says_in_each_pixel():
    intensity = noise(1, 2, 12, 13)
    ours, looks = lee(intensity, 3.0).numpy(), 3.0
    padded = np.pad(intensity.numpy(), ((0, 0), (0, 0), (3, 3), (3, 3)), mode="reflect")
    for band in range(2):
        for row in range(12):
            for column in range(13):
                window = padded[0, band, row : row + 7, column : column + 7]
                mean, variance = window.mean(), window.var()
                weight = max(0.0, 1 - (1 / looks) / (variance / mean**2))
                expected = mean + weight * (intensity[0, band, row, column].item() - mean)
                assert ours[0, band, row, column] == pytest.approx(expected, abs=1e-12)
    np.testing.assert_allclose(boxcar(intensity)[0, 1, 5, 6], padded[0, 1, 5:12, 6:13].mean())


def test_lee_keeps_a_bright_point_and_smooths_what_is_even():
    even = torch.ones(1, 1, 32, 32) * speckle(["a"], (1, 32, 32), 4.0, 0)
    even[..., 16, 16] = 500.0
    out = lee(even, 4.0)
    assert out[0, 0, 16, 16] > 450
    assert out[0, 0, :8, :8].var() < 0.4 * even[0, 0, :8, :8].var()


def test_speckle_has_its_mean_its_looks_and_its_mean_in_db():
    drawn = speckle([str(n) for n in range(20)], (1, 100, 100), 4.0, 0).double()
    assert drawn.mean().item() == pytest.approx(1, abs=0.01)
    assert drawn.var().item() == pytest.approx(0.25, abs=0.01)
    assert (10 * drawn.log10()).mean().item() == pytest.approx(mean_db(4.0), abs=0.01)
    assert torch.equal(speckle(["3"], (1, 100, 100), 4.0, 0)[0].double(), drawn[3])
    assert not torch.equal(speckle(["3"], (1, 100, 100), 4.0, 1)[0].double(), drawn[3])


def test_each_patch_is_in_one_part_and_parts_are_equally_large():
    part_RBN = divisions(["a", "b"], 9, 4, 3, 0)
    assert [sorted(torch.bincount(row).tolist()) for row in part_RBN.flatten(0, 1)] == [[2, 2, 2, 3]] * 6
    assert not torch.equal(part_RBN[0], part_RBN[1])
    assert torch.equal(divisions(["b"], 9, 4, 3, 0)[:, 0], part_RBN[:, 1])


def test_the_blind_spot_does_not_see_the_patch_that_it_restores(run, url):
    frozen = open_frozen(str(run), resolve("speckle", str(run), []).data, "cpu")
    _, images, _ = next(frozen.batches("test", 2))
    part_RBN = divisions(["a", "b"], 9, 3, 2, 0)
    before = blind_spot(frozen.model, images, "s1", part_RBN, 3)
    changed = images | {"s1": images["s1"].clone()}
    changed["s1"][:, :, 4:8, 4:8] += 1
    after = blind_spot(frozen.model, changed, "s1", part_RBN, 3)
    assert torch.equal(before[:, :, 4:8, 4:8], after[:, :, 4:8, 4:8])
    assert not torch.equal(before, after)


def test_where_there_is_speckle_alone_the_mean_has_more_looks_and_the_same_level():
    even = torch.full((1, 1, 64, 64), 0.1, dtype=torch.float64)
    noisy = even * speckle(["a"], (1, 64, 64), 4.0, 0)
    levels = WindowLevels(("noisy", "boxcar"))
    levels.add(even, {"noisy": noisy, "boxcar": boxcar(noisy)})
    told = levels.as_dict()
    assert told["windows"] == 2
    assert told["ways"]["noisy"]["enl_ratio"] == 1
    assert told["ways"]["boxcar"]["enl_ratio"] > 10
    assert abs(told["ways"]["boxcar"]["level_db"]) < 0.5


# The command


def test_clouds_leaves_figures_and_a_picture_in_the_run_folder(run, capsys):
    assert main(["clouds", str(run), "device=cpu"]) == 0
    told = capsys.readouterr().out
    stored = json.loads((run / "evaluation" / "restore-clouds.json").read_text())
    assert stored["split"] == "test" and stored["samples"] == 8 and stored["step"] == 7
    assert set(stored["scores"]) == set(TITLES)
    assert all(title in told for title in TITLES.values())
    assert "better than" in told or "WORSE than" in told
    assert (run / "evaluation" / "restore-clouds.png").read_bytes()[:4] == b"\x89PNG"
    assert len(stored["scores"]["model"]["mae_of_band"]) == 12


def test_speckle_prints_what_it_stores(run, tmp_path, capsys):
    out = tmp_path / "figures"
    arguments = [
        "speckle",
        str(run),
        "speckle.repeats=1",
        "device=cpu",
        "--split",
        "train",
        "--out",
        str(out),
        "--json",
    ]
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "restore-speckle.json").read_text())
    assert printed["samples"] == 11 and printed["without_a_sensor"] == 1  # one training pair has no S1
    assert printed["homogeneous_windows"] == 0 and printed["scores"]["lee"]["enl_ratio"] is None  # 12 pixels a side
    assert (out / "restore-speckle.png").exists() and not (run / "evaluation").exists()


def test_the_same_again_is_the_same_whatever_the_batches(run):
    plain = ["device=cpu", "clouds.pictures=0"]
    first, _ = restore("clouds", str(run), [*plain, "clouds.batch_size=3"])
    again, _ = restore("clouds", str(run), [*plain, "clouds.batch_size=3"])
    assert first == again
    other, _ = restore("clouds", str(run), [*plain, "clouds.batch_size=8"])
    assert other["scores"]["model"]["mae"] == pytest.approx(first["scores"]["model"]["mae"], rel=1e-6)
    moved, _ = restore("clouds", str(run), [*plain, "clouds.seed=1"])
    assert moved["scores"]["band_mean"] != first["scores"]["band_mean"]


def test_a_limit_takes_the_first_samples(run):
    few, _ = restore("clouds", str(run), ["device=cpu", "clouds.samples=3", "clouds.batch_size=2", "clouds.pictures=0"])
    assert few["samples"] == 3


class Knowing:
    """A model that knows the truth: the upper bound of what can be scored."""

    def __init__(self, config):
        self.config = config

    def fill(self, images, hidden):
        return {name: images[name] for name in hidden}


def test_a_model_that_knows_the_truth_has_no_error_under_the_clouds(run):
    settings = resolve("clouds", str(run), [])
    frozen = open_frozen(str(run), settings.data, "cpu")
    object.__setattr__(frozen, "model", Knowing(frozen.model.config))
    scores = measure_clouds(frozen, settings.clouds, "test")[0]["scores"]
    assert scores["model"]["psnr_db"] is None and scores["model"]["ssim"] == pytest.approx(1)
    assert scores["band_mean"]["psnr_db"] is not None


def test_a_model_that_gives_the_speckle_back_scores_as_nothing_done(run):
    settings = resolve("speckle", str(run), ["speckle.repeats=1"])
    frozen = open_frozen(str(run), settings.data, "cpu")
    object.__setattr__(frozen, "model", Knowing(frozen.model.config))
    scores = measure_speckle(frozen, settings.speckle, "test")[0]["scores"]
    # But for the mean of the speckle in dB, which is taken off the model's output.
    noisy, model = (10 ** (-scores[name]["psnr_db"] / 10) * 900 for name in ("noisy", "model"))
    assert model == pytest.approx(noisy - mean_db(4.0) ** 2, rel=0.02)


def test_wrong_runs_keys_and_values_are_named(run, tmp_path, capsys):
    assert exit_code(main, ["clouds", str(tmp_path / "nothing")]) == 1
    assert "nothing" in capsys.readouterr().err
    for override, said in (
        ("clouds.covr=0.3", "did you mean 'clouds.cover'?"),
        ("speckle.looks=1", "sets nothing that 'clouds' knows"),
        ("probe.epochs=3", "sets nothing that 'clouds' knows"),
        ("clouds.cover=1", "must lie between 0 and 1"),
        ("clouds.cover=much", "key 'clouds.cover'"),
        ("clouds.data_range=0", "must be above 0"),
        ("data.url=/nowhere/at/all", "/nowhere/at/all"),
    ):
        assert exit_code(main, ["clouds", str(run), override]) in (1, 2)
        assert said in capsys.readouterr().err
    assert exit_code(main, ["speckle", str(run), "speckle.parts=10"]) == 2
    assert "has 9 patches" in capsys.readouterr().err
    assert exit_code(main, ["clouds", str(run), "--split", "none"]) == 1
    assert "none" in capsys.readouterr().err


def test_a_model_that_predicts_relative_to_the_hidden_patch_is_refused(tmp_path, url):
    relative = make_run(tmp_path, url, target_norm="per_patch")
    with pytest.raises(ConfigError, match="target_norm=per_patch"):
        restore("clouds", str(relative), ["device=cpu"])


def test_data_without_radar_is_refused(run, tmp_path):
    without = make_data_set(tmp_path / "optical", without=("VV", "VH"))
    assert exit_code(main, ["clouds", str(run), f"data.url={without}", "device=cpu"]) in (1, 2)


# Real pairs


@needs_wheel
def test_real_pairs_under_clouds_and_speckle_have_the_floors_that_they_should(tmp_path, capsys):
    from sharding.build import main as build

    url = str(tmp_path / "set")
    assert build(["--source", "bigearthnet-v1", "--root", str(REAL), "--out", url, "--workers", "1"]) == 0
    run = make_run(tmp_path, url)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("image_size: 12, patch_size: 4", "image_size: 120, patch_size: 40"))
    config = model_config(load_settings(run / "config.yaml", []))
    torch.manual_seed(0)
    store_weights(run, FusMAE(config))
    clouds, _ = restore("clouds", str(run), ["device=cpu", "clouds.pictures=1"])
    scores = clouds["scores"]
    # Real reflectance is smooth: what is beside a cloud tells more than the mean of other images, and both more than
    # weights that were never trained.
    assert 0.001 < scores["interpolation"]["mae"] < scores["band_mean"]["mae"] < 0.5
    assert scores["model"]["mae"] > scores["interpolation"]["mae"]
    assert main(["speckle", str(run), "speckle.parts=3", "speckle.repeats=1", "speckle.pictures=1", "device=cpu"]) == 0
    told = capsys.readouterr().out
    speckled = json.loads((run / "evaluation" / "restore-speckle.json").read_text())["scores"]
    assert speckled["lee"]["psnr_db"] > speckled["noisy"]["psnr_db"] + 2
    assert speckled["lee"]["enl_ratio"] > 3 and abs(speckled["lee"]["level_db"]) < 0.3
    assert "dB WORSE than the best that learns nothing (" in told
