"""Published encoders in the programs that others load them with, beside ours: the same features.

Those packages need not be here: a test whose package is missing is skipped. They run in processes of their own, for
they warn when they are imported. The networks are small, their weights random, and saved as the published files are.
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.baselines import croma, dino_mm, imagenet, prithvi, terramind
from tests.unit.pipeline.test_baselines import load

TOLERANCE = 1e-5
START = """
import torch
from functools import partial

torch.set_float32_matmul_precision("highest")
NORM = partial(torch.nn.LayerNorm, eps=1e-6)

def drawn(model):
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 1.0 if p.ndim == 1 and "norm" in name and name.endswith("weight") else 0.0
            p.copy_(scale + torch.randn(p.shape, generator=draws) * (0.1 if p.ndim == 1 else 0.04))
    return model.eval()

def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

def keep(file, cases):
    torch.save(file, "file.pt")
    torch.save(cases, "cases.pt")
"""


def _needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"needs the optional package {package}")


def _compare(folder: Path, name: str, network: nn.Module, program: str) -> None:
    """The features that `program` keeps for its inputs are those of our network with its file."""
    command = [sys.executable, "-W", "ignore", "-c", START + "with torch.inference_mode():\n" + program]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    file: Any = torch.load(folder / "file.pt")
    cases: list[tuple[dict[str, Tensor], Tensor]] = torch.load(folder / "cases.pt")
    load(name, network, file, folder)
    with torch.inference_mode():
        for images, expected in cases:
            assert expected.abs().max() > 0.1
            assert (network(images) - expected).abs().max() < TOLERANCE


@_needs("timm")
def test_timms_vit_gives_the_features_of_imagenet_vit(tmp_path: Path) -> None:
    network = imagenet.PictureViT(channels=3, patch_size=32, grid=7, width=64, depth=3, heads=4)
    program = """
    import timm
    vit = drawn(timm.models.VisionTransformer(
        img_size=224, patch_size=32, embed_dim=64, depth=3, num_heads=4, num_classes=5, norm_layer=NORM))
    of = lambda image: vit.forward_head(vit.forward_features(image), pre_logits=True)
    a, b = noise(2, 3, 224, 224), noise(2, 3, 224, 224, seed=2)
    keep(vit.state_dict(), [({"s2": a}, of(a)), ({"s1": b, "s2": a}, (of(a) + of(b)) / 2)])
"""
    _compare(tmp_path, "imagenet_vit_s", network, program)


@_needs("timm")
def test_timms_vit_gives_the_features_of_dino_mm(tmp_path: Path) -> None:
    network = dino_mm.DinoViT(channels=14, patch_size=8, grid=14, width=48, depth=5, heads=3)
    program = """
    import timm
    vit = drawn(timm.models.VisionTransformer(
        img_size=112, patch_size=8, in_chans=14, embed_dim=48, depth=5, num_heads=3, num_classes=0, norm_layer=NORM))
    stack = noise(2, 14, 112, 112)
    last = vit.get_intermediate_layers(stack, n=4, return_prefix_tokens=True, norm=True)
    teacher = {f"backbone.{key}": value for key, value in vit.state_dict().items()} | {"head.mlp.0.bias": noise(2)}
    keep({"student": {}, "teacher": teacher}, [({"stack": stack}, torch.cat([x[1][:, 0] for x in last], 1))])
"""
    _compare(tmp_path, "dino_mm", network, program)


@_needs("torchgeo")
def test_torchgeos_croma_gives_the_same_features(tmp_path: Path) -> None:
    program = """
    from torchgeo.models import CROMA
    model = drawn(CROMA(encoder_dim=64, encoder_depth=4))
    parts = ("s1_encoder", "s1_GAP_FFN", "s2_encoder", "s2_GAP_FFN", "joint_encoder")
    s1, s2 = noise(2, 2, 120, 120), noise(2, 12, 120, 120, seed=2)
    out = model(s1, s2)
    cases = [({"s1": s1}, out["sar_GAP"]), ({"s2": s2}, out["optical_GAP"]), ({"s1": s1, "s2": s2}, out["joint_GAP"])]
    keep({part: getattr(model, part).state_dict() for part in parts}, cases)
"""
    _compare(tmp_path, "croma_base", croma.Croma(64, 4), program)


@_needs("terratorch")
def test_terratorchs_prithvi_gives_the_same_features(tmp_path: Path) -> None:
    program = """
    from terratorch.models.backbones.prithvi_mae import PrithviMAE, PrithviViT
    sizes = dict(in_chans=6, embed_dim=96, depth=3, num_heads=4, patch_size=(1, 14, 14))
    several = drawn(PrithviMAE(num_frames=4, decoder_depth=1, decoder_embed_dim=32, decoder_num_heads=2, **sizes))
    one = PrithviViT(num_frames=1, **sizes).eval()
    weights = several.encoder.state_dict()
    one.load_state_dict(weights | {"pos_embed": one.pos_embed})
    image = noise(2, 6, 224, 224)
    keep(several.state_dict(), [({"s2": image}, one.forward_features(image)[-1][:, 1:].mean(1))])
"""
    network = prithvi.OneDateViT(patch_size=14, width=96, depth=3, heads=4)
    _compare(tmp_path, "prithvi_v2_600", network, program)


@_needs("terratorch")
def test_terratorchs_terramind_gives_the_same_features(tmp_path: Path) -> None:
    program = """
    from terratorch.models.backbones.terramind.model.terramind_vit import TerraMindViT
    from terratorch.models.backbones.terramind.model.tm_utils import LayerNorm
    model = drawn(TerraMindViT(
        modalities=["S1GRD", "S2L2A", "DEM"], merge_method=None, dim=48, encoder_depth=3, num_heads=3, qkv_bias=False,
        proj_bias=False, mlp_bias=False, norm_layer=partial(LayerNorm, eps=1e-6, bias=False), act_layer=torch.nn.SiLU,
        gated_mlp=True))
    of = lambda **images: model(images)[-1].mean(1)
    s1, s2 = noise(2, 2, 224, 224), noise(2, 12, 224, 224, seed=2)
    cases = [({"s1": s1}, of(S1GRD=s1)), ({"s2": s2}, of(S2L2A=s2)), ({"s1": s1, "s2": s2}, of(S1GRD=s1, S2L2A=s2))]
    keep(model.state_dict(), cases)
"""
    _compare(tmp_path, "terramind_v1_base", terramind.TerraMind(48, 3, 3), program)
