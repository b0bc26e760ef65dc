"""What the decoders are to predict.

Shape legend: B batch, C bands, N patches of an image, Q predicted of them, E = P·P·C numbers of a patch.
"""

from torch import Tensor

from fusmae.config import FusMAEConfig
from fusmae.hiding import Hiding
from fusmae.patch import PatchStatistics, gather_patches, normalise_patches, patch_statistics


def target_of(
    config: FusMAEConfig, name: str, patches_BNE: Tensor, valid_BC: Tensor | None, hiding: Hiding
) -> tuple[Tensor, Tensor | None]:
    """Of the modality `name`, what is to be predicted, (B, Q, E), and what of it is compared, (B, 1 or Q, C)."""
    if hiding.queries is not None:
        patches_BNE = gather_patches(patches_BNE, hiding.queries[name])
        compared = None if valid_BC is None else valid_BC.bool()[:, None]
    else:
        compared = hiding.masks[name].mask_BN[:, :, None]
        num_bands = patches_BNE.shape[-1] // config.patch_size**2
        compared = compared.expand(-1, -1, num_bands) if valid_BC is None else compared & valid_BC.bool()[:, None]
    if (statistics := target_statistics(config, name, patches_BNE, valid_BC)) is not None:
        patches_BNE = normalise_patches(patches_BNE, statistics)
    return patches_BNE, compared


def target_statistics(
    config: FusMAEConfig, name: str, patches_BNE: Tensor, valid_BC: Tensor | None
) -> PatchStatistics | None:
    """What targets are relative to, if they are."""
    if config.target_norm == "none":
        return None
    modality = config.modalities[config.modality_names.index(name)]
    groups = modality.group_indices if config.target_norm == "per_band_group" else ()
    return patch_statistics(patches_BNE, valid_BC, groups)
