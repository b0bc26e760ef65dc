"""A ViT of ImageNet under timm's names, and the same untrained: what pretraining on photographs is worth.

Fus-MAE's tables have an "ImageNet" row and do not say how two radar and twelve optical bands became three channels.
Here optical red, green and blue are what they are, and radar is made a picture of three: VV, VH and their mean.

Keys: huggingface/pytorch-image-models, timm/models/vision_transformer.py (facebookresearch/deit's are the same).
"""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn

from fusmae.pretrained import RGB
from pipeline.baselines.band_scaling import columns
from pipeline.baselines.interface import S1_DB, BandFacts, Baseline, Sensor
from pipeline.baselines.key_map import KeyMap
from pipeline.baselines.resizing import bilinear
from pipeline.baselines.vit import ViT, draw_weights, timm_map

_SIZE: Final = 224
_REFLECTANCE: Final = 3000.0
"""Digital number that is white: a reflectance of 0.3, as in true-colour images of Sentinel-2."""
_DB: Final = (-25.0, 0.0)
"""Backscatter that is black and white, as SEN12MS's toolbox cuts it."""
_PHOTOGRAPHS: Final = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))
"""ImageNet's means and deviations, as DeiT, MAE and DINO were trained with; timm's augreg files had 0.5."""


class PictureViT(ViT):
    """Each sensor is a picture of its own; the feature is the mean of their class tokens."""

    def forward(self, pictures: dict[str, Tensor]) -> Tensor:
        """(B, D)."""
        return torch.stack([self.last_tokens(picture)[0][:, 0] for picture in pictures.values()]).mean(0)


def _make(width: int, tensors: Mapping[str, Tensor]) -> nn.Module:
    kernel = tensors.get("patch_embed.proj.weight")
    patch_size = kernel.shape[-1] if kernel is not None and kernel.ndim == 4 else 16
    vit = PictureViT(
        channels=3, patch_size=patch_size, grid=_SIZE // patch_size, width=width, depth=12, heads=width // 64
    )
    draw_weights(vit)
    return vit


def _prepare(images: Mapping[str, Tensor], facts: Mapping[str, BandFacts]) -> dict[str, Tensor]:
    del facts
    pictures = {}
    for name, image_BCSS in images.items():
        if name == "s2":
            picture_B3SS = bilinear(image_BCSS, _SIZE) / _REFLECTANCE
        else:
            dark, bright = _DB
            scaled_B2SS = (bilinear(image_BCSS, _SIZE) - dark) / (bright - dark)
            picture_B3SS = torch.cat([scaled_B2SS, scaled_B2SS.mean(1, keepdim=True)], dim=1)
        mean_311, std_311 = columns(picture_B3SS, _PHOTOGRAPHS)
        pictures[name] = (picture_B3SS.clamp(0, 1) - mean_311) / std_311
    return pictures


def _key_map(network: nn.Module) -> KeyMap:
    assert isinstance(network, ViT)
    return timm_map(network, ignored=(r"head\.", r"decoder", r"mask_token"))


def _baseline(name: str, title: str, width: int, file: str) -> Baseline:
    return Baseline(
        name=name,
        title=title,
        sensors=(Sensor(name="s1", bands=S1_DB), Sensor(name="s2", bands=RGB)),
        input_size=_SIZE,
        width=width,
        resize="bilinear",
        normalisation="S2: 0 to 3,000 becomes 0 to 1; S1: -25 to 0 dB becomes 0 to 1, the third channel is the mean of"
        " VV and VH; then ImageNet's mean and deviation",
        feature="class token; of both sensors, the mean of theirs",
        source="huggingface/pytorch-image-models, timm/models/vision_transformer.py",
        file=file,
        verified="the network, small and with random weights, against timm 1.0.31's VisionTransformer: no difference",
        make=lambda tensors: _make(width, tensors),
        prepare=_prepare,
        key_map=_key_map if file else None,
    )


BASELINES: Final = {
    baseline.name: baseline
    for baseline in (
        _baseline("random_vit", "ViT-B/16 as it begins, untrained", 768, ""),
        _baseline("imagenet_vit_s", "ImageNet ViT-S", 384, "deit_small_patch16_224 of timm"),
        _baseline("imagenet_vit_b", "ImageNet ViT-B", 768, "deit_base_patch16_224 of timm"),
    )
}
