"""Fus-MAE: masked autoencoding of co-registered sensors with cross-attention between them.

Follows Chan-To-Hing and Veeravalli, "Fus-MAE: A cross-attention-based data fusion approach for masked
autoencoders in remote sensing" (IGARSS 2024); equations are quoted by its numbers.

Shape legend: B batch, C bands, H W pixels of an image, N patches, V visible and M masked of them, D width,
E = P·P·C numbers of a patch.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fusmae.config import FusMAEConfig
from fusmae.decoder import Decoder
from fusmae.encoder import Encoder
from fusmae.flops import forward_flops
from fusmae.initialise import initialise
from fusmae.losses import masked_mse
from fusmae.masking import MaskingConfig, Masks, sample_masks
from fusmae.patch import (
    FixedPositions,
    PatchProjection,
    denormalise_patches,
    gather_patches,
    normalise_patches,
    patch_statistics,
    patchify,
    unpatchify,
)
from fusmae.random import CounterRandom, Purpose


class FusMAEOutput(NamedTuple):
    """What a training step needs and what may be looked at."""

    loss: Tensor
    """Scalar, float32: the modalities' losses, weighted and summed."""
    losses: dict[str, Tensor]
    """Each modality's loss, unweighted."""
    predictions: dict[str, Tensor]
    """(B, M, E): predicted masked patches in the order of ids_masked_BM, in units of the target."""
    masks: Masks
    """What was hidden."""


class EncoderOutput(NamedTuple):
    """What the encoder makes of whole images."""

    tokens: dict[str, Tensor]
    """(B, N, D) for each given modality, patches row by row."""
    global_token_BD: Tensor
    """The global token."""


class Reconstruction(NamedTuple):
    """Images for people to look at, in the units of the input."""

    images: dict[str, Tensor]
    """(B, C, H, W) float32: visible patches as they came, masked ones as predicted."""
    pixel_masks: dict[str, Tensor]
    """(B, H, W) bool: true where a pixel is predicted."""
    masks: Masks
    """What was hidden."""


