"""SatViT (Fuller, Millard and Green 2022): a masked autoencoder over radar and optical bands, stacked.

Architecture, keys and preprocessing: antofuller/SatViT, SatViT_model.py, transformer_model.py, README.md (files
SatViT_V1.pt and SatViT_V2.pt: 15 channels, 256 x 256 pixels) and tutorials/README.md (means and deviations).

The published files have 15 channels, "optical-SAR": twelve optical ones, as in the tutorial, and three of radar. The
tutorial has four (VV and VH of the ascending and of the descending orbit), and nothing says which three the files were
trained with. Here VV and VH are the first two and the third is 0, its mean, which is right only if they are.
"""

from collections.abc import Mapping
from typing import Final

from torch import Tensor, nn

from pipeline.baselines.band_scaling import standardised
from pipeline.baselines.interface import S1_DB, S2_L2A, BandFacts, Baseline, Sensor
from pipeline.baselines.key_map import KeyMap, Place
from pipeline.baselines.resizing import bilinear
from pipeline.baselines.satvit_blocks import NORM_EPS, constant_names, make_blocks, self_places
from pipeline.baselines.vit import ViT, draw_weights

_SIZE: Final = 256
_CHANNELS: Final = 15
_MEAN_STD: Final[dict[str, tuple[float, float]]] = {
    "B01": (884.7334, 1254.2722),
    "B02": (958.7927, 1269.4990),
    "B03": (1144.4814, 1201.9749),
    "B04": (1152.3252, 1262.4783),
    "B05": (1559.3584, 1241.1108),
    "B06": (2384.0615, 1175.8447),
    "B07": (2680.8501, 1203.6945),
    "B08": (2769.1274, 1223.6914),
    "B8A": (2886.8269, 1193.5830),
    "B09": (3064.9661, 1439.5085),
    "B11": (2169.6279, 998.2980),
    "B12": (1491.0271, 907.8351),
    "VV": (-10.9700, 3.6673),
    "VH": (-17.9148, 4.5137),
}


class StackedViT(ViT):
    """The mean of the patch tokens."""

    def __init__(self, *, patch_size: int, width: int, depth: int, heads: int, size: int = _SIZE) -> None:
        super().__init__(
            channels=_CHANNELS,
            patch_size=patch_size,
            grid=size // patch_size,
            width=width,
            depth=depth,
            heads=heads,
            eps=NORM_EPS,
            class_token=False,
        )
        self.blocks = make_blocks(width, depth, heads)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """(B, D)."""
        return self.last_tokens(inputs["stack"])[0].mean(1)


def _make(patch_size: int, tensors: Mapping[str, Tensor]) -> nn.Module:
    del tensors
    vit = StackedViT(patch_size=patch_size, width=768, depth=12, heads=12)
    draw_weights(vit)
    return vit


def prepare(images: Mapping[str, Tensor], facts: Mapping[str, BandFacts]) -> dict[str, Tensor]:
    """The stack (B, 15, 256, 256); a sensor that is not given is 0, its mean."""
    del facts
    first = next(iter(images.values()))
    stack_BCSS = first.new_zeros(len(first), _CHANNELS, _SIZE, _SIZE)
    for name, bands, start in (("s2", S2_L2A, 0), ("s1", S1_DB, len(S2_L2A))):
        if name in images:
            scaled_BCSS = standardised(images[name], bands, _MEAN_STD)
            stack_BCSS[:, start : start + len(bands)] = bilinear(scaled_BCSS, _SIZE)
    return {"stack": stack_BCSS}


def key_map(network: nn.Module) -> KeyMap:
    """Of `encoder.*`, `linear_input` and `pos_embed`; what belongs to the decoder is not used."""
    assert isinstance(network, StackedViT)
    kernel = tuple(network.projection.weight.shape)
    depth = len(network.blocks)
    places = {
        "pos_embed": Place(name="positions_1ND"),
        # A patch's numbers lie band by band, as in a kernel.
        "linear_input.weight": Place(
            name="projection.weight",
            shape=(kernel[0], kernel[1] * kernel[2] * kernel[3]),
            convert=lambda value: value.reshape(kernel),
        ),
        "linear_input.bias": Place(name="projection.bias"),
        "encoder.norm_out.weight": Place(name="norm.weight"),
        "encoder.norm_out.bias": Place(name="norm.bias"),
    }
    return KeyMap(
        places=places | self_places("encoder", "blocks", depth),
        ignored=("decoder", "mask_token", "enc_to_dec", "linear_output"),
        constant=constant_names("blocks", depth),
    )


def _baseline(version: int, patch_size: int) -> Baseline:
    return Baseline(
        name=f"satvit_v{version}",
        title=f"SatViT-V{version}, ViT-B/{patch_size}",
        sensors=(Sensor(name="s1", bands=S1_DB), Sensor(name="s2", bands=S2_L2A)),
        input_size=_SIZE,
        width=768,
        resize="bilinear",
        normalisation="each band minus its mean, divided by its deviation, both of SatViT's tutorial",
        feature="mean of the patch tokens; a sensor that is not given, and the third radar channel, which is not"
        " documented, are 0, their mean",
        source="antofuller/SatViT, SatViT_model.py, transformer_model.py, README.md, tutorials/README.md",
        file=f"SatViT_V{version}.pt",
        make=lambda tensors: _make(patch_size, tensors),
        prepare=prepare,
        key_map=key_map,
    )


BASELINES: Final = {baseline.name: baseline for baseline in (_baseline(1, 16), _baseline(2, 8))}
