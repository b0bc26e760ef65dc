"""Fus-MAE at two scales: each sample and an enlarged window of it, reconstructed, contrasted and predicted.

Follows Tang et al., "Cross-Scale MAE: A tale of multi-scale exploitation in remote sensing" (NeurIPS 2023), on several
sensors: L = L_re + L_cc + L_cp. Where its released code departs from what the paper sets out to do, this is the paper:
a window of its own for each sample, the same for all modalities; positives in the denominator of the contrastive loss,
and negatives of all ranks; a predicted target that shows what the window shows, and that gets no gradient.

Shape legend: B samples, W ranks, V visible patches and N all patches, D width of the encoder, F width of a light
decoder, E = P·P·C numbers of a patch. What is 2B long holds the full views, then the second views.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusmae.config import FusMAEConfig
from fusmae.cross_scale_config import CrossScaleConfig
from fusmae.encoder import NORM_EPS
from fusmae.flops import forward_flops
from fusmae.hiding import Hiding, hide, visible_contents
from fusmae.initialise import initialise
from fusmae.inputs import check_random, check_valid, patches_of
from fusmae.losses import masked_mse
from fusmae.masking import ModalityMask
from fusmae.model import EncoderOutput, FusMAE, FusMAEOutput, Reconstruction
from fusmae.patch import FixedPositions, gather_patches
from fusmae.random import CounterRandom
from fusmae.scale_view import Windows, draw_windows, resample, scaled_positions
from fusmae.targets import target_of

Gather = Callable[[Tensor], Tensor]
"""(B, D) of this rank to (W·B, D) of all ranks, in the order of their ranks. The gradient of a rank's rows must be the
sum of the gradients that all ranks have of them (all-gather forward, reduce-scatter with a sum backward). Then the mean
of the ranks' losses is the loss of the global batch, and the mean of their gradients, which data parallelism takes,
its gradient: no factor is left to apply."""

SECOND_VIEW = 128
"""Where the streams of random numbers of the second view's masks begin."""

_PREFIX = "fusmae."