class FusMAE(nn.Module):
    """The model of a `FusMAEConfig`; its weights are a function of the config and of torch's seed.

    Weights may be float32, or bfloat16 throughout (`model.bfloat16()`, as DeepSpeed does): patches are cast
    where they are projected; positions, targets and loss stay float32.
    """

    def __init__(self, config: FusMAEConfig) -> None:
        super().__init__()
        self.config = config
        self.positions = FixedPositions(config.grid, config.width)
        self.projections = nn.ModuleDict(
            {
                modality.name: PatchProjection(config.patch_elements(modality), config.width)
                for modality in config.modalities
            }
        )
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.apply(initialise)

    def forward(
        self,
        images: dict[str, Tensor],
        random: CounterRandom,
        valid: dict[str, Tensor] | None = None,
        shuffle_visible: bool = False,
    ) -> FusMAEOutput:
        """Hide patches, encode the others, predict the hidden ones and compare.

        Args:
            images: normalised images (B, C, H, W) of one modality or more, bands in the order of the config.
                Bands that a sample lacks hold any finite number, 0 (the mean) for choice.
            random: where the masks come from, one entry a sample, on the images' device.
            valid: (B, C) bool by modality: which bands a sample has; the others are left out of target
                statistics and loss. A modality that is not named has all of its bands.
            shuffle_visible: permute each sample's visible patches over their positions: what is left when the
                model may use what it sees, but not where. For evaluation.
        """
        patches = self._patchify(images)
        valid = self._check_valid(valid or {}, patches)
        predictions, masks = self._predict(patches, random, shuffle_visible)
        losses = {}
        for name, prediction_BME in predictions.items():
            with torch.no_grad():  # the target is data: no gradient reaches the images through it
                target_BME = gather_patches(patches[name], masks[name].ids_masked_BM)
                if self.config.target_norm == "per_patch":
                    target_BME = normalise_patches(target_BME, patch_statistics(target_BME, valid.get(name)))
            losses[name] = masked_mse(prediction_BME, target_BME, valid.get(name))
        weighted = [self.config.loss_weight(name) * loss for name, loss in losses.items()]
        return FusMAEOutput(torch.stack(weighted).sum(), losses, predictions, masks)

    def encode(self, images: dict[str, Tensor]) -> EncoderOutput:
        """Latents of whole images of any subset of the modalities; nothing is hidden."""
        patches = self._patchify(images)
        tokens = {}
        for name, patches_BNE in patches.items():
            ids_BN = torch.arange(self.config.num_patches, device=patches_BNE.device)[None]
            tokens[name] = self.projections[name](patches_BNE, self.positions(ids_BN))
        return EncoderOutput(*self.encoder(tokens))

    def features(self, images: dict[str, Tensor]) -> Tensor:
        """(B, D) float32: the mean of the patch tokens of all given modalities, without the global token."""
        tokens = self.encode(images).tokens.values()
        return torch.cat([x_BND.float() for x_BND in tokens], dim=1).mean(1)

    @torch.no_grad()
    def reconstruct(
        self,
        images: dict[str, Tensor],
        random: CounterRandom,
        valid: dict[str, Tensor] | None = None,
        shuffle_visible: bool = False,
    ) -> Reconstruction:
        """The images with masked patches as predicted; arguments as in `forward`.

        Under `target_norm: per_patch` a prediction is relative to its patch's own mean and deviation, which
        are not predicted: the true ones are used, as in MAE's pictures.
        """
        size, patch_size = self.config.image_size, self.config.patch_size
        patches = self._patchify(images)
        valid = self._check_valid(valid or {}, patches)
        predictions, masks = self._predict(patches, random, shuffle_visible)
        filled, pixel_masks = {}, {}
        for name, patches_BNE in patches.items():
            prediction_BME = predictions[name].to(patches_BNE.dtype)
            ids_BM = masks[name].ids_masked_BM
            if self.config.target_norm == "per_patch":
                statistics = patch_statistics(gather_patches(patches_BNE, ids_BM), valid.get(name))
                prediction_BME = denormalise_patches(prediction_BME, statistics)
            ids_BME = ids_BM[:, :, None].expand_as(prediction_BME)
            filled[name] = unpatchify(patches_BNE.scatter(1, ids_BME, prediction_BME), patch_size, size, size)
            mask_BNP = masks[name].mask_BN[:, :, None].expand(-1, -1, patch_size**2)
            pixel_masks[name] = unpatchify(mask_BNP, patch_size, size, size)[:, 0]
        return Reconstruction(filled, pixel_masks, {name: masks[name] for name in patches})

    def flops(self, batch: int = 1) -> int:
        """Operations of a forward pass of `batch` training samples, as torch's FlopCounterMode counts them."""
        return batch * forward_flops(self.config)

    def train_flops(self, batch: int = 1) -> int:
        """Operations of forward and backward pass: three times the forward pass."""
        return 3 * self.flops(batch)

    def _predict(
        self, patches: dict[str, Tensor], random: CounterRandom, shuffle_visible: bool
    ) -> tuple[dict[str, Tensor], Masks]:
        first = next(iter(patches.values()))
        if random.batch_size != len(first) or random.position_B.device != first.device:
            raise ValueError(
                f"random numbers for {random.batch_size} samples on {random.position_B.device} do not fit"
                f" {len(first)} images on {first.device}"
            )
        masking = MaskingConfig(mask_ratio=self.config.mask_ratio, strategy=self.config.masking)
        # Drawn for all modalities, so that a modality's mask does not depend on which others are given.
        masks = sample_masks(masking, self.config.num_patches, self.config.modality_names, random)
        masks = {name: masks[name] for name in patches}
        tokens = {}
        for name, patches_BNE in patches.items():
            ids_BV = content_BV = masks[name].ids_visible_BV
            if shuffle_visible:
                stream = self.config.modality_names.index(name)
                order_BV = random.permutation(ids_BV.shape[1], Purpose.SHUFFLE, stream)
                content_BV = ids_BV.gather(1, order_BV)
            visible_BVE = gather_patches(patches_BNE, content_BV)
            tokens[name] = self.projections[name](visible_BVE, self.positions(ids_BV))
        latents, _ = self.encoder(tokens)
        return self.decoder(latents, masks), masks

    def _patchify(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """Patches (B, N, E), float32 at least, of the given modalities in the order of the config."""
        unknown = sorted(set(images) - set(self.config.modality_names))
        if unknown or not images:
            names = ", ".join(self.config.modality_names)
            raise ValueError(f"images of {', '.join(unknown) or 'no modality'} were given; the model knows {names}")
        size = self.config.image_size
        batch = next(iter(images.values())).shape[0]
        patches = {}
        for modality in self.config.modalities:
            if modality.name not in images:
                continue
            image_BCHW = images[modality.name]
            if image_BCHW.shape != (batch, len(modality.bands), size, size):
                raise ValueError(
                    f"images of {modality.name} have shape {tuple(image_BCHW.shape)}; the model takes"
                    f" ({batch}, {len(modality.bands)}, {size}, {size})"
                )
            dtype = torch.promote_types(image_BCHW.dtype, torch.float32)
            patches[modality.name] = patchify(image_BCHW.to(dtype), self.config.patch_size)
        return patches

    def _check_valid(self, valid: dict[str, Tensor], patches: dict[str, Tensor]) -> dict[str, Tensor]:
        if unknown := sorted(set(valid) - set(self.config.modality_names)):
            names = ", ".join(self.config.modality_names)
            raise ValueError(f"validity of {', '.join(unknown)} was given; the model knows {names}")
        for modality in self.config.modalities:
            if modality.name not in valid or modality.name not in patches:
                continue
            shape = tuple(valid[modality.name].shape)
            if shape != (len(patches[modality.name]), len(modality.bands)):
                raise ValueError(
                    f"validity of {modality.name} has shape {shape}; it takes one row a sample and one of"
                    f" {len(modality.bands)} columns a band"
                )
        return valid
