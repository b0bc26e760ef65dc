"""TerraMind 1.0 (Jakubik et al. 2025): one encoder over the tokens of all sensors, with gated MLPs and no biases.

Architecture, keys and preprocessing: IBM/terratorch, terratorch/models/backbones/terramind/model/terramind_vit.py,
encoder_embeddings.py, tm_utils.py and terramind_register.py. Its files hold more sensors and a decoder; here S1 is its
sen1grd (dB) and S2 its sen2l2a (digital numbers). A band that is absent is its mean; terratorch leaves the band's
weights out, which is the same.

Shape legend: B batch, C bands, S pixels of a side, P pixels of a patch's side, N tokens, D width.
"""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from fusmae.attention import SelfAttention
from pipeline.baselines.band_scaling import standardised
from pipeline.baselines.interface import S1_DB, S2_L2A, BandFacts, Baseline, Sensor
from pipeline.baselines.key_map import KeyMap, Place
from pipeline.baselines.resizing import bilinear
from pipeline.baselines.vit import draw_weights, leave_at_zero

_SIZE: Final = 224
_PATCH: Final = 16
_BANDS: Final = {"s1": S1_DB, "s2": S2_L2A}
_THEIRS: Final = {"s1": "untok_sen1grd@224", "s2": "untok_sen2l2a@224"}
_MEAN_STD: Final[dict[str, tuple[float, float]]] = {
    "B01": (1390.458, 2106.761),
    "B02": (1503.317, 2141.107),
    "B03": (1718.197, 2038.973),
    "B04": (1853.91, 2134.138),
    "B05": (2199.1, 2085.321),
    "B06": (2779.975, 1889.926),
    "B07": (2987.011, 1820.257),
    "B08": (3083.234, 1871.918),
    "B8A": (3132.22, 1753.829),
    "B09": (3162.988, 1797.379),
    "B11": (2424.884, 1434.261),
    "B12": (1857.648, 1334.311),
    "VV": (-12.599, 5.195),
    "VH": (-20.293, 5.890),
}


class GatedMLP(nn.Module):
    """SwiGLU: one map, through SiLU, gates another; two thirds as wide as a plain MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 2 * 4 * width // 3
        self.fc1 = nn.Linear(width, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, width, bias=False)
        self.fc3 = nn.Linear(width, hidden, bias=False)

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D)."""
        out_BND: Tensor = self.fc2(functional.silu(self.fc1(x_BND)) * self.fc3(x_BND))
        return out_BND


class GatedBlock(nn.Module):
    """A pre-norm block whose maps and norms have no biases: those of the attention stay 0."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6, bias=False)
        self.attention = SelfAttention(width, heads, "sdpa")
        self.norm2 = nn.LayerNorm(width, eps=1e-6, bias=False)
        self.mlp = GatedMLP(width)
        for layer in (self.attention.qkv, self.attention.proj):
            leave_at_zero(layer.bias)

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D)."""
        x_BND = x_BND + self.attention(self.norm1(x_BND))
        out_BND: Tensor = x_BND + self.mlp(self.norm2(x_BND))
        return out_BND


class SensorEmbedding(nn.Module):
    """Patches of one sensor, with their places and the sensor's own vector."""

    def __init__(self, channels: int, width: int, grid: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(channels, width, _PATCH, stride=_PATCH, bias=False)
        self.positions_1ND = nn.Parameter(torch.zeros(1, grid**2, width))
        self.sensor_11D = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, image_BCSS: Tensor) -> Tensor:
        """(B, N, D)."""
        tokens_BND: Tensor = self.projection(image_BCSS).flatten(2).transpose(1, 2)
        return tokens_BND + self.positions_1ND + self.sensor_11D


class TerraMind(nn.Module):
    """The encoder; the feature is the mean of the tokens of all given sensors."""

    def __init__(self, width: int, depth: int, heads: int, size: int = _SIZE) -> None:
        super().__init__()
        grid = size // _PATCH
        self.sensors = nn.ModuleDict({name: SensorEmbedding(len(_BANDS[name]), width, grid) for name in _BANDS})
        self.blocks = nn.ModuleList(GatedBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, bias=False)

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        """(B, D)."""
        x_BND = torch.cat([self.sensors[name](image_BCSS) for name, image_BCSS in images.items()], dim=1)
        for block in self.blocks:
            x_BND = block(x_BND)
        features_BD: Tensor = self.norm(x_BND).mean(1)
        return features_BD


