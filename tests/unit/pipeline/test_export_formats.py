"""The exported encoder in timm, terratorch, torchgeo and onnxruntime gives the same features.

Those packages need not be here: a test whose package is missing is skipped. terratorch and torchgeo run in processes of
their own, for they warn when they are imported, and terratorch 1.2 lowers torch's precision of matrix products.
"""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from pipeline.command import exit_code
from pipeline.export import timm_names
from pipeline.export.command import main
from tests.unit.pipeline.exported_runs import S2, export, inference, make_run, random_images
from tests.unit.pipeline.small_shards import make

FP32_TOLERANCE = 1e-6
ONNX_TOLERANCE = 1e-5
VARIANTS: dict[str, dict[str, Any]] = {
    "xae": {},
    "a cross-attention for each sensor": {"share_cross_attention": False},
    "no fusion": {"encoder_fusion": "none"},
    "learned positions": {"positions": "learned"},
    "no global token": {"global_token": False},
    "no fusion, no global token": {"encoder_fusion": "none", "global_token": False},
    "stacked": {
        "modalities": [{"name": "stacked", "bands": ["VV", "VH", *S2]}],
        "encoder_fusion": "none",
        "decoder_fusion": "none",
    },
}


def _needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"needs the optional package {package}")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make(tmp_path_factory.mktemp("data") / "pairs").url


def _plain_vit(weights: dict[str, Tensor], arguments: dict[str, Any], image_BCSS: Tensor) -> Tensor:
    """timm's VisionTransformer as its names are meant, with avg pooling of the patches: (B, D)."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    kernel, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    x_BND = F.conv2d(image_BCSS, kernel, bias, stride=arguments["patch_size"]).flatten(2).transpose(1, 2)
    if arguments["class_token"]:
        x_BND = torch.cat([weights["cls_token"].expand(len(x_BND), -1, -1), x_BND], dim=1)
    x_BND = x_BND + weights["pos_embed"]
    for block in (f"blocks.{number}" for number in range(arguments["depth"])):
        qkv = linear(norm(x_BND, f"{block}.norm1"), f"{block}.attn.qkv")
        q, k, v = qkv.unflatten(2, (3, arguments["num_heads"], -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x_BND = x_BND + linear(attended, f"{block}.attn.proj")
        x_BND = x_BND + linear(F.gelu(linear(norm(x_BND, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    return norm(x_BND, "norm")[:, int(arguments["class_token"]) :].mean(1)


def _timm_vit(weights: dict[str, Tensor], arguments: dict[str, Any], image_BCSS: Tensor) -> Tensor:
    import timm

    vit = timm.models.VisionTransformer(**arguments).eval()
    vit.load_state_dict(weights)
    features_BD: Tensor = vit(image_BCSS)
    return features_BD


@pytest.mark.parametrize("vit", [_plain_vit, pytest.param(_timm_vit, marks=_needs("timm"))])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_sensor_alone_is_a_vit_of_timm(tmp_path: Path, url: str, variant: str, vit: Any) -> None:
    out = export(make_run(tmp_path, url, VARIANTS[variant]), "--timm")
    model = inference(out).load(out)
    raw = random_images() | {"stacked": torch.cat([*random_images().values()], dim=1)}
    about = json.loads((out / "timm" / "config.json").read_text())
    assert list(about) == list(model.bands)
    for name in model.bands:
        facts, weights = about[name], load_file(out / "timm" / f"{name}.safetensors")
        mean_C11, std_C11 = (torch.tensor(facts[key])[:, None, None] for key in ("mean", "std"))
        with torch.inference_mode():
            features = vit(weights, facts["arguments"], (raw[name] - mean_C11) / std_C11)
            expected = model({name: raw[name]})
        assert (features - expected).abs().max() < FP32_TOLERANCE
        # The negative twin: what is said of the class token matters.
        if facts["arguments"]["class_token"]:
            with torch.inference_mode():
                other = weights | {"cls_token": weights["cls_token"] + torch.randn_like(weights["cls_token"])}
                assert (vit(other, facts["arguments"], raw[name]) - expected).abs().max() > 1e-4


def test_a_class_token_that_is_not_found_is_said(tmp_path: Path, url: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(timm_names, "_STEPS", 0)
    run = make_run(tmp_path, url)
    assert exit_code(main, [str(run), "--out", str(tmp_path / "out"), "--timm"]) == 1
    assert "no class token was found" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("variant", ["xae", "learned positions", "stacked"])
def test_onnxruntime_gives_the_same_features_for_any_batch(tmp_path: Path, url: str, variant: str) -> None:
    import onnxruntime

    run = make_run(tmp_path, url, VARIANTS[variant])
    sets = ["stacked"] if variant == "stacked" else ["s1+s2", "s2"]
    out = export(run, "--onnx", *sets)
    model = inference(out).load(out)
    assert '"model.onnx"' in (out / "README.md").read_text()
    for given in sets:
        name = "model.onnx" if given in ("s1+s2", "stacked") else f"model_{given}.onnx"
        content = (out / name).read_bytes()
        assert str(tmp_path).encode() not in content and b"pipeline/export" not in content
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        for count in (1, 3):
            raw = random_images(count) | {"stacked": torch.cat([*random_images(count).values()], dim=1)}
            raw["s2"][0, 3, 2, 2] = float("nan")
            images = {sensor: raw[sensor] for sensor in given.split("+")}
            names = [output.name for output in session.get_outputs()]
            found = dict(zip(names, session.run(None, {n: x.numpy() for n, x in images.items()}), strict=True))
            expected = {"features": model(images)} | {f"tokens_{n}": x for n, x in model.tokens(images).items()}
            assert found.keys() == expected.keys()
            for output, value in expected.items():
                assert (torch.from_numpy(found[output]) - value).abs().max() < ONNX_TOLERANCE


def test_weights_too_large_for_one_file_lie_beside_the_graph(tmp_path: Path, url: str, monkeypatch) -> None:
    import onnxruntime

    from pipeline.export import onnx_file

    monkeypatch.setattr(onnx_file, "_LARGEST", 1000)
    out = export(make_run(tmp_path, url), "--onnx")
    assert (out / "model.onnx.data").exists()
    images = random_images()
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    (features,) = session.run(["features"], {name: image.numpy() for name, image in images.items()})
    assert (torch.from_numpy(features) - inference(out).load(out)(images)).abs().max() < ONNX_TOLERANCE


def test_the_same_checkpoint_gives_the_same_graph(tmp_path: Path, url: str) -> None:
    run = make_run(tmp_path, url)
    graphs = []
    for number in range(2):
        assert main([str(run), "--out", str(tmp_path / str(number)), "--onnx"]) == 0
        graphs.append((tmp_path / str(number) / "model.onnx").read_bytes())
    assert graphs[0] == graphs[1]


def test_without_onnxscript_a_graph_is_refused_before_anything_is_read(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    assert exit_code(main, ["nowhere", "--out", str(tmp_path / "out"), "--onnx"]) == 2
    assert "--onnx needs the package onnxscript" in capsys.readouterr().err


def _in_a_process_of_its_own(folder: Path, program: str) -> None:
    start = "import warnings, torch; warnings.simplefilter('ignore')\n"
    torch.save(random_images(), folder / "images.pt")
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", start + program], cwd=folder, capture_output=True, text=True, timeout=240
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.splitlines()[-1] == "well"


@_needs("terratorch")
def test_terratorch_builds_the_backbone_and_a_model_on_it(tmp_path: Path, url: str) -> None:
    _in_a_process_of_its_own(
        export(make_run(tmp_path, url)),
        f"""
