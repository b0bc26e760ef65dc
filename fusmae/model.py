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
from fusmae.hiding import Hiding, hide, visible_contents
from fusmae.initialise import initialise
from fusmae.losses import masked_mse
from fusmae.masking import Masks
from fusmae.patch import (
    PatchProjection,
    PatchStatistics,
    denormalise_patches,
    gather_patches,
    make_positions,
    normalise_patches,
    patch_statistics,
    patchify,
    unpatchify,
)
from fusmae.random import CounterRandom

_TABLES = ("table_ND", "source_embedding_SW")


class FusMAEOutput(NamedTuple):
    """What a training step needs and what may be looked at.

    Q patches of each sample and modality are predicted: all or some of the masked ones, in ascending order, or where
    their number varies all N, of which `valid` tells the masked ones.
    """

    loss: Tensor
    """Scalar, float32: the modalities' losses, weighted and summed."""
    losses: dict[str, Tensor]
    """Each modality's loss, unweighted."""
    predictions: dict[str, Tensor]
    """(B, Q, E), in units of the target."""
    targets: dict[str, Tensor]
    """(B, Q, E): what they should be."""
    valid: dict[str, Tensor | None]
    """(B, 1 or Q, C) bool: which bands of which patches are compared; None: all."""
    masks: Masks
    """What was hidden."""


class EncoderOutput(NamedTuple):
    """What the encoder makes of whole images."""

    tokens: dict[str, Tensor]
    """(B, N, D) for each given modality, patches row by row."""
    global_token_BD: Tensor | None
    """The global token, if the model has one."""


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
        self._num_bands = {modality.name: len(modality.bands) for modality in config.modalities}
        self._groups = {modality.name: modality.group_indices for modality in config.modalities}
        self.positions = make_positions(config.positions, config.grid, config.width)
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
        predictions, hiding = self._predict(patches, random, shuffle_visible)
        losses, targets, compared = {}, {}, {}
        for name, prediction_BQE in predictions.items():
            # The target is data: no gradient reaches the images through it.
            data_BNE = patches[name].detach()
            targets[name], compared[name] = self._target(name, data_BNE, valid.get(name), hiding)
            losses[name] = masked_mse(prediction_BQE, targets[name], compared[name])
        weighted = [self.config.loss_weight(name) * loss for name, loss in losses.items()]
        return FusMAEOutput(torch.stack(weighted).sum(), losses, predictions, targets, compared, hiding.masks)

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

        Under another `target_norm` than none a prediction is relative to its patch's own mean and deviation, which
        are not predicted: the true ones are used, as in MAE's pictures.
        """
        size, patch_size = self.config.image_size, self.config.patch_size
        patches = self._patchify(images)
        valid = self._check_valid(valid or {}, patches)
        predictions, hiding = self._predict(patches, random, shuffle_visible, predict_all=True)
        filled, pixel_masks = {}, {}
        for name, patches_BNE in patches.items():
            prediction_BQE = predictions[name].to(patches_BNE.dtype)
            mask_BN = hiding.masks[name].mask_BN
            if hiding.queries is None:
                prediction_BNE = prediction_BQE
            else:
                ids_BQE = hiding.queries[name][:, :, None].expand_as(prediction_BQE)
                prediction_BNE = patches_BNE.scatter(1, ids_BQE, prediction_BQE)
            if (statistics := self._statistics(name, patches_BNE, valid.get(name))) is not None:
                prediction_BNE = denormalise_patches(prediction_BNE, statistics)
            filled_BNE = torch.where(mask_BN[:, :, None], prediction_BNE, patches_BNE)
            filled[name] = unpatchify(filled_BNE, patch_size, size, size)
            mask_BNP = mask_BN[:, :, None].expand(-1, -1, patch_size**2)
            pixel_masks[name] = unpatchify(mask_BNP, patch_size, size, size)[:, 0]
        return Reconstruction(filled, pixel_masks, hiding.masks)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are tables of tokens though they look like matrices: they do not decay."""
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2] in _TABLES}

    def flops(self, batch: int = 1) -> int:
        """Operations of a forward pass of `batch` training samples, as torch's FlopCounterMode counts them."""
        return batch * forward_flops(self.config)

    def train_flops(self, batch: int = 1) -> int:
        """Operations of forward and backward pass: three times the forward pass."""
        return 3 * self.flops(batch)

    def activation_bytes(self, batch: int = 1) -> int:
        """Bytes that training keeps of a forward pass of `batch` samples; see `fusmae.memory`."""
        from fusmae.memory import activation_bytes

        weight = next(self.parameters())
        return activation_bytes(self.config, batch, weight.dtype, weight.device)

    def _predict(
        self, patches: dict[str, Tensor], random: CounterRandom, shuffle_visible: bool, predict_all: bool = False
    ) -> tuple[dict[str, Tensor], Hiding]:
        first = next(iter(patches.values()))
        if random.batch_size != len(first) or random.position_B.device != first.device:
            raise ValueError(
                f"random numbers for {random.batch_size} samples on {random.position_B.device} do not fit"
                f" {len(first)} images on {first.device}"
            )
        hiding = hide(self.config, list(patches), random, training=self.training, predict_all=predict_all)
        contents = visible_contents(self.config, patches, hiding, random if shuffle_visible else None)
        visible = {name: self._visible_ids(name, hiding) for name in patches}
        tokens = {name: self.projections[name](contents[name], self.positions(visible[name])) for name in patches}
        if hiding.packing is not None:
            latents_1RD, global_BD = self.encoder.packed(torch.cat([*tokens.values()], dim=1), hiding.packing)
            return self.decoder.packed(latents_1RD, global_BD, hiding.packing), hiding
        latents, global_BD = self.encoder(tokens)
        assert hiding.queries is not None
        return self.decoder(latents, global_BD, visible, hiding.queries), hiding

    def _visible_ids(self, name: str, hiding: Hiding) -> Tensor:
        """(B, V), or (1, R) where their number varies."""
        ids_BV = hiding.masks[name].ids_visible_BV
        if ids_BV is not None:
            return ids_BV
        assert hiding.packing is not None
        return hiding.packing.patches[name][None] % self.config.num_patches

    def _target(
        self, name: str, patches_BNE: Tensor, valid_BC: Tensor | None, hiding: Hiding
    ) -> tuple[Tensor, Tensor | None]:
        """What is to be predicted, (B, Q, E), and what of it is compared, (B, 1 or Q, C)."""
        if hiding.queries is not None:
            patches_BNE = gather_patches(patches_BNE, hiding.queries[name])
            compared = None if valid_BC is None else valid_BC.bool()[:, None]
        else:
            mask_BN1 = hiding.masks[name].mask_BN[:, :, None]
            num_bands = self._num_bands[name]
            compared = mask_BN1.expand(-1, -1, num_bands) if valid_BC is None else mask_BN1 & valid_BC.bool()[:, None]
        if (statistics := self._statistics(name, patches_BNE, valid_BC)) is not None:
            patches_BNE = normalise_patches(patches_BNE, statistics)
        return patches_BNE, compared

    def _statistics(self, name: str, patches_BNE: Tensor, valid_BC: Tensor | None) -> PatchStatistics | None:
        """What targets are relative to, if they are."""
        if self.config.target_norm == "none":
            return None
        groups = self._groups[name] if self.config.target_norm == "per_band_group" else ()
        return patch_statistics(patches_BNE, valid_BC, groups)

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
