"""CROMA (Fuller, Millard and Green, NeurIPS 2023): an encoder for radar, one for optical images, one that joins them.

Radar's tokens ask optical ones in the joint encoder. Where patches are is told by 2D-ALiBi: attention scores fall with
the distance of two patches, by a slope for each head. Architecture, keys and preprocessing: antofuller/CROMA,
pretrain_croma.py and README.md, and IBM/terratorch, terratorch/models/backbones/croma.py, which loads the same file.

The README scales with the mean and deviation of the batch at hand. Then a sample's features depend on its neighbours in
the batch, so here they are the data set's.

Shape legend: B batch, C bands, S pixels of a side, N patches, D width, H heads.
"""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn

from fusmae.attention import CrossAttention
from fusmae.encoder import MLP
from pipeline.baselines.band_scaling import eight_bit
from pipeline.baselines.interface import S1_DB, S2_L2A, BandFacts, Baseline, Sensor
from pipeline.baselines.key_map import KeyMap, Place
from pipeline.baselines.resizing import bilinear
from pipeline.baselines.satvit_blocks import NORM_EPS, constant_names, make_blocks, self_places
from pipeline.baselines.vit import draw_weights, leave_at_zero, make_block

_SIZE: Final = 120
_PATCH: Final = 8
_HEADS: Final = 16
_BANDS: Final = {"s1": S1_DB, "s2": S2_L2A}


class SensorEncoder(nn.Module):
    """Blocks over the patches of one sensor, and the MLP that makes one vector of their mean."""

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(channels, width, _PATCH, stride=_PATCH)
        self.blocks = make_blocks(width, depth, _HEADS)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.pooled_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.pooled_mlp = MLP(width, 4 * width)

    def forward(self, image_BCSS: Tensor, bias_1HNN: Tensor) -> Tensor:
        """Tokens (B, N, D)."""
        x_BND = self.projection(image_BCSS).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x_BND = block(x_BND, bias_1HNN)
        tokens_BND: Tensor = self.norm(x_BND)
        return tokens_BND

    def pooled(self, tokens_BND: Tensor) -> Tensor:
        """(B, D)."""
        vector_BD: Tensor = self.pooled_mlp(self.pooled_norm(tokens_BND.mean(1)))
        return vector_BD


