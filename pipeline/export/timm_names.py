"""Each sensor's encoder as a VisionTransformer of timm: the same features, under timm's names.

A ViT has one stream of tokens, so it is what the encoder makes of one sensor alone. With fusion `xae` the first block
then has nothing to attend to and is x + MLP(LN(x)): in timm a block whose attention's last map is 0. The global token
joins behind that block; timm's class token goes through it. So its value before is sought, c + MLP(LN(c)) = g. There is
one, by Brouwer's theorem: a LayerNorm's values are bounded, so c -> g - MLP(LN(c)) takes some ball into itself.

Shape legend: D width of a token, P pixels of a patch's side, C bands.
"""

import copy
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from pipeline.errors import CheckpointError
from pipeline.export.folder import save_weights, write_json
from pipeline.export.fusmae_inference import MLP, CrossAttentionBlock, FusMAE
from pipeline.export.source import Source

_TOLERANCE: Final = 2e-6
"""By how much of the largest number before it the first block may miss the global token; fp32 rounds to 5e-7."""
_STARTS: Final = 8
_STEPS: Final = 200


def write_timm(source: Source, folder: Path) -> None:
    """Write SENSOR.safetensors for each sensor, and config.json with the arguments of timm's VisionTransformer."""
    folder.mkdir()
    model = source.encoder()
    token_D = class_token(model)
    about = {}
    for name in model.bands:
        save_weights(vit_weights(model, name, token_D), folder / f"{name}.safetensors")
        facts = [model.data_set["bands"].get(band, {"mean": 0.0, "std": 1.0}) for band in model.bands[name]]
        about[name] = {
            "arguments": vit_arguments(model, name),
            "bands": list(model.bands[name]),
            "mean": [fact["mean"] for fact in facts],
            "std": [fact["std"] or 1.0 for fact in facts],
        }
    write_json(about, folder / "config.json")


def vit_arguments(model: FusMAE, name: str) -> dict[str, Any]:
    """With these timm.models.VisionTransformer has the shapes of `vit_weights`, and gives features."""
    config = model.config["model"]
    return {
        "img_size": model.image_size,
        "patch_size": model.patch_size,
        "in_chans": len(model.bands[name]),
        "num_classes": 0,
        "global_pool": "avg",
        "fc_norm": False,
        "embed_dim": model.width,
        "depth": config["depth"],
        "num_heads": config["heads"],
        "mlp_ratio": config["mlp_ratio"],
        "class_token": config["global_token"],
    }


@torch.no_grad()
def vit_weights(model: FusMAE, name: str, token_D: Tensor | None) -> dict[str, Tensor]:
    """The state dict of the ViT of one sensor, with the class token."""
    encoder, width, size = model.encoder, model.width, model.patch_size
    linear = model.projections[name].state_dict()
    kernel_DPPC = linear["linear.weight"].unflatten(1, (size, size, -1))
    weights = {
        "patch_embed.proj.weight": kernel_DPPC.permute(0, 3, 1, 2).contiguous(),
        "patch_embed.proj.bias": linear["linear.bias"].clone(),
        "norm.weight": encoder.norm.weight.clone(),
        "norm.bias": encoder.norm.bias.clone(),
    }
    positions_1ND = model.positions().clone()
    blocks: list[nn.Module] = [*encoder.blocks]
    if encoder.fusion is not None:
        blocks = [encoder.fusion, *blocks]
    if token_D is not None:
        weights["cls_token"] = token_D.clone()[None, None]
        positions_1ND = torch.cat([torch.zeros(1, 1, width), positions_1ND], dim=1)
    weights["pos_embed"] = positions_1ND
    for number, block in enumerate(blocks):
        weights |= {f"blocks.{number}.{key}": value.clone() for key, value in _block_weights(block, name).items()}
    return weights


def _block_weights(block: nn.Module, name: str) -> dict[str, Tensor]:
    state = block.state_dict()
    if not isinstance(block, CrossAttentionBlock):
        return {key.replace("attention.", "attn."): value for key, value in state.items()}
    own = f"cross_attention.{'shared' if block.shared else name}."
    weights = {key: value for key, value in state.items() if not key.startswith("cross_attention.")}
    for kind in ("weight", "bias"):
        # Trained, and without effect behind a map that is 0; a training that goes on can bring them back.
        weights[f"attn.qkv.{kind}"] = torch.cat([state[f"{own}q.{kind}"], state[f"{own}kv.{kind}"]])
        weights[f"attn.proj.{kind}"] = torch.zeros_like(state[f"{own}proj.{kind}"])
    return weights


@torch.no_grad()
def class_token(model: FusMAE) -> Tensor | None:
    """(D,) timm's class token, the same for all sensors; CheckpointError when 8 starts of Newton do not find it."""
    block, token_D = model.encoder.fusion, model.encoder.global_token_D
    if block is None or token_D is None:
        return token_D
    wanted_D = token_D.double()
    draws = torch.Generator().manual_seed(0)
    smallest = float("inf")
    for start in range(_STARTS):
        first_D = wanted_D if not start else torch.randn(wanted_D.shape, generator=draws, dtype=torch.float64)
        found_D = _newton(block, first_D, wanted_D).float()
        after_D = found_D + block.mlp(block.norm2(found_D))
        missed = float((after_D - wanted_D).abs().max() / found_D.abs().max().clamp(min=1))
        if missed <= _TOLERANCE:
            return found_D
        smallest = min(smallest, missed)
    raise CheckpointError(
        f"no class token was found that the first block makes the global token of (it misses by {smallest:.1e});"
        " export without --timm"
    )


def _newton(block: CrossAttentionBlock, c_D: Tensor, wanted_D: Tensor) -> Tensor:
    """Newton's method in float64; a step that makes the residual no smaller is halved, twenty times at most."""
    norm, mlp = copy.deepcopy(block.norm2).double(), copy.deepcopy(block.mlp).double()

    def missing(c_D: Tensor) -> Tensor:
        residual_D: Tensor = c_D + mlp(norm(c_D)) - wanted_D
        return residual_D

    c_D = c_D - missing(c_D)
    residual_D = missing(c_D)
    for _ in range(_STEPS):
        if float(residual_D.abs().max()) < 1e-13:
            break
        step_D = torch.linalg.solve(_jacobian(norm, mlp, c_D), residual_D)
        share = 1.0
        while share > 1e-6 and not float(missing(c_D - share * step_D).norm()) < float(residual_D.norm()):
            share /= 2
        if share <= 1e-6:
            break
        c_D = c_D - share * step_D
        residual_D = missing(c_D)
    return c_D


def _jacobian(norm: nn.LayerNorm, mlp: MLP, c_D: Tensor) -> Tensor:
    """(D, D): the derivative of c + MLP(LN(c))."""
    one_DD, width = torch.eye(len(c_D), dtype=c_D.dtype), len(c_D)
    std = (c_D.var(correction=0) + norm.eps).sqrt()
    z_D = (c_D - c_D.mean()) / std
    of_norm_DD = norm.weight[:, None] * (one_DD - 1 / width - z_D[:, None] * z_D / width) / std
    h = mlp.fc1(norm(c_D))
    slope = (1 + torch.erf(h / 2**0.5)) / 2 + h * torch.exp(-(h**2) / 2) / (2 * torch.pi) ** 0.5
    return one_DD + (mlp.fc2.weight * slope) @ (mlp.fc1.weight @ of_norm_DD)
