"""What a model is given: images to patches, and whether everything fits together.

Shape legend: B batch, C bands, H W pixels of an image, N patches, E = P·P·C numbers of a patch.
"""

import torch
from torch import Tensor

from fusmae.config import FusMAEConfig
from fusmae.patch import patchify
from fusmae.random import CounterRandom


def patches_of(config: FusMAEConfig, images: dict[str, Tensor]) -> dict[str, Tensor]:
    """Patches (B, N, E), float32 at least, of the given modalities in the order of the config.

    Raises ValueError for images of no modality, of an unknown one, or of another shape than (B, C, H, W) as configured.
    """
    unknown = sorted(set(images) - set(config.modality_names))
    if unknown or not images:
        names = ", ".join(config.modality_names)
        raise ValueError(f"images of {', '.join(unknown) or 'no modality'} were given; the model knows {names}")
    size = config.image_size
    batch = next(iter(images.values())).shape[0]
    patches = {}
    for modality in config.modalities:
        if modality.name not in images:
            continue
        image_BCHW = images[modality.name]
        if image_BCHW.shape != (batch, len(modality.bands), size, size):
            raise ValueError(
                f"images of {modality.name} have shape {tuple(image_BCHW.shape)}; the model takes"
                f" ({batch}, {len(modality.bands)}, {size}, {size})"
            )
        dtype = torch.promote_types(image_BCHW.dtype, torch.float32)
        patches[modality.name] = patchify(image_BCHW.to(dtype), config.patch_size)
    return patches


def check_valid(config: FusMAEConfig, valid: dict[str, Tensor], patches: dict[str, Tensor]) -> None:
    """ValueError unless validity is (B, C) of modalities of the model."""
    if unknown := sorted(set(valid) - set(config.modality_names)):
        names = ", ".join(config.modality_names)
        raise ValueError(f"validity of {', '.join(unknown)} was given; the model knows {names}")
    for modality in config.modalities:
        if modality.name not in valid or modality.name not in patches:
            continue
        shape = tuple(valid[modality.name].shape)
        if shape != (len(patches[modality.name]), len(modality.bands)):
            raise ValueError(
                f"validity of {modality.name} has shape {shape}; it takes one row a sample and one of"
                f" {len(modality.bands)} columns a band"
            )


def check_masks(config: FusMAEConfig, hidden: dict[str, Tensor], patches: dict[str, Tensor]) -> None:
    """ValueError unless masks are (B, N) bool of modalities whose images are given."""
    if not hidden or (missing := sorted(set(hidden) - set(patches))):
        named = ", ".join(missing) if hidden else "no modality"
        raise ValueError(f"masks of {named} were given, and images of {', '.join(patches)}")
    for name, mask_BN in hidden.items():
        shape = (len(patches[name]), config.num_patches)
        if mask_BN.dtype != torch.bool or tuple(mask_BN.shape) != shape:
            raise ValueError(f"the mask of {name} is {mask_BN.dtype} {tuple(mask_BN.shape)}; it takes bool {shape}")


def check_random(random: CounterRandom, patches: dict[str, Tensor]) -> None:
    """ValueError unless there are random numbers for each sample, on its device."""
    first = next(iter(patches.values()))
    if random.batch_size != len(first) or random.position_B.device != first.device:
        raise ValueError(
            f"random numbers for {random.batch_size} samples on {random.position_B.device} do not fit"
            f" {len(first)} images on {first.device}"
        )