class Predictor(nn.Module):
    """The second view's decoder tokens to the full view's: linear, LayerNorm, GELU, linear.

    LayerNorm, where the released code has a BatchNorm over the places of patches: nothing depends on the batch, and
    on the number of patches neither.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden, eps=NORM_EPS)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BNF: Tensor) -> Tensor:
        """(B, N, F)."""
        out: Tensor = self.fc2(F.gelu(self.norm(self.fc1(x_BNF))))
        return out


class CrossScaleFusMAE(nn.Module):
    """A `FusMAE` that is trained at two scales; its weights are under `fusmae.`, the predictors' beside them.

    What is used after training is the inner model alone: `encode`, `features` and `reconstruct` are its own, and
    `inner_weights` gives what `FusMAE(config)` loads. It has the weights of a `FusMAE` of the same config and seed when
    it is made.
    """

    def __init__(self, config: FusMAEConfig, cross_scale: CrossScaleConfig | None = None) -> None:
        super().__init__()
        self.cross_scale = cross_scale or CrossScaleConfig()
        self.cross_scale.check(config)
        self.fusmae = FusMAE(config)
        width, hidden = config.decoder_width, self.cross_scale.hidden_width(config)
        self.predictors = nn.ModuleDict({name: Predictor(width, hidden) for name in config.modality_names})
        self.predictors.apply(initialise)

    @property
    def config(self) -> FusMAEConfig:
        """That of the inner model."""
        return self.fusmae.config

    def forward(
        self,
        images: dict[str, Tensor],
        random: CounterRandom,
        valid: dict[str, Tensor] | None = None,
        shuffle_visible: bool = False,
        gather: Gather | None = None,
        rank: int = 0,
    ) -> FusMAEOutput:
        """Hide patches of both views, predict them, and compare the views.

        Images, random numbers, validity and shuffling are as in `FusMAE.forward`; the full view's masks are the same
        too. In the output,

        - a modality's loss is that of the full view plus that of the second one (L_re, a sum as in the paper);
        - `contrast` is L_cc between the means of all visible patches' latents;
        - `prediction` is L_cp, the modalities weighted as their reconstruction;
        - `loss` is their weighted sum, and everything else is 2B long.

        Args:
            images: normalised images (B, C, H, W) of one modality or more.
            random: where windows and masks come from, one entry a sample.
            valid: (B, C) bool by modality: which bands a sample has. A modality of which a sample has none is left out
                of L_re and L_cp.
            shuffle_visible: permute each sample's visible patches over their positions.
            gather: brings the pooled latents of all ranks, which must have B samples each; None: there is one rank.
            rank: which of the gathered rows are this rank's.
        """
        inner = self.fusmae
        patches, windows = self._patches(images, random)
        valid = valid or {}
        check_valid(self.config, valid, {name: both_BNE.chunk(2)[0] for name, both_BNE in patches.items()})
        both = {name: valid_BC.repeat(2, 1) for name, valid_BC in valid.items()}
        tokens, hiding = self._tokens(patches, random, windows, shuffle_visible)
        visible = {name: hiding.visible_ids(name) for name in patches}
        assert hiding.queries is not None
        latents, global_BD = inner.encoder(tokens)
        predictions, decoded = inner.decoder.with_tokens(latents, global_BD, visible, hiding.queries)

        losses, targets, compared = {}, {}, {}
        for name, prediction_BQE in predictions.items():
            # The target is data: no gradient reaches the images through it.
            targets[name], compared[name] = target_of(self.config, name, patches[name].detach(), both.get(name), hiding)
            losses[name] = 2 * masked_mse(prediction_BQE, targets[name], compared[name])
        total = torch.stack([self.config.loss_weight(name) * loss for name, loss in losses.items()]).sum()
        full_BD, second_BD = _pooled(latents).chunk(2)
        losses["contrast"] = contrast_loss(full_BD, second_BD, self.cross_scale.temperature, gather, rank)
        losses["prediction"] = self._prediction_loss(decoded, visible, hiding.queries, windows, valid)
        total = total + self.cross_scale.contrast_weight * losses["contrast"]
        total = total + self.cross_scale.prediction_weight * losses["prediction"]
        return FusMAEOutput(total, losses, predictions, targets, compared, hiding.masks)

    def encode(self, images: dict[str, Tensor]) -> EncoderOutput:
        """As `FusMAE.encode`."""
        return self.fusmae.encode(images)

    def features(self, images: dict[str, Tensor]) -> Tensor:
        """As `FusMAE.features`."""
        return self.fusmae.features(images)

    def reconstruct(
        self,
        images: dict[str, Tensor],
        random: CounterRandom,
        valid: dict[str, Tensor] | None = None,
        shuffle_visible: bool = False,
    ) -> Reconstruction:
        """As `FusMAE.reconstruct`: of the full view."""
        return self.fusmae.reconstruct(images, random, valid, shuffle_visible)

    def no_weight_decay(self) -> set[str]:
        """As `FusMAE.no_weight_decay`, by their names here."""
        return {_PREFIX + name for name in self.fusmae.no_weight_decay()}

    def flops(self, batch: int = 1, world_size: int = 1) -> int:
        """Operations of a forward pass of `batch` training samples, as torch's FlopCounterMode counts them.

        The contrastive loss costs more than in proportion: each sample meets those of all ranks.
        """
        config = self.config
        predictor = 4 * config.num_patches * config.decoder_width * self.cross_scale.hidden_width(config)
        contrast = 2 * 2 * (2 * world_size * batch) * config.width
        return batch * (2 * forward_flops(config) + len(config.modalities) * predictor + contrast)

    def train_flops(self, batch: int = 1, world_size: int = 1) -> int:
        """Operations of forward and backward pass: three times the forward pass."""
        return 3 * self.flops(batch, world_size)

    def activation_bytes(self, batch: int = 1) -> int:
        """As `FusMAE.activation_bytes`, of both views; on many ranks the contrastive loss keeps more."""
        from fusmae.memory import activation_bytes

        weight = next(self.parameters())
        return activation_bytes(self.config, batch, weight.dtype, weight.device, self.cross_scale)

    def _patches(self, images: dict[str, Tensor], random: CounterRandom) -> tuple[dict[str, Tensor], Windows]:
        """Patches (2B, N, E) of the full views and of what their windows show."""
        full = patches_of(self.config, images)
        check_random(random, full)
        windows = draw_windows(self.cross_scale.min_area, self.cross_scale.max_area, random)
        second = patches_of(self.config, {name: resample(images[name].to(full[name].dtype), windows) for name in full})
        return {name: torch.cat([full[name], second[name]]) for name in full}, windows

    def _tokens(
        self, patches: dict[str, Tensor], random: CounterRandom, windows: Windows, shuffle_visible: bool
    ) -> tuple[dict[str, Tensor], Hiding]:
        """Tokens (2B, V, D) of what is visible of both views, and what is hidden of them."""
        inner, names = self.fusmae, list(patches)
        hidings, contents = [], []
        for number, draws in enumerate((random, random.from_stream(SECOND_VIEW))):
            view = {name: patches_BNE.chunk(2)[number] for name, patches_BNE in patches.items()}
            hidings.append(hide(self.config, names, draws, training=self.training))
            contents.append(visible_contents(self.config, view, hidings[-1], draws if shuffle_visible else None))
        hiding = _joined(*hidings)
        tokens = {}
        for name in names:
            ids_BV = hiding.visible_ids(name)
            positions_BVD = inner.positions(ids_BV)
            if self.cross_scale.gsd_positions:
                assert isinstance(inner.positions, FixedPositions)
                full_BVD, ids_BV = positions_BVD.chunk(2)[0], ids_BV.chunk(2)[1]
                scaled_BVD = scaled_positions(
                    ids_BV, windows.side_B, self.config.grid, self.config.width, full_BVD.dtype
                )
                positions_BVD = torch.cat([full_BVD, scaled_BVD])
            visible_BVE = torch.cat([content[name] for content in contents])
            tokens[name] = inner.projections[name](visible_BVE, positions_BVD)
        return tokens, hiding

    def _prediction_loss(
        self,
        decoded: dict[str, Tensor],
        visible: dict[str, Tensor],
        queries: dict[str, Tensor],
        windows: Windows,
        valid: dict[str, Tensor],
    ) -> Tensor:
        """L_cp: the full view's decoder tokens, at the second view's patches, from the second view's tokens."""
        losses = []
        for name, tokens_BNF in decoded.items():
            order_BN = torch.cat([visible[name], queries[name]], dim=1).argsort(dim=1)
            full_BNF, second_BNF = gather_patches(tokens_BNF, order_BN).chunk(2)
            target_BNF = _at_windows(full_BNF.detach(), windows, self.config.grid)
            is_there = None
            if name in valid:
                is_there = valid[name].bool().any(1)[:, None, None].expand(-1, 1, target_BNF.shape[2])
            loss = masked_mse(self.predictors[name](second_BNF), target_BNF, is_there)
            losses.append(self.config.loss_weight(name) * loss)
        return torch.stack(losses).sum()


