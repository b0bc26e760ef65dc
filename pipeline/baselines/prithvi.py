"""Prithvi-EO 1.0 and 2.0 (Jakubik et al. 2023, Szwarcman et al. 2024): masked autoencoders over six optical bands.

Architecture, keys and preprocessing: IBM/terratorch, terratorch/models/backbones/prithvi_mae.py and prithvi_vit.py. The
files are of several dates; one date is given here, so positions are made for one, as terratorch does, and the file's
are not used. Nor are the encodings of time and place of the TL files, for neither is given.

Its HLS bands are Sentinel-2's B02 B03 B04 B8A B11 B12 in digital numbers. A band that is absent is its mean; terratorch
leaves the band's weights out, which is the same.

Shape legend: B batch, N tokens, D width.
"""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn

from pipeline.baselines.band_scaling import standardised
from pipeline.baselines.interface import BandFacts, Baseline, Sensor
from pipeline.baselines.key_map import KeyMap, Place
from pipeline.baselines.resizing import bilinear
from pipeline.baselines.vit import ViT, draw_weights, sincos_table, timm_map, without_prefixes

_SIZE: Final = 224
_BANDS: Final = ("B02", "B03", "B04", "B8A", "B11", "B12")
_V1: Final[dict[str, tuple[float, float]]] = {
    "B02": (775.0, 1282.0),
    "B03": (1081.0, 1270.0),
    "B04": (1229.0, 1399.0),
    "B8A": (2497.0, 1368.0),
    "B11": (2204.0, 1292.0),
    "B12": (1611.0, 1155.0),
}
_V2: Final[dict[str, tuple[float, float]]] = {
    "B02": (1087.0, 2248.0),
    "B03": (1342.0, 2179.0),
    "B04": (1433.0, 2178.0),
    "B8A": (2734.0, 1850.0),
    "B11": (1958.0, 1242.0),
    "B12": (1363.0, 1049.0),
}


class OneDateViT(ViT):
    """Prithvi's encoder for one date; the feature is the mean of the patch tokens."""

    def __init__(self, *, patch_size: int, width: int, depth: int, heads: int, size: int = _SIZE) -> None:
        grid = size // patch_size
        super().__init__(
            channels=len(_BANDS), patch_size=patch_size, grid=grid, width=width, depth=depth, heads=heads, eps=1e-5
        )
        self.positions_1ND.requires_grad_(False)
        self.positions_1ND.copy_(one_date_positions(width, grid)[None])

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """(B, D)."""
        return self.last_tokens(inputs["s2"])[0][:, 1:].mean(1)


def one_date_positions(width: int, grid: int) -> Tensor:
    """(1 + grid², D) of the first date: 6/16 of the width tell the column, 6/16 the row, 4/16 the date; the class 0."""
    part = width // 16
    place_N = torch.arange(grid**2)
    tables = (
        sincos_table(6 * part, place_N % grid),
        sincos_table(6 * part, place_N // grid),
        sincos_table(4 * part, torch.zeros_like(place_N)),
    )
    return torch.cat([torch.zeros(1, width), torch.cat(tables, dim=1)])


def select(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without `encoder.`, which files of version 2 have."""
    return without_prefixes(tensors, "encoder.")


def key_map(network: nn.Module) -> KeyMap:
    """The names of timm, but for a kernel that has an axis for dates, of length 1."""
    assert isinstance(network, OneDateViT)
    found = timm_map(network, ())
    kernel = tuple(network.projection.weight.shape)
    places = {key: place for key, place in found.places.items() if key != "pos_embed"}
    places["patch_embed.proj.weight"] = Place(
        name="projection.weight", shape=(*kernel[:2], 1, *kernel[2:]), convert=lambda value: value[:, :, 0]
    )
    ignored = ("decoder", "mask_token", "pos_embed", "temporal_embed", "location_embed")
    return KeyMap(places=places, ignored=ignored, constant=("positions_1ND",))


def _baseline(name: str, title: str, file: str, sizes: tuple[int, int, int, int], version: int) -> Baseline:
    width, depth, heads, patch_size = sizes
    mean_std = _V1 if version == 1 else _V2

    def make(tensors: Mapping[str, Tensor]) -> nn.Module:
        del tensors
        network = OneDateViT(patch_size=patch_size, width=width, depth=depth, heads=heads)
        draw_weights(network)
        return network

    def prepare(images: Mapping[str, Tensor], facts: Mapping[str, BandFacts]) -> dict[str, Tensor]:
        del facts
        return {"s2": bilinear(standardised(images["s2"], _BANDS, mean_std), _SIZE)}

    return Baseline(
        name=name,
        title=title,
        sensors=(Sensor(name="s2", bands=_BANDS),),
        input_size=_SIZE,
        width=width,
        resize="bilinear",
        normalisation=f"each band minus its mean, divided by its deviation, both of Prithvi's version {version}",
        feature="mean of the patch tokens of one date; no time, no place",
        source="IBM/terratorch, terratorch/models/backbones/prithvi_mae.py, prithvi_vit.py",
        file=file,
        verified="the network, small and with random weights, against terratorch 1.2.13's PrithviViT: no difference",
        fill={band: mean for band, (mean, _) in mean_std.items()},
        make=make,
        prepare=prepare,
        select=select,
        key_map=key_map,
    )


BASELINES: Final = {
    baseline.name: baseline
    for baseline in (
        _baseline("prithvi_v1_100", "Prithvi-EO-1.0, ViT-B/16", "Prithvi_EO_V1_100M.pt", (768, 12, 12, 16), 1),
        _baseline("prithvi_v2_300", "Prithvi-EO-2.0, ViT-L/16", "Prithvi_EO_V2_300M.pt", (1024, 24, 16, 16), 2),
        _baseline("prithvi_v2_600", "Prithvi-EO-2.0, ViT-H/14", "Prithvi_EO_V2_600M.pt", (1280, 32, 16, 14), 2),
    )
}
