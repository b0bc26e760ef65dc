"""The published encoders at small size, written out from their files' keys: random files, and what they compute.

Nothing here is taken from `pipeline.baselines`. A file is a dictionary of random tensors under the documented names;
the features are computed from these names with plain functions of torch.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH, DEPTH = 32, 2
Weights = dict[str, Tensor]


def draw(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Weights:
    """Matrices that keep the size of what they map, scales of norms near 1, the rest small: every part counts."""
    draws, found = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        is_matrix, is_scale = len(shape) > 1 and shape[0] > 1, len(shape) == 1 and name.endswith("weight")
        size = math.prod(shape[1:]) ** -0.5 if is_matrix else 0.1
        found[name] = is_scale + size * torch.randn(shape, generator=draws)
    return found


def pairs(name: str, *weight: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def linear(x: Tensor, w: Weights, name: str) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def norm(x: Tensor, w: Weights, name: str, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w.get(f"{name}.bias"), eps)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
    return ((scores if bias is None else scores + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)


def cut(image: Tensor, size: int, order: str) -> Tensor:
    """Patches row by row, (B, N, C·P·P) with numbers band by band, or pixel by pixel."""
    patches = image.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    return (patches if order == "band by band" else patches.permute(0, 1, 3, 4, 2)).flatten(2)


# timm, DINO, Prithvi -------------------------------------------------------------------------------------------------


def timm_shapes(kernel: tuple[int, ...], tokens: int) -> dict[str, tuple[int, ...]]:
    shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, tokens, WIDTH)} | pairs("norm", WIDTH)
    shapes |= pairs("patch_embed.proj", WIDTH, *kernel)
    for block in (f"blocks.{number}" for number in range(DEPTH)):
        shapes |= pairs(f"{block}.norm1", WIDTH) | pairs(f"{block}.norm2", WIDTH)
        shapes |= pairs(f"{block}.attn.qkv", 3 * WIDTH, WIDTH) | pairs(f"{block}.attn.proj", WIDTH, WIDTH)
        shapes |= pairs(f"{block}.mlp.fc1", 4 * WIDTH, WIDTH) | pairs(f"{block}.mlp.fc2", WIDTH, 4 * WIDTH)
    return shapes


def timm_blocks(x: Tensor, w: Weights, heads: int, eps: float) -> list[Tensor]:
    """What each block gives, through the last norm."""
    found = []
    for block in (f"blocks.{number}" for number in range(DEPTH)):
        q, k, v = linear(norm(x, w, f"{block}.norm1", eps), w, f"{block}.attn.qkv").chunk(3, -1)
        x = x + linear(attend(q, k, v, heads), w, f"{block}.attn.proj")
        hidden = F.gelu(linear(norm(x, w, f"{block}.norm2", eps), w, f"{block}.mlp.fc1"))
        x = x + linear(hidden, w, f"{block}.mlp.fc2")
        found.append(norm(x, w, "norm", eps))
    return found


def timm_tokens(image: Tensor, w: Weights, positions: Tensor) -> Tensor:
    kernel = w["patch_embed.proj.weight"]
    x = F.conv2d(image, kernel, w["patch_embed.proj.bias"], stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    return torch.cat([w["cls_token"].expand(len(x), -1, -1), x], 1) + positions


def imagenet(w: Weights, images: dict[str, Tensor], heads: int = 2) -> Tensor:
    each = [timm_blocks(timm_tokens(x, w, w["pos_embed"]), w, heads, 1e-6)[-1][:, 0] for x in images.values()]
    return torch.stack(each).mean(0)


def dino_positions(table: Tensor, grid: int, side: int) -> Tensor:
    """facebookresearch/dino, interpolate_pos_encoding."""
    square = table[:, 1:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    scale = (side + 0.1) / math.sqrt(grid**2)
    resized = F.interpolate(square, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([table[:, :1], resized.permute(0, 2, 3, 1).reshape(1, side**2, -1)], 1)


def prithvi_positions(grid: int) -> Tensor:
    """Of one date: column, row, date in 6, 6 and 4 sixteenths of the width, sines then cosines; the class token 0."""

    def waves(place: int, width: int) -> list[float]:
        steps = [place / 10_000 ** (i / (width / 2)) for i in range(width // 2)]
        return [math.sin(step) for step in steps] + [math.cos(step) for step in steps]

    sixteenth = WIDTH // 16
    rows = [
        waves(column, 6 * sixteenth) + waves(row, 6 * sixteenth) + waves(0, 4 * sixteenth)
        for row in range(grid)
        for column in range(grid)
    ]
    return torch.tensor([[0.0] * WIDTH, *rows])[None]


# SatViT and CROMA ----------------------------------------------------------------------------------------------------


def layer_shapes(prefix: str, cross: bool = False) -> dict[str, tuple[int, ...]]:
    mlp = 1 + cross
    shapes = {f"{prefix}.0.to_qkv.weight": (3 * WIDTH, WIDTH)}
    shapes |= pairs(f"{prefix}.0.input_norm", WIDTH) | pairs(f"{prefix}.0.to_out", WIDTH, WIDTH)
    shapes |= pairs(f"{prefix}.{mlp}.input_norm", WIDTH)
    shapes |= pairs(f"{prefix}.{mlp}.net.0", 4 * WIDTH, WIDTH) | pairs(f"{prefix}.{mlp}.net.3", WIDTH, 4 * WIDTH)
    if cross:
        shapes |= {f"{prefix}.1.to_{part}.weight": (WIDTH, WIDTH) for part in "qkv"}
        shapes |= pairs(f"{prefix}.1.input_norm", WIDTH) | pairs(f"{prefix}.1.to_out", WIDTH, WIDTH)
    return shapes


def layer(x: Tensor, w: Weights, prefix: str, heads: int, bias: Tensor | None, context: Tensor | None = None) -> Tensor:
    q, k, v = linear(norm(x, w, f"{prefix}.0.input_norm", 1e-5), w, f"{prefix}.0.to_qkv").chunk(3, -1)
    x = x + linear(attend(q, k, v, heads, bias), w, f"{prefix}.0.to_out")
    if context is not None:
        asking, asked = (norm(y, w, f"{prefix}.1.input_norm", 1e-5) for y in (x, context))
        q, k, v = (linear(y, w, f"{prefix}.1.to_{n}") for y, n in ((asking, "q"), (asked, "k"), (asked, "v")))
        x = x + linear(attend(q, k, v, heads, bias), w, f"{prefix}.1.to_out")
    mlp = f"{prefix}.{1 if context is None else 2}"
    hidden = F.gelu(linear(norm(x, w, f"{mlp}.input_norm", 1e-5), w, f"{mlp}.net.0"))
    return x + linear(hidden, w, f"{mlp}.net.3")


def satvit_file(patch_size: int, size: int) -> Weights:
    shapes = {"pos_embed": (1, (size // patch_size) ** 2, WIDTH)} | pairs("encoder.norm_out", WIDTH)
    shapes |= pairs("linear_input", WIDTH, 15 * patch_size**2)
    for number in range(DEPTH):
        shapes |= layer_shapes(f"encoder.layers.{number}")
    shapes |= {"mask_token": (1, 1, 8), "decoder_pos_embed": (1, 4, 8)} | pairs("enc_to_dec", 8, WIDTH)
    return draw(shapes | pairs("decoder.norm_out", 8) | pairs("linear_output", 12, 8))


def satvit(w: Weights, stack: Tensor, patch_size: int, heads: int = 2) -> Tensor:
    x = linear(cut(stack, patch_size, "band by band"), w, "linear_input") + w["pos_embed"]
    for number in range(DEPTH):
        x = layer(x, w, f"encoder.layers.{number}", heads, None)
    return norm(x, w, "encoder.norm_out", 1e-5).mean(1)


def croma_file() -> dict[str, Weights]:
    nested = {}
    for name, channels, depth in (("s1", 2, DEPTH // 2), ("s2", 12, DEPTH)):
        shapes = pairs("linear_input", WIDTH, channels * 64) | pairs("transformer.norm_out", WIDTH)
        for number in range(depth):
            shapes |= layer_shapes(f"transformer.layers.{number}")
        nested[f"{name}_encoder"] = draw(shapes, channels)
        pooled = pairs("0", WIDTH) | pairs("1", 4 * WIDTH, WIDTH) | pairs("3", WIDTH, 4 * WIDTH)
        nested[f"{name}_GAP_FFN"] = draw(pooled, channels + 1)
    shapes = pairs("norm_out", WIDTH)
    for number in range(DEPTH // 2):
        shapes |= layer_shapes(f"layers.{number}", cross=True)
    return nested | {"joint_encoder": draw(shapes, 7)}


def croma(w: dict[str, Weights], images: dict[str, Tensor], heads: int = 16) -> Tensor:
    bias = _croma_bias(heads, next(iter(images.values())).shape[-1] // 8)
    tokens = {}
    for name, image in images.items():
        own = w[f"{name}_encoder"]
        x = linear(cut(image, 8, "band by band"), own, "linear_input")
        for number in range(DEPTH // 2 if name == "s1" else DEPTH):
            x = layer(x, own, f"transformer.layers.{number}", heads, bias)
        tokens[name] = norm(x, own, "transformer.norm_out", 1e-5)
    if len(tokens) == 1:
        ((name, x),) = tokens.items()
        own = w[f"{name}_GAP_FFN"]
        return linear(F.gelu(linear(norm(x.mean(1), own, "0", 1e-5), own, "1")), own, "3")
    x = tokens["s1"]
    for number in range(DEPTH // 2):
        x = layer(x, w["joint_encoder"], f"layers.{number}", heads, bias, tokens["s2"])
    return norm(x, w["joint_encoder"], "norm_out", 1e-5).mean(1)


def _croma_bias(heads: int, grid: int) -> Tensor:
    places = [(row, column) for row in range(grid) for column in range(grid)]
    first = 2 ** (-(2 ** -(math.log2(heads) - 3)))
    distances = [[math.dist(a, b) for b in places] for a in places]
    return torch.tensor([[[-d * first ** (h + 1) for d in row] for row in distances] for h in range(heads)])[None]


# TerraMind -----------------------------------------------------------------------------------------------------------


def terramind_file(grid: int) -> Weights:
    shapes: dict[str, tuple[int, ...]] = {"encoder_norm.weight": (WIDTH,), "encoder_norm.bias": (WIDTH,)}
    for sensor, channels in (("sen1grd", 2), ("sen2l2a", 12), ("dem", 1)):
        key = f"encoder_embeddings.untok_{sensor}@224"
        shapes |= {f"{key}.pos_emb": (1, grid**2, WIDTH), f"{key}.mod_emb": (1, 1, WIDTH)}
        shapes |= {f"{key}.proj.weight": (WIDTH, channels * 256)}
    hidden = 2 * 4 * WIDTH // 3
    for block in (f"encoder.{number}" for number in range(DEPTH)):
        shapes |= pairs(f"{block}.norm1", WIDTH) | pairs(f"{block}.norm2", WIDTH)
        shapes |= {f"{block}.attn.qkv.weight": (3 * WIDTH, WIDTH), f"{block}.attn.proj.weight": (WIDTH, WIDTH)}
        shapes |= {f"{block}.mlp.fc1.weight": (hidden, WIDTH), f"{block}.mlp.fc3.weight": (hidden, WIDTH)}
        shapes |= {f"{block}.mlp.fc2.weight": (WIDTH, hidden)}
    found = draw(shapes | {"mask_token": (1, 1, WIDTH), "decoder.0.norm1.weight": (WIDTH,)})
    # Norms have no bias that is trained: zeros are stored.
    return {name: value * (not (name.endswith("bias") and "norm" in name)) for name, value in found.items()}


def terramind(w: Weights, images: dict[str, Tensor], heads: int = 2) -> Tensor:
    parts = []
    for name, image in images.items():
        key = f"encoder_embeddings.untok_{'sen1grd' if name == 's1' else 'sen2l2a'}@224"
        parts.append(linear(cut(image, 16, "pixel by pixel"), w, f"{key}.proj") + w[f"{key}.pos_emb"])
        parts[-1] = parts[-1] + w[f"{key}.mod_emb"]
    x = torch.cat(parts, 1)
    for block in (f"encoder.{number}" for number in range(DEPTH)):
        q, k, v = linear(norm(x, w, f"{block}.norm1", 1e-6), w, f"{block}.attn.qkv").chunk(3, -1)
        x = x + linear(attend(q, k, v, heads), w, f"{block}.attn.proj")
        y = norm(x, w, f"{block}.norm2", 1e-6)
        gated = F.silu(linear(y, w, f"{block}.mlp.fc1")) * linear(y, w, f"{block}.mlp.fc3")
        x = x + linear(gated, w, f"{block}.mlp.fc2")
    return norm(x, w, "encoder_norm", 1e-6).mean(1)


def nested(file: Any, prefix: str) -> Any:
    return {f"{prefix}{name}": value for name, value in file.items()}