def contrast_loss(
    full_BD: Tensor, second_BD: Tensor, temperature: float, gather: Gather | None = None, rank: int = 0
) -> Tensor:
    """NT-Xent of both views of each sample, in float32: a scalar, the mean over this rank's 2B views.

    For a view, the cross-entropy of finding the other view of its sample among all views but itself, of all ranks, by
    cosine similarity over temperature. A single sample without others to tell it from has loss 0.
    """
    pair_B2D = torch.cat([_normalised(full_BD), _normalised(second_BD)], dim=1)
    all_pairs = pair_B2D if gather is None else gather(pair_B2D)
    num, num_all = len(pair_B2D), len(all_pairs)
    if num_all % num or not 0 <= rank < num_all // num:
        raise ValueError(f"{num_all} gathered rows do not hold {num} of rank {rank}; each rank gives as many")
    own, everything = torch.cat(pair_B2D.chunk(2, dim=1)), torch.cat(all_pairs.chunk(2, dim=1))
    logits = own @ everything.T / temperature
    row_B = rank * num + torch.arange(num, device=logits.device)
    itself, other = torch.cat([row_B, num_all + row_B]), torch.cat([num_all + row_B, row_B])
    is_itself = torch.arange(2 * num_all, device=logits.device) == itself[:, None]
    return F.cross_entropy(logits.masked_fill(is_itself, -torch.inf), other)


def inner_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a cross-scale model's state dict, that of the `FusMAE` inside. Raises ValueError if there is none."""
    inner = {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}
    if not inner:
        raise ValueError(f"no name begins with {_PREFIX}: these are not the weights of a cross-scale model")
    return inner


def _joined(full: Hiding, second: Hiding) -> Hiding:
    """What is hidden of both views, as of one batch; hidden bands, which are gone from the contents, left out."""
    assert full.queries is not None and second.queries is not None
    masks = {}
    for name, one in full.masks.items():
        two = second.masks[name]
        assert one.ids_visible_BV is not None and two.ids_visible_BV is not None
        assert one.ids_masked_BM is not None and two.ids_masked_BM is not None
        masks[name] = ModalityMask(
            torch.cat([one.ids_visible_BV, two.ids_visible_BV]),
            torch.cat([one.ids_masked_BM, two.ids_masked_BM]),
            torch.cat([one.mask_BN, two.mask_BN]),
        )
    queries = {name: torch.cat([ids_BQ, second.queries[name]]) for name, ids_BQ in full.queries.items()}
    return Hiding(masks, queries, None, {})


def _pooled(latents: dict[str, Tensor]) -> Tensor:
    """(B, D), float32 at least: the mean of the latents of all modalities."""
    return torch.cat([_precise(x_BVD) for x_BVD in latents.values()], dim=1).mean(1)


def _at_windows(tokens_BNF: Tensor, windows: Windows, grid: int) -> Tensor:
    """Tokens (B, N, F), float32 at least, at the centres of the patches of the windows, bilinear between patches."""
    map_BFSS = _precise(tokens_BNF).transpose(1, 2).unflatten(2, (grid, grid))
    return resample(map_BFSS, windows).flatten(2).transpose(1, 2)


def _normalised(x_BD: Tensor) -> Tensor:
    return F.normalize(_precise(x_BD), dim=1)


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
