"""The exported encoder as a backbone of terratorch.

With the exported folder on `sys.path`, `import fusmae_terratorch` puts `fusmae` into terratorch's BACKBONE_REGISTRY:

    model = BACKBONE_REGISTRY.build("fusmae")

It takes a dict of images by sensor, not normalised (see `fusmae_inference`), or one tensor, of the first sensor.

Shape legend: B batch, N patches, D width of a token.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from fusmae_inference import FusMAE, load
from terratorch.registry import TERRATORCH_BACKBONE_REGISTRY
from torch import Tensor, nn

Merge = Literal["mean", "concat"]


class FusMAEBackbone(nn.Module):
    """Tokens of chosen blocks, those of all sensors merged into one map.

    The neck ReshapeTokensToImage makes images of them; there is no class token: remove_cls_token: false.
    """

    def __init__(
        self, model: FusMAE, modalities: Sequence[str], out_indices: Sequence[int], merge: Merge, offset: float
    ) -> None:
        super().__init__()
        self.model, self.modalities, self.merge, self.offset = model, tuple(modalities), merge, offset
        self.out_indices = [index % model.encoder.depth for index in out_indices]
        parts = len(self.modalities) if merge == "concat" else 1
        self.out_channels = [parts * model.width] * len(self.out_indices)
        # With a number, terratorch's factories would pad 120 pixels to 128, a multiple of two patches.
        self.patch_size = None

    def forward(self, images: Mapping[str, Tensor] | Tensor) -> list[Tensor]:
        """(B, N, D) for each of `out_indices`; (B, N, sensors x D) under merge `concat`."""
        given = images if isinstance(images, Mapping) else {self.modalities[0]: images}
        found = self.model.after_blocks({name: given[name] for name in given}, self.out_indices, self.offset)
        return [self._merged(tokens) for tokens, _ in found]

    def _merged(self, tokens: dict[str, Tensor]) -> Tensor:
        if self.merge == "mean":
            return torch.stack([*tokens.values()]).mean(0)
        if missing := [name for name in self.modalities if name not in tokens]:
            raise ValueError(f"merge 'concat' needs images of {', '.join(missing)} too; give them, or take 'mean'")
        return torch.cat([tokens[name] for name in self.modalities], dim=2)


@TERRATORCH_BACKBONE_REGISTRY.register
def fusmae(
    folder: str | Path | None = None,
    pretrained: bool = True,
    modalities: Sequence[str] | None = None,
    out_indices: Sequence[int] = (-1,),
    merge: Merge = "mean",
    data_set: str | None = None,
    radiometric_offset: float = 0.0,
    **unknown: Any,
) -> FusMAEBackbone:
    """The backbone.

    Args:
        folder: the exported folder; None: that of this file.
        pretrained: with the exported weights; without, with random ones.
        modalities: sensors that will be given, in the order in which `concat` joins them; None: all.
        out_indices: blocks whose tokens are wanted; negative ones count from the end.
        merge: `mean` of the given sensors' tokens of a place, or `concat` of all.
        data_set: with whose statistics images are normalised; None: the first of config.json.
        radiometric_offset: added to optical bands.
        unknown: nothing else is known; TypeError.
    """
    if unknown:
        raise TypeError(f"the backbone fusmae has no argument {', '.join(unknown)}")
    if merge not in ("mean", "concat"):
        raise ValueError(f"merge '{merge}' does not exist; write mean or concat")
    place = Path(folder or Path(__file__).parent)
    if pretrained:
        model = load(place, data_set)
    else:
        model = FusMAE(json.loads((place / "config.json").read_text()), data_set)
    return FusMAEBackbone(model, modalities or tuple(model.bands), out_indices, merge, radiometric_offset)