def prepare(images: Mapping[str, Tensor], facts: Mapping[str, BandFacts]) -> dict[str, Tensor]:
    """Images of 224 pixels by sensor."""
    del facts
    return {name: bilinear(standardised(image, _BANDS[name], _MEAN_STD), _SIZE) for name, image in images.items()}


def key_map(network: nn.Module) -> KeyMap:
    """Of `encoder_embeddings.SENSOR`, `encoder.N` and `encoder_norm`.

    Biases of norms are stored, as zeros, and not used; nor are other sensors and the decoder.
    """
    assert isinstance(network, TerraMind)
    places: dict[str, Place] = {}
    for ours, theirs in _THEIRS.items():
        key, name = f"encoder_embeddings.{theirs}", f"sensors.{ours}"
        kernel = tuple(network.get_parameter(f"{name}.projection.weight").shape)
        places |= {
            f"{key}.pos_emb": Place(name=f"{name}.positions_1ND"),
            f"{key}.mod_emb": Place(name=f"{name}.sensor_11D"),
            f"{key}.proj.weight": _kernel_place(f"{name}.projection.weight", kernel),
        }
    constant: list[str] = []
    for number in range(len(network.blocks)):
        for theirs, ours in (
            ("norm1", "norm1"),
            ("attn.qkv", "attention.qkv"),
            ("attn.proj", "attention.proj"),
            ("norm2", "norm2"),
            ("mlp.fc1", "mlp.fc1"),
            ("mlp.fc2", "mlp.fc2"),
            ("mlp.fc3", "mlp.fc3"),
        ):
            places[f"encoder.{number}.{theirs}.weight"] = Place(name=f"blocks.{number}.{ours}.weight")
        constant += [f"blocks.{number}.attention.{layer}.bias" for layer in ("qkv", "proj")]
    places["encoder_norm.weight"] = Place(name="norm.weight")
    ignored = (
        r"encoder_embeddings\.(?!untok_sen1grd@224\.|untok_sen2l2a@224\.)",
        r"encoder\.\d+\.norm\d\.bias",
        r"encoder_norm\.bias",
        "decoder",
        "mask_token",
    )
    return KeyMap(places=places, ignored=ignored, constant=tuple(constant))


def _kernel_place(name: str, kernel: tuple[int, ...]) -> Place:
    width, channels, side, _ = kernel

    def convert(value: Tensor) -> Tensor:
        # A patch's numbers lie pixel by pixel there, the bands of each together.
        return value.reshape(width, side, side, channels).permute(0, 3, 1, 2)

    return Place(name=name, shape=(width, side * side * channels), convert=convert)


def _baseline(size: str, width: int, depth: int, heads: int) -> Baseline:
    def make(tensors: Mapping[str, Tensor]) -> nn.Module:
        del tensors
        network = TerraMind(width, depth, heads)
        draw_weights(network)
        return network

    return Baseline(
        name=f"terramind_v1_{size}",
        title=f"TerraMind 1.0, ViT-{size[0].upper()}/16",
        sensors=(Sensor(name="s1", bands=S1_DB), Sensor(name="s2", bands=S2_L2A)),
        input_size=_SIZE,
        width=width,
        resize="bilinear",
        normalisation="each band minus its mean, divided by its deviation, both of TerraMind's sen1grd and sen2l2a",
        feature="mean of the tokens of all given sensors",
        source="IBM/terratorch, terratorch/models/backbones/terramind/model/terramind_vit.py, encoder_embeddings.py,"
        " tm_utils.py, terramind_register.py",
        file=f"TerraMind_v1_{size}.pt",
        verified="the network, small and with random weights, against terratorch 1.2.13's TerraMindViT: within 1.8e-7",
        fill={band: mean for band, (mean, _) in _MEAN_STD.items()},
        make=make,
        prepare=prepare,
        key_map=key_map,
    )


BASELINES: Final = {
    baseline.name: baseline for baseline in (_baseline("base", 768, 12, 12), _baseline("large", 1024, 24, 16))
}