import fusmae_terratorch, fusmae_inference
from terratorch.registry import BACKBONE_REGISTRY, MODEL_FACTORY_REGISTRY
torch.set_float32_matmul_precision("highest")
images, ours = torch.load("images.pt"), fusmae_inference.load(".")
assert "fusmae" in BACKBONE_REGISTRY
backbone = BACKBONE_REGISTRY.build("fusmae", out_indices=[0, -1])
first, last = backbone(images)
assert backbone.out_channels == [16, 16] and first.shape == last.shape == (2, 9, 16)
assert (last.mean(1) - ours(images)).abs().max() < {FP32_TOLERANCE}
assert (backbone(images["s1"])[1].mean(1) - ours({{"s1": images["s1"]}})).abs().max() < {FP32_TOLERANCE}
tokens, joined = ours.tokens(images), BACKBONE_REGISTRY.build("fusmae", merge="concat")
assert joined.out_channels == [32] and torch.equal(joined(images)[0], torch.cat([tokens["s1"], tokens["s2"]], 2))
assert not torch.equal(BACKBONE_REGISTRY.build("fusmae", pretrained=False)(images)[0], last)
model = MODEL_FACTORY_REGISTRY.build("EncoderDecoderFactory").build_model(
    task="segmentation", backbone="fusmae", backbone_kwargs={{"out_indices": [0, 1, 2, 2]}}, decoder="UperNetDecoder",
    decoder_kwargs={{"channels": 8}}, num_classes=3,
    necks=[{{"name": "ReshapeTokensToImage", "remove_cls_token": False}}, {{"name": "LearnedInterpolateToPyramidal"}}],
)
out = model(images).output
assert out.shape == (2, 3, 12, 12), out.shape
out.sum().backward()
assert model.encoder.model.projections["s1"].linear.weight.grad.abs().sum() > 0
print("well")
""",
    )


@_needs("torchgeo")
def test_torchgeo_knows_the_model_and_its_weights(tmp_path: Path, url: str) -> None:
    _in_a_process_of_its_own(
        export(make_run(tmp_path, url)),
        """
import fusmae_torchgeo, fusmae_inference, torchgeo.models
images, ours = torch.load("images.pt"), fusmae_inference.load(".")
weights = torchgeo.models.get_weight("FusMAE_Weights.ENCODER")
assert weights is fusmae_torchgeo.FusMAE_Weights.ENCODER and weights.url.startswith("file:///")
assert weights.meta["bands"]["s1"] == ["VV", "VH"] and weights.transforms(images) is images
assert torchgeo.models.get_model_weights("fusmae") is fusmae_torchgeo.FusMAE_Weights
model = torchgeo.models.get_model("fusmae", weights=weights)
assert torch.equal(model(images), ours(images))
assert not torch.equal(torchgeo.models.get_model("fusmae")(images), ours(images))
assert "fusmae" in torchgeo.models.list_models()
print("well")
""",
    )
