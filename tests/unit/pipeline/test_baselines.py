"""Published encoders from files with their documented keys, before a data set, and the floors."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.baselines import croma, dino_mm, imagenet, opening, prithvi, satvit, terramind
from pipeline.baselines.interface import BandFacts
from pipeline.baselines.key_map import load_into
from pipeline.baselines.registry import NAMES, RANDOM, load_baseline
from pipeline.command import exit_code
from pipeline.errors import ConfigError
from pipeline.evaluate import evaluate, main
from pipeline.features import colour_statistics
from pipeline.pretrained import read_nested
from tests.unit.pipeline import published_keys as keys
from tests.unit.pipeline.test_evaluate import CONFIG, make_data_set

TOLERANCE = 1e-5
W, D = keys.WIDTH, keys.DEPTH
Images = dict[str, Tensor]


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def load(name: str, network: nn.Module, file: Any, folder: Path) -> nn.Module:
    """The network with the weights of a file that torch.save wrote."""
    path = folder / "weights.pt"
    torch.save(file, path)
    baseline = load_baseline(name)
    assert baseline.key_map is not None
    load_into(network, baseline.select(read_nested(str(path))), baseline.key_map(network), str(path))
    return network.eval()


def picture_vit() -> nn.Module:
    return imagenet.PictureViT(channels=3, patch_size=32, grid=7, width=W, depth=D, heads=2)


def dino_vit() -> nn.Module:
    return dino_mm.DinoViT(channels=14, patch_size=8, grid=4, width=W, depth=D, heads=2)


def one_date_vit() -> nn.Module:
    return prithvi.OneDateViT(patch_size=16, width=W, depth=D, heads=2, size=48)


def stacked_vit() -> nn.Module:
    return satvit.StackedViT(patch_size=8, width=W, depth=D, heads=2, size=32)


IMAGENET = keys.draw(keys.timm_shapes((3, 32, 32), 50) | keys.pairs("head", 5, W))
DINO = keys.draw(keys.timm_shapes((14, 8, 8), 17))
PRITHVI = keys.draw(keys.timm_shapes((6, 1, 16, 16), 1 + 3 * 9) | keys.pairs("decoder_pred", 5, W))
SATVIT, CROMA, TERRAMIND = keys.satvit_file(8, 32), keys.croma_file(), keys.terramind_file(3)
FILES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "imagenet_vit_s": (picture_vit, IMAGENET),
    "dino_mm": (dino_vit, {"student": {}, "teacher": keys.nested(DINO, "backbone."), "epoch": 99}),
    "satvit_v2": (stacked_vit, SATVIT),
    "croma_base": (lambda: croma.Croma(W, D), CROMA),
    "prithvi_v2_300": (one_date_vit, keys.nested(PRITHVI, "encoder.")),
    "terramind_v1_base": (lambda: terramind.TerraMind(W, D, 2, size=48), TERRAMIND),
}


def sensors(size: int, *names: str) -> Images:
    channels = {"s1": 2, "s2": 12}
    return {name: noise(2, channels[name], size, size, seed=channels[name]) for name in names}


@pytest.mark.parametrize("names", [("s1",), ("s2",), ("s1", "s2")])
@torch.inference_mode()
def test_croma_computes_what_its_keys_say(tmp_path: Path, names: tuple[str, ...]) -> None:
    network, images = load("croma_base", croma.Croma(W, D), CROMA, tmp_path), sensors(40, *names)
    assert (network(images) - keys.croma(CROMA, images)).abs().max() < TOLERANCE


@torch.inference_mode()
def test_in_croma_the_distance_of_patches_counts(tmp_path: Path) -> None:
    network, images = load("croma_base", croma.Croma(W, D), CROMA, tmp_path), sensors(40, "s1", "s2")
    tall = {name: image.unflatten(2, (5, 8)).flip(2).flatten(2, 3) for name, image in images.items()}
    swapped = {"s1": images["s1"], "s2": tall["s2"]}
    assert (network(tall) - network(images)).abs().max() < TOLERANCE  # all patches mirrored: the same distances
    assert (network(swapped) - network(images)).abs().max() > 1e-3


@pytest.mark.parametrize("names", [("s1",), ("s2",), ("s1", "s2")])
@torch.inference_mode()
def test_terramind_computes_what_its_keys_say(tmp_path: Path, names: tuple[str, ...]) -> None:
    network = load("terramind_v1_base", terramind.TerraMind(W, D, 2, size=48), TERRAMIND, tmp_path)
    images = sensors(48, *names)
    assert (network(images) - keys.terramind(TERRAMIND, images)).abs().max() < TOLERANCE


@torch.inference_mode()
def test_a_vit_of_imagenet_computes_what_its_keys_say(tmp_path: Path) -> None:
    network = load("imagenet_vit_s", picture_vit(), IMAGENET, tmp_path)
    images = {"s1": noise(2, 3, 224, 224), "s2": noise(2, 3, 224, 224, seed=2)}
    for given in ({"s1": images["s1"]}, images):
        assert (network(given) - keys.imagenet(IMAGENET, given)).abs().max() < TOLERANCE


@torch.inference_mode()
def test_dino_mm_joins_class_tokens_at_the_positions_of_dino(tmp_path: Path) -> None:
    network = load("dino_mm", dino_vit(), FILES["dino_mm"][1], tmp_path)
    stack = noise(2, 14, 16, 16)
    tokens = keys.timm_tokens(stack, DINO, keys.dino_positions(DINO["pos_embed"], 4, 2))
    expected = torch.cat([x[:, 0] for x in keys.timm_blocks(tokens, DINO, 2, 1e-6)], 1)
    assert (network({"stack": stack}) - expected).abs().max() < TOLERANCE


@torch.inference_mode()
def test_satvit_computes_what_its_keys_say(tmp_path: Path) -> None:
    network, stack = load("satvit_v2", stacked_vit(), SATVIT, tmp_path), noise(2, 15, 32, 32)
    assert (network({"stack": stack}) - keys.satvit(SATVIT, stack, 8)).abs().max() < TOLERANCE


@pytest.mark.parametrize("prefix", ["", "encoder."])
@torch.inference_mode()
def test_prithvi_computes_what_its_keys_say_for_one_date(tmp_path: Path, prefix: str) -> None:
    network = load("prithvi_v2_300", one_date_vit(), keys.nested(PRITHVI, prefix), tmp_path)
    image, flat = (
        noise(2, 6, 48, 48),
        PRITHVI | {"patch_embed.proj.weight": PRITHVI["patch_embed.proj.weight"][:, :, 0]},
    )
    tokens = keys.timm_tokens(image, flat, keys.prithvi_positions(3))
    expected = keys.timm_blocks(tokens, flat, 2, 1e-5)[-1][:, 1:].mean(1)
    assert (network({"s2": image}) - expected).abs().max() < TOLERANCE


def flat(file: Any) -> dict[str, Tensor]:
    found = {}
    for name, value in file.items():
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": tensor for inner, tensor in flat(value).items()}
        elif isinstance(value, Tensor):
            found[name] = value
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_key_that_is_missing_or_too_much_or_misshaped_is_named(tmp_path: Path, name: str) -> None:
    make, file = FILES[name]
    whole = flat(file)
    path = tmp_path / "weights.pt"
    start = {"dino_mm": "teacher.backbone.", "prithvi_v2_300": "encoder."}.get(name, "")
    victim = next(
        key for key in whole if key.endswith(("blocks.1.mlp.fc1.weight", "norm_out.weight", "encoder_norm.weight"))
    )
    shown = victim.removeprefix(start)
    for broken, said in (
        ({key: value for key, value in whole.items() if key != victim}, f"missing are '{shown}'"),
        (whole | {f"{start}blocks.1.mlp.fc9.weight": torch.ones(2)}, "unexpected are 'blocks.1.mlp.fc9.weight'"),
        (whole | {victim: torch.ones(3)}, f"'{shown}' has shape (3,), expected"),
        (whole | {victim: whole[victim] * float("nan")}, f"no finite floating-point numbers in '{shown}'"),
    ):
        network = make()
        before = {key: value.clone() for key, value in network.state_dict().items()}
        with pytest.raises(ConfigError) as caught:
            load(name, network, broken, tmp_path)
        assert said in str(caught.value) and str(path) in str(caught.value)
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_safetensors_with_joined_names_are_the_same_file(tmp_path: Path) -> None:
    save_file(flat(CROMA), tmp_path / "croma.safetensors")
    torch.save(CROMA, tmp_path / "croma.pt")
    first, second = (read_nested(str(tmp_path / name)) for name in ("croma.safetensors", "croma.pt"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", [name for name in NAMES if name != RANDOM])
def test_every_baseline_says_what_it_takes_and_how_it_was_verified(name: str) -> None:
    baseline = load_baseline(name)
    assert baseline.name == name and baseline.source and baseline.normalisation and baseline.feature
    assert {sensor.name for sensor in baseline.sensors} <= {"s1", "s2"}
    assert bool(baseline.file) == (baseline.key_map is not None)


# What each does to dB and digital numbers --------------------------------------------------------------------------


def test_croma_scales_two_deviations_of_the_data_set_to_256_levels() -> None:
    facts = {"VV": BandFacts(mean=-10.0, std=2.0), "VH": BandFacts(mean=-20.0, std=5.0)}
    image = torch.full((1, 2, 120, 120), -10.0)
    scaled = croma.prepare({"s1": image}, facts)["s1"]
    assert scaled[0, 0].unique().tolist() == [pytest.approx(127 / 255)]  # the mean lies between two levels
    assert scaled[0, 1].unique().tolist() == [1.0]  # two deviations above and beyond


def test_dino_mm_leaves_the_absent_sensor_at_0_and_puts_vh_first() -> None:
    s1 = torch.stack([torch.linspace(-30, -10, 14400), torch.linspace(-20, 0, 14400)]).reshape(1, 2, 120, 120)
    stack = dino_mm.prepare({"s1": s1}, {})["stack"]
    assert stack.shape == (1, 14, 112, 112) and not stack[:, :12].any() and stack[:, 12:].any()
    assert (stack * 255 - (stack * 255).round()).abs().max() < 1e-4 and 0 <= stack.min() and stack.max() <= 1
    s2 = torch.full((1, 12, 120, 120), 340.76769064)
    optical = dino_mm.prepare({"s2": s2}, {})["stack"]
    assert not optical[:, 12:].any() and optical[0, 0].unique().tolist() == [pytest.approx(127 / 255)]
    assert load_baseline("dino_mm").sensors[0].bands == ("VH", "VV")


def test_satvit_stacks_optical_bands_first_and_leaves_what_is_not_known_at_the_mean() -> None:
    image = torch.full((1, 2, 8, 8), -10.97)
    stack = satvit.prepare({"s1": image}, {})["stack"]
    assert stack.shape == (1, 15, 256, 256) and not stack[:, :12].any() and not stack[:, 14].any()
    assert stack[0, 12].abs().max() < 1e-5 and stack[0, 13].mean() == pytest.approx((-10.97 + 17.9148) / 4.5137)


def test_radar_becomes_a_picture_of_vv_vh_and_their_mean() -> None:
    image = torch.stack([torch.full((8, 8), -5.0), torch.full((8, 8), -15.0)])[None]
    picture = load_baseline("imagenet_vit_b").prepare({"s1": image}, {})["s1"]
    means, stds = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    back = [float(picture[0, band].mean()) * stds[band] + means[band] for band in range(3)]
    assert picture.shape == (1, 3, 224, 224) and back == pytest.approx([0.8, 0.4, 0.6], abs=1e-5)


# Before a data set ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_data_set(tmp_path_factory.mktemp("data") / "pairs")


@pytest.fixture
def small_croma(monkeypatch: pytest.MonkeyPatch) -> None:
    """CROMA 32 wide in place of ViT-B's 768: the same code, in a second."""

    def small(name: str) -> Any:
        return replace(load_baseline(name), width=W, make=lambda tensors: croma.Croma(W, D))

    monkeypatch.setattr(opening, "load_baseline", small)


