"""DINO-MM (Wang, Albrecht and Zhu, IGARSS 2022): a ViT-S/8 of DINO over twelve optical and two radar bands, stacked.

Architecture, keys and preprocessing: zhu-xlab/DINO-MM, linear_dino_B14.py, models/dino/utils.py,
models/rs_transforms.py and datasets/BigEarthNet/bigearthnet_dataset_seco_lmdb_B14.py; the ViT is facebookresearch/dino,
vision_transformer.py.

Its data set was stored with 128 pixels: optical bands as 256 levels, then enlarged; radar enlarged, then cut at its own
1 % and 99 % and made 256 levels. Bands of 20 and 60 m were enlarged at once there, and come by way of 10 m here.

Shape legend: B batch, C bands, S pixels of a side, N tokens, D width.
"""

from collections.abc import Mapping
from math import isqrt
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.baselines.band_scaling import eight_bit
from pipeline.baselines.interface import S2_L2A, BandFacts, Baseline, Sensor
from pipeline.baselines.key_map import KeyMap
from pipeline.baselines.resizing import bicubic, centre
from pipeline.baselines.vit import ViT, draw_weights, timm_map, without_prefixes

_STORED, _SEEN = 128, 112
_PATCH, _GRID = 8, 28
_BLOCKS: Final = 4
"""Last blocks whose class tokens are joined (DINO's protocol for ViT-S)."""
_S1: Final = ("VH", "VV")
_MEAN_STD: Final[dict[str, tuple[float, float]]] = {
    "B01": (340.76769064, 554.81258967),
    "B02": (429.9430203, 572.41639287),
    "B03": (614.21682446, 582.87945694),
    "B04": (590.23569706, 675.88746967),
    "B05": (950.68368468, 729.89827633),
    "B06": (1792.46290469, 1096.01480586),
    "B07": (2075.46795189, 1273.45393088),
    "B08": (2218.94553375, 1365.45589904),
    "B8A": (2266.46036911, 1356.13789355),
    "B09": (2246.0605464, 1302.3292881),
    "B11": (1594.42694882, 1079.19066363),
    "B12": (1009.32729131, 818.86747235),
    "VH": (-19.22, 5.42),
    "VV": (-12.59, 5.04),
}


class DinoViT(ViT):
    """The class tokens of the last four blocks, joined."""

    def positions(self, side: int) -> Tensor:
        """DINO's: bicubic, at a scale that is a tenth of a patch too large, which moves them a little."""
        if side == self.grid:
            return self.positions_1ND
        class_11D, patches_1ND = self.positions_1ND[:, :1], self.positions_1ND[:, 1:]
        square_1Dss = patches_1ND.transpose(1, 2).reshape(1, -1, self.grid, self.grid)
        scale = (side + 0.1) / self.grid
        resized_1Dss = functional.interpolate(square_1Dss, scale_factor=(scale, scale), mode="bicubic")
        return torch.cat([class_11D, resized_1Dss.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """(B, 4 D)."""
        return torch.cat([tokens_BND[:, 0] for tokens_BND in self.last_tokens(inputs["stack"], _BLOCKS)], dim=1)


def _make(tensors: Mapping[str, Tensor]) -> nn.Module:
    positions = tensors.get("pos_embed")
    # Its ViT was made for 224 pixels, unless the file says otherwise.
    grid = isqrt(positions.shape[1] - 1) if positions is not None and positions.ndim == 3 else _GRID
    vit = DinoViT(channels=14, patch_size=_PATCH, grid=grid, width=384, depth=12, heads=6)
    draw_weights(vit)
    return vit


def prepare(images: Mapping[str, Tensor], facts: Mapping[str, BandFacts]) -> dict[str, Tensor]:
    """The stack (B, 14, 112, 112), S2 first, from 0 to 1; a sensor that is not given is 0, as in its training."""
    del facts
    first = next(iter(images.values()))
    stack_BCSS = first.new_zeros(len(first), len(S2_L2A) + len(_S1), _STORED, _STORED)
    if "s2" in images:
        levels_BCSS = eight_bit(images["s2"], [_MEAN_STD[band] for band in S2_L2A])
        stack_BCSS[:, : len(S2_L2A)] = bicubic(levels_BCSS, _STORED).round().clamp(0, 255)
    if "s1" in images:
        large_BCSS = bicubic(images["s1"], _STORED)
        ends_2BC = large_BCSS.flatten(2).quantile(torch.tensor([0.01, 0.99], device=first.device), dim=2)
        cut_BCSS = large_BCSS.clamp(*ends_2BC[..., None, None])
        stack_BCSS[:, len(S2_L2A) :] = eight_bit(cut_BCSS, [_MEAN_STD[band] for band in _S1])
    return {"stack": centre(stack_BCSS, _SEEN) / 255}


def select(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The teacher's backbone, which DINO evaluates."""
    teacher = {name: value for name, value in tensors.items() if name.startswith("teacher.")}
    return without_prefixes(teacher or tensors, "teacher.", "module.", "backbone.")


def key_map(network: nn.Module) -> KeyMap:
    """The names of timm; DINO's own head is not used."""
    assert isinstance(network, ViT)
    return timm_map(network, ignored=(r"head\.",))


BASELINES: Final = {
    "dino_mm": Baseline(
        name="dino_mm",
        title="DINO-MM, ViT-S/8",
        sensors=(Sensor(name="s1", bands=_S1), Sensor(name="s2", bands=S2_L2A)),
        input_size=_SEEN,
        width=_BLOCKS * 384,
        resize="bicubic to 128, then the central 112 pixels",
        normalisation="each band's mean minus to plus two deviations, those of BigEarthNet in its code, as 256 levels"
        " from 0 to 1; S1 is cut at its own 1 % and 99 % first",
        feature="class tokens of the last four blocks, joined; a sensor that is not given is 0",
        source="zhu-xlab/DINO-MM, linear_dino_B14.py, bigearthnet_dataset_seco_lmdb_B14.py; facebookresearch/dino,"
        " vision_transformer.py",
        file="checkpoint.pth (B14_vit_s_8)",
        verified="the network, small and with random weights, against timm 1.0.31's VisionTransformer at positions that"
        " DINO's formula resized: no difference",
        make=_make,
        prepare=prepare,
        select=select,
        key_map=key_map,
    )
}