class JointBlock(nn.Module):
    """Radar's tokens attend to themselves, then to the optical ones, then the MLP; one norm serves both sides."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.own = make_block(width, _HEADS, NORM_EPS, qkv_bias=False)
        self.cross_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.cross = CrossAttention(width, _HEADS, "sdpa")
        for layer in (self.cross.q, self.cross.kv):
            leave_at_zero(layer.bias)

    def forward(self, x_BND: Tensor, context_BND: Tensor, bias_1HNN: Tensor) -> Tensor:
        """(B, N, D)."""
        own = self.own
        x_BND = x_BND + own.attention(own.norm1(x_BND), bias_1HNN)
        x_BND = x_BND + self.cross(self.cross_norm(x_BND), self.cross_norm(context_BND), bias_1HNN)
        out_BND: Tensor = x_BND + own.mlp(own.norm2(x_BND))
        return out_BND


class Croma(nn.Module):
    """The three encoders."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.width, self.depth = width, depth
        self.s1 = SensorEncoder(len(S1_DB), width, depth // 2)
        self.s2 = SensorEncoder(len(S2_L2A), width, depth)
        self.joint = nn.ModuleList(JointBlock(width) for _ in range(depth // 2))
        self.joint_norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        """(B, D): a sensor's pooled vector, or the mean of the joint tokens."""
        first = next(iter(images.values()))
        bias_1HNN = distance_bias(_HEADS, first.shape[-1] // _PATCH, first.device)
        encoders = {"s1": self.s1, "s2": self.s2}
        tokens = {name: encoders[name](image, bias_1HNN) for name, image in images.items()}
        if len(tokens) == 1:
            name, tokens_BND = next(iter(tokens.items()))
            return encoders[name].pooled(tokens_BND)
        x_BND = tokens["s1"]
        for block in self.joint:
            x_BND = block(x_BND, tokens["s2"], bias_1HNN)
        features_BD: Tensor = self.joint_norm(x_BND).mean(1)
        return features_BD


def distance_bias(heads: int, grid: int, device: torch.device) -> Tensor:
    """(1, H, N, N) of a square grid: minus the distance of two patches, times the head's slope.

    Of a power of two of heads the slopes are 2 ** (-8 i / heads) for i from 1 on (ALiBi; CROMA section 3).
    """
    place_N = torch.arange(grid, dtype=torch.float64)
    place_N2 = torch.cartesian_prod(place_N, place_N)
    distance_NN = torch.cdist(place_N2, place_N2, compute_mode="donot_use_mm_for_euclid_dist")
    slope_H = 2.0 ** (-8 / heads * torch.arange(1, heads + 1, dtype=torch.float64))
    return (-slope_H[:, None, None] * distance_NN).float()[None].to(device)


def prepare(images: Mapping[str, Tensor], facts: Mapping[str, BandFacts]) -> dict[str, Tensor]:
    """Each band from 0 to 1 in 256 levels, 120 pixels."""
    scaled = {}
    for name, image_BCSS in images.items():
        mean_std = [(facts[band].mean, facts[band].std) for band in _BANDS[name]]
        scaled[name] = eight_bit(bilinear(image_BCSS, _SIZE), mean_std) / 255
    return scaled


def _make(width: int, depth: int, tensors: Mapping[str, Tensor]) -> nn.Module:
    del tensors
    network = Croma(width, depth)
    draw_weights(network)
    return network


def key_map(network: nn.Module) -> KeyMap:
    """Of the file's five parts: s1_encoder, s1_GAP_FFN, s2_encoder, s2_GAP_FFN, joint_encoder."""
    assert isinstance(network, Croma)
    width, depth = network.width, network.depth
    places: dict[str, Place] = {}
    constant: tuple[str, ...] = ()
    for name, own_depth in (("s1", depth // 2), ("s2", depth)):
        kernel = tuple(getattr(network, name).projection.weight.shape)
        theirs = f"{name}_encoder"
        places |= _kernel_places(f"{theirs}.linear_input", f"{name}.projection", kernel)
        places |= self_places(f"{theirs}.transformer", f"{name}.blocks", own_depth)
        places |= _pair(f"{theirs}.transformer.norm_out", f"{name}.norm")
        for number, layer in ((0, "pooled_norm"), (1, "pooled_mlp.fc1"), (3, "pooled_mlp.fc2")):
            places |= _pair(f"{name}_GAP_FFN.{number}", f"{name}.{layer}")
        constant += constant_names(f"{name}.blocks", own_depth)
    for number in range(depth // 2):
        places |= _joint_places(f"joint_encoder.layers.{number}", f"joint.{number}", width)
        constant += tuple(f"joint.{number}.{part}.bias" for part in ("own.attention.qkv", "cross.q", "cross.kv"))
    places |= _pair("joint_encoder.norm_out", "joint_norm")
    return KeyMap(places=places, constant=constant)


def _kernel_places(theirs: str, ours: str, kernel: tuple[int, ...]) -> dict[str, Place]:
    weight = Place(
        name=f"{ours}.weight",
        shape=(kernel[0], kernel[1] * kernel[2] * kernel[3]),
        # A patch's numbers lie band by band, as in a kernel.
        convert=lambda value: value.reshape(kernel),
    )
    return {f"{theirs}.weight": weight, f"{theirs}.bias": Place(name=f"{ours}.bias")}


def _joint_places(theirs: str, ours: str, width: int) -> dict[str, Place]:
    places = {
        f"{theirs}.0.to_qkv.weight": Place(name=f"{ours}.own.attention.qkv.weight"),
        f"{theirs}.1.to_q.weight": Place(name=f"{ours}.cross.q.weight"),
        f"{theirs}.1.to_k.weight": Place(name=f"{ours}.cross.kv.weight", rows=(0, width)),
        f"{theirs}.1.to_v.weight": Place(name=f"{ours}.cross.kv.weight", rows=(width, 2 * width)),
    }
    for old, new in (
        ("0.input_norm", "own.norm1"),
        ("0.to_out", "own.attention.proj"),
        ("1.input_norm", "cross_norm"),
        ("1.to_out", "cross.proj"),
        ("2.input_norm", "own.norm2"),
        ("2.net.0", "own.mlp.fc1"),
        ("2.net.3", "own.mlp.fc2"),
    ):
        places |= _pair(f"{theirs}.{old}", f"{ours}.{new}")
    return places


def _pair(theirs: str, ours: str) -> dict[str, Place]:
    return {f"{theirs}.{part}": Place(name=f"{ours}.{part}") for part in ("weight", "bias")}


def _baseline(size: str, width: int, depth: int) -> Baseline:
    return Baseline(
        name=f"croma_{size}",
        title=f"CROMA, ViT-{size[0].upper()}/8",
        sensors=(Sensor(name="s1", bands=S1_DB), Sensor(name="s2", bands=S2_L2A)),
        input_size=_SIZE,
        width=width,
        resize="bilinear",
        normalisation="each band's mean minus to plus two deviations as 256 levels from 0 to 1; of the data set's"
        " split train, where CROMA's README has those of the batch",
        feature="a sensor alone: CROMA's SAR_GAP or optical_GAP; both: joint_GAP",
        source="antofuller/CROMA, pretrain_croma.py, README.md; IBM/terratorch, terratorch/models/backbones/croma.py",
        file=f"CROMA_{size}.pt",
        verified="the network, small and with random weights, against torchgeo 0.8.1's CROMA: within 2.4e-7",
        needs_statistics=True,
        make=lambda tensors: _make(width, depth, tensors),
        prepare=prepare,
        key_map=key_map,
    )


BASELINES: Final = {baseline.name: baseline for baseline in (_baseline("base", 768, 12), _baseline("large", 1024, 24))}