def test_band_statistics_are_the_floor_of_every_other_table(tmp_path: Path, url: str) -> None:
    result, path = evaluate(
        "knn", "baseline:band_statistics", [f"data.url={url}", "knn.neighbours=3", f"baseline.out={tmp_path}/o"]
    )
    assert path == tmp_path / "o" / "knn.json" and json.loads(path.read_text()) == result
    assert [row["modalities"] for row in result["results"]] == ["s1", "s2", "s1+s2"]
    for row in result["results"]:
        assert row["encoder"]["micro"] == pytest.approx(row["colour_statistics"]["micro"], abs=1e-6)


def test_images_come_in_db_and_digital_numbers(url: str) -> None:
    opened = opening.open_evaluated(
        "baseline:band_statistics", opening.DataSettings(url=url), opening.BaselineSettings(), "cpu"
    )
    batch, images, valid = next(opened.frozen.batches("train", 4))
    stored = batch.arrays["s1"].float()
    assert torch.allclose(images["s1"], stored, atol=1e-4) and valid["s1"].all()
    assert torch.allclose(images["s2"][:, 1:4], batch.arrays["s2_10m"][:, :3].float(), atol=0.01)
    expected = torch.cat(
        [colour_statistics(images[name], valid[name])[:, :n] for name, n in (("s1", 4), ("s2", 24))], 1
    )
    assert torch.equal(opened.frozen.model.features(images), expected)


