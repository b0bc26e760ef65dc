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
from fusmae.hiding import Hiding, hide, hide_given, visible_contents
from fusmae.initialise import initialise
from fusmae.inputs import check_masks, check_random, check_valid, patches_of
from fusmae.losses import masked_mse
from fusmae.masking import Masks
from fusmae.patch import (
    PatchProjection,
    denormalise_patches,
    make_positions,
    unpatchify,
)
from fusmae.random import CounterRandom
from fusmae.targets import target_of, target_statistics

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
        patches = patches_of(self.config, images)
        valid = valid or {}
        check_valid(self.config, valid, patches)
        predictions, hiding = self._predict(patches, random, shuffle_visible)
        losses, targets, compared = {}, {}, {}
        for name, prediction_BQE in predictions.items():
            # The target is data: no gradient reaches the images through it.
            data_BNE = patches[name].detach()
            targets[name], compared[name] = target_of(self.config, name, data_BNE, valid.get(name), hiding)
            losses[name] = masked_mse(prediction_BQE, targets[name], compared[name])
        weighted = [self.config.loss_weight(name) * loss for name, loss in losses.items()]
        return FusMAEOutput(torch.stack(weighted).sum(), losses, predictions, targets, compared, hiding.masks)

    def encode(self, images: dict[str, Tensor]) -> EncoderOutput:
        """Latents of whole images of any subset of the modalities; nothing is hidden."""
        patches = patches_of(self.config, images)
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
        patches = patches_of(self.config, images)
        valid = valid or {}
        check_valid(self.config, valid, patches)
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
            statistics = target_statistics(self.config, name, patches_BNE, valid.get(name))
            if statistics is not None:
                prediction_BNE = denormalise_patches(prediction_BNE, statistics)
            filled_BNE = torch.where(mask_BN[:, :, None], prediction_BNE, patches_BNE)
            filled[name] = unpatchify(filled_BNE, patch_size, size, size)
            mask_BNP = mask_BN[:, :, None].expand(-1, -1, patch_size**2)
            pixel_masks[name] = unpatchify(mask_BNP, patch_size, size, size)[:, 0]
        return Reconstruction(filled, pixel_masks, hiding.masks)

    @torch.no_grad()
    def fill(self, images: dict[str, Tensor], hidden: dict[str, Tensor]) -> dict[str, Tensor]:
        """Images (B, C, H, W) of the modalities in `hidden`, the patches that it hides as predicted from all others.

        Args:
            images: normalised images of one modality or more; what is in hidden patches is not looked at.
            hidden: (B, N) bool by modality, true where hidden; a modality that is not named is seen whole.

        Raises ValueError under another `target_norm` than none: its predictions are relative to what is hidden.
        """
        size, patch_size = self.config.image_size, self.config.patch_size
        if self.config.target_norm != "none":
            raise ValueError(
                f"a model of target_norm '{self.config.target_norm}' predicts patches relative to their own mean and "
                "deviation, which are not known of hidden ones"
            )
        patches = patches_of(self.config, images)
        check_masks(self.config, hidden, patches)
        nothing_BN = torch.zeros_like(next(iter(patches.values()))[:, :, 0], dtype=torch.bool)
        hiding = hide_given(self.config, {name: hidden.get(name, nothing_BN) for name in patches})
        predictions = self._predict_hidden(patches, hiding, None)
        return {
            name: unpatchify(
                torch.where(mask_BN[:, :, None], predictions[name].to(patches[name].dtype), patches[name]),
                patch_size,
                size,
                size,
            )
            for name, mask_BN in hidden.items()
        }

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
        check_random(random, patches)
        hiding = hide(self.config, list(patches), random, training=self.training, predict_all=predict_all)
        return self._predict_hidden(patches, hiding, random if shuffle_visible else None), hiding

    def _predict_hidden(
        self, patches: dict[str, Tensor], hiding: Hiding, shuffle: CounterRandom | None
    ) -> dict[str, Tensor]:
        contents = visible_contents(self.config, patches, hiding, shuffle)
        visible = {name: hiding.visible_ids(name) for name in patches}
        tokens = {name: self.projections[name](contents[name], self.positions(visible[name])) for name in patches}
        if hiding.packing is not None:
            latents_1RD, global_BD = self.encoder.packed(torch.cat([*tokens.values()], dim=1), hiding.packing)
            return self.decoder.packed(latents_1RD, global_BD, hiding.packing)
        latents, global_BD = self.encoder(tokens)
        assert hiding.queries is not None
        return self.decoder(latents, global_BD, visible, hiding.queries)
