"""The transformer of SatViT and CROMA, which are by one author: its keys, and the blocks of ours that compute the same.

`layers.N.0` normalises and attends, `layers.N.1` normalises and is the MLP: a pre-norm block whose map to q, k and v
has no bias. LayerNorms have torch's epsilon.
"""

from typing import Final

from torch import nn

from pipeline.baselines.key_map import Place, block_places
from pipeline.baselines.vit import make_block

NORM_EPS: Final = 1e-5
_QKV_BIAS: Final = "attention.qkv.bias"


def make_blocks(width: int, depth: int, heads: int) -> nn.ModuleList:
    """Blocks for `self_places`."""
    return nn.ModuleList(make_block(width, heads, NORM_EPS, qkv_bias=False) for _ in range(depth))


def self_places(theirs: str, ours: str, depth: int, mlp: int = 1) -> dict[str, Place]:
    """Of `depth` layers; `mlp` is the MLP's number in a layer."""
    layers = {
        "0.input_norm": "norm1",
        "0.to_qkv": "attention.qkv",
        "0.to_out": "attention.proj",
        f"{mlp}.input_norm": "norm2",
        f"{mlp}.net.0": "mlp.fc1",
        f"{mlp}.net.3": "mlp.fc2",
    }
    places: dict[str, Place] = {}
    for number in range(depth):
        places |= block_places(f"{theirs}.layers.{number}.", f"{ours}.{number}.", layers, ("0.to_qkv.bias",))
    return places


def constant_names(ours: str, depth: int) -> tuple[str, ...]:
    """Our parameters of these blocks that stay 0."""
    return tuple(f"{ours}.{number}.{_QKV_BIAS}" for number in range(depth))