def test_a_published_encoder_is_evaluated_and_says_that_nobody_verified_it(tmp_path, url, small_croma, capsys) -> None:
    torch.save(CROMA, tmp_path / "croma.pt")
    arguments = ["linear", "baseline:croma_base", f"data.url={url}", "probe.epochs=2", "device=cpu"]
    out = [f"baseline.weights={tmp_path / 'croma.pt'}", f"baseline.out={tmp_path / 'out'}"]
    assert main([*arguments, *out]) == 0
    told, stored = capsys.readouterr().out, json.loads((tmp_path / "out" / "linear.json").read_text())
    assert [row["modalities"] for row in stored["results"]] == ["s1", "s2", "s1+s2"]
    about, verified = stored["baseline"], load_baseline("croma_base").verified
    assert about["weights"].endswith("croma.pt") and about["bands"]["s1"] == ["VV", "VH"]
    assert (f"verified: {verified}" if verified else "unverified") in told
    assert "size: 12 -> 120 pixels (bilinear)" in told


def test_the_seed_draws_a_random_encoder_of_a_runs_settings(tmp_path: Path, url: str) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG.format(url=url, run=tmp_path / "run", target_norm="none"))
    told = [f"data.url={url}", f"baseline.config={config}", f"baseline.out={tmp_path}/o", "knn.neighbours=3"]
    data = opening.DataSettings(url=url)
    states = []
    for seed in (0, 0, 1):
        settings = opening.BaselineSettings(config=str(config), seed=seed)
        states.append(opening.open_evaluated("baseline:random", data, settings, "cpu").frozen.model.state_dict())
    name = "encoder.blocks.0.mlp.fc1.weight"
    assert torch.equal(states[0][name], states[1][name]) and not torch.equal(states[0][name], states[2][name])
    result, _ = evaluate("knn", "baseline:random", told)
    assert result["baseline"]["seed"] == 0 and len(result["results"]) == 3


def test_untrained_twins_are_drawn_by_their_seed(url: str, tmp_path: Path, small_croma: None) -> None:
    torch.save(CROMA, tmp_path / "croma.pt")
    settings = opening.BaselineSettings(weights=str(tmp_path / "croma.pt"))
    model = opening.open_evaluated("baseline:croma_base", opening.DataSettings(url=url), settings, "cpu").frozen.model
    first, again, other = (model.untrained(seed).state_dict() for seed in (0, 0, 1))
    name = "network.s2.blocks.0.mlp.fc1.weight"
    assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])
    assert not torch.equal(first[name], model.state_dict()[name])


def test_an_absent_band_is_refused_or_filled_with_the_baselines_mean(tmp_path: Path) -> None:
    url = make_data_set(tmp_path / "pairs", without=("B01", "B8A"))
    data, nothing = opening.DataSettings(url=url), opening.BaselineSettings(weights="x.pt")
    with pytest.raises(ConfigError, match="the data set lacks B01, B8A, which this baseline cannot do without"):
        opening.open_evaluated("baseline:croma_base", data, nothing, "cpu")
    from pipeline.baselines.units import UnitsTransform, given_sensors
    from pipeline.stream.exact import read_image_manifest

    manifest, baseline = read_image_manifest(url), load_baseline("prithvi_v2_300")
    transform = UnitsTransform(manifest, given_sensors(manifest, baseline.sensors), baseline.fill)
    frozen = opening.open_evaluated("baseline:band_statistics", data, opening.BaselineSettings(), "cpu").frozen
    batch, _, _ = next(frozen.batches("train", 4))
    images, valid = transform(batch, None)
    assert images["s2"][:, 3].unique().tolist() == [2734.0] and not valid["s2"][:, 3].any()
    assert baseline.prepare(images, {})["s2"][:, 3].abs().max() == 0
    assert images["s2"][:, 0].unique().numel() > 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["baseline:crom_base", "data.url=x"], "did you mean baseline:croma_base?"),
        (["baseline:croma_base"], "has no data set of its own; give one as data.url="),
        (["baseline:croma_base", "data.url={url}"], "needs baseline.weights=FILE, the published CROMA_base.pt"),
        (["baseline:band_statistics", "data.url={url}", "baseline.weights=x.pt"], "takes no weights"),
        (["baseline:band_statistics", "data.url={url}", "baseline.config=x.yaml"], "belongs to baseline:random"),
        (["baseline:random", "data.url={url}"], "needs baseline.config=CONFIG.yaml"),
    ],
)
def test_wrong_usage_says_what_to_write(given: list[str], said: str, url: str, capsys: Any) -> None:
    assert exit_code(main, ["linear", *(argument.format(url=url) for argument in given)]) == 2
    assert said in capsys.readouterr().err


def test_a_baseline_reconstructs_nothing(url: str, tmp_path: Path, capsys: Any) -> None:
    given = ["reconstruction", "baseline:band_statistics", f"data.url={url}", f"baseline.out={tmp_path}/o"]
    assert exit_code(main, given) == 2
    assert "reconstructs nothing" in capsys.readouterr().err


def test_an_untrained_vit_takes_any_sensor_at_full_size(url: str) -> None:
    opened = opening.open_evaluated(
        "baseline:random_vit", opening.DataSettings(url=url), opening.BaselineSettings(), "cpu"
    )
    _, images, _ = next(opened.frozen.batches("train", 1))
    with torch.inference_mode():
        features = opened.frozen.model.features({"s2": images["s2"]})
    assert features.shape == (1, 768) and features.isfinite().all() and features.std() > 0
