"""The decoders: XAttnDecoder between the latents (or not), then one light decoder a modality.

Shape legend: B batch, V visible and Q predicted patches of a modality, N all patches, L latents that are attended to, R
latents of samples behind each other, D width of the encoder, W width of a light decoder, E = P·P·C numbers of a patch.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fusmae.attention import CrossAttention, Segments
from fusmae.config import AttentionBackend, FusMAEConfig
from fusmae.encoder import MLP, NORM_EPS, Block, run_block
from fusmae.packing import Crossing, Packing
from fusmae.patch import make_positions


class CrossBlock(nn.Module):
    """x + CA(LN(x), LN(y)), then + MLP(LN(.)): a pre-norm ViT block whose tokens attend to others.

    One LayerNorm serves both, so the block has the parameters of a ViT block.
    """

    def __init__(self, width: int, heads: int, hidden: int, backend: AttentionBackend = "xformers") -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.cross_attention = CrossAttention(width, heads, backend)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = MLP(width, hidden)

    def forward(self, x_BVD: Tensor, others_BLD: Tensor | None, segments: Segments | None = None) -> Tensor:
        """(B, V, D); without others the cross-attention is left out."""
        if others_BLD is not None:
            x_BVD = x_BVD + self.cross_attention(self.norm1(x_BVD), self.norm1(others_BLD), segments)
        return x_BVD + self.mlp(self.norm2(x_BVD))

    def packed(self, x_1RD: Tensor, others_1LD: Tensor, crossing: Crossing | None) -> Tensor:
        """The same for samples with different numbers of tokens; who lacks others is left as it is.

        Where all lack them, the weights are used all the same, without effect: every rank must have a gradient of every
        weight, and under ZeRO-3 they gather weights together.
        """
        if crossing is not None:
            asking_1RD, asked_1LD = self.norm1(x_1RD[:, crossing.own]), self.norm1(others_1LD[:, crossing.keys])
            crossed = self.cross_attention(asking_1RD, asked_1LD, crossing.segments)
            x_1RD = x_1RD.index_add(1, crossing.own, crossed.to(x_1RD.dtype))
        elif others_1LD.shape[1]:
            first_11D = others_1LD[:, :1]
            x_1RD = x_1RD + 0 * self.cross_attention(self.norm1(first_11D), self.norm1(first_11D))
        return x_1RD + self.mlp(self.norm2(x_1RD))


class XAttnDecoder(CrossBlock):
    """Late fusion of one modality (Fus-MAE Eq. 10-11): z + CA(z, others), then + MLP; pre-norm, encoder width.

    The LayerNorm before is that of the latents of all modalities, as they leave the encoder through one.
    """


class Context(NamedTuple):
    """What a light decoder sees: latents (B, L, D) with their positions (L or B·L rows), modality by modality."""

    latents_BLD: Tensor
    positions_BLW: Tensor
    lengths: tuple[int, ...]
    """Latents of each modality of the config, 0 where it is not given."""
    own: slice
    """Which of the latents are the decoder's own modality's."""
    global_BD: Tensor | None
    """The global token, if it is to be seen."""


class LightDecoder(nn.Module):
    """Latents of visible patches to the pixels of masked patches of one modality (Fus-MAE Eq. 9).

    A mask token stands for each masked patch; positions and a learned modality embedding are added to all, to the
    global token only the embedding. The tokens are in the order visible, masked: attention does not care, nothing has
    to be put back in place, and only masked patches pay for the last map.

    - By default, ViT blocks over all tokens.
    - `cross`: in each block the mask tokens attend to the visible ones, which stay as they are (CrossMAE).
    - `num_sources`, the number of all modalities: first all tokens of the modality attend to the latents of all, each
      with its modality's embedding; then ViT blocks over the modality's tokens (MultiMAE, with the residual that its
      code lacks).
    """

    def __init__(
        self,
        encoder_width: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        num_elements: int,
        backend: AttentionBackend = "xformers",
        *,
        cross: bool = False,
        num_sources: int = 0,
        checkpoints: bool = False,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token_W = nn.Parameter(torch.empty(width))
        self.modality_embedding_W = nn.Parameter(torch.empty(width))
        self.source_embedding_SW = nn.Parameter(torch.empty(num_sources, width)) if num_sources else None
        self.fusion = CrossBlock(width, heads, hidden, backend) if num_sources else None
        block = CrossBlock if cross else Block
        self.blocks = nn.ModuleList(block(width, heads, hidden, backend) for _ in range(depth))
        self.cross, self.checkpoints = cross, checkpoints
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head = nn.Linear(width, num_elements)

    def forward(
        self, given: Context, query_positions_BQW: Tensor, with_tokens: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Predictions (B, Q, E) of the patches at the positions.

        With `with_tokens`, also what the last block gives of patches: (B, V + Q, W), the visible ones first; under
        `cross` those that are predicted only.
        """
        dtype = self.mask_token_W.dtype
        context_BLW = self.embed(given.latents_BLD) + given.positions_BLW
        visible_BVW = context_BLW[:, given.own]
        queries_BQW = (self.mask_token_W + query_positions_BQW).to(visible_BVW.dtype)
        rest = [] if given.global_BD is None else [self.embed(given.global_BD)[:, None]]

        def joined(*tokens: Tensor) -> Tensor:
            return (torch.cat(tokens, dim=1) + self.modality_embedding_W).to(dtype)

        if self.cross:
            x_BNW, context_BLW = joined(queries_BQW), joined(visible_BVW, *rest)
            for block in self.blocks:
                x_BNW = run_block(self, block, x_BNW, context_BLW)
        else:
            if self.fusion is not None:
                context_BLW = torch.cat([context_BLW + self._source_embedding(given.lengths), *rest], dim=1)
                rest = []
                x_BNW = run_block(self, self.fusion, joined(visible_BVW, queries_BQW), context_BLW.to(dtype))
            else:
                x_BNW = joined(*rest, visible_BVW, queries_BQW)
            for block in self.blocks:
                x_BNW = run_block(self, block, x_BNW)
        num_queries = queries_BQW.shape[1]
        out: Tensor = self.head(self.norm(x_BNW[:, x_BNW.shape[1] - num_queries :]))
        if not with_tokens:
            return out
        num_patches = num_queries if self.cross else num_queries + visible_BVW.shape[1]
        return out, x_BNW[:, x_BNW.shape[1] - num_patches :]

    def packed(self, given: Context, places_BNW: Tensor, patches: Tensor, everything: Crossing | None) -> Tensor:
        """Predictions (B, N, E) of all patches, for samples with different numbers of visible ones.

        Args:
            given: latents (1, R, D) by modality; the global tokens (B, D).
            places_BNW: positions of all patches.
            patches: of each of the modality's own latents, sample * N + patch.
            everything: which latents each sample's tokens attend to first, under `num_sources`.
        """
        dtype, batch = self.mask_token_W.dtype, places_BNW.shape[0]
        context_1RW = self.embed(given.latents_BLD) + given.positions_BLW
        masked_BNW = (self.mask_token_W + places_BNW).to(context_1RW.dtype)
        x_1SW = masked_BNW.flatten(0, 1).index_copy(0, patches, context_1RW[0, given.own])[None]
        x_1SW = (x_1SW + self.modality_embedding_W).to(dtype)
        rest_BW = [] if given.global_BD is None else [self.embed(given.global_BD)]
        if self.fusion is not None:
            context_RW = (context_1RW + self._source_embedding(given.lengths))[0]
            context_1LW = torch.cat([context_RW, *rest_BW]).to(dtype)[None]
            x_1SW = run_block(self, self.fusion.packed, x_1SW, context_1LW, everything)
            rest_BW = []
        x_BNW = x_1SW[0].unflatten(0, (batch, -1))
        rest = [(global_BW + self.modality_embedding_W).to(dtype)[:, None] for global_BW in rest_BW]
        x_BNW = torch.cat([*rest, x_BNW], dim=1) if rest else x_BNW
        for block in self.blocks:
            x_BNW = run_block(self, block, x_BNW)
        out: Tensor = self.head(self.norm(x_BNW[:, len(rest) :]))
        return out

    def _source_embedding(self, lengths: tuple[int, ...]) -> Tensor:
        """(L, W): that of each latent's modality."""
        assert self.source_embedding_SW is not None
        return torch.cat([row_W.expand(n, -1) for row_W, n in zip(self.source_embedding_SW, lengths, strict=True)])


class Decoder(nn.Module):
    """All decoders of the model."""

    def __init__(self, config: FusMAEConfig) -> None:
        super().__init__()
        self.config = config
        fused = config.modality_names if config.decoder_fusion == "xad" else ()
        hidden, backend = config.hidden_width(config.width), config.attention_backend
        self.fusion = nn.ModuleDict({name: XAttnDecoder(config.width, config.heads, hidden, backend) for name in fused})
        self.light = nn.ModuleDict(
            {
                modality.name: LightDecoder(
                    config.width,
                    config.decoder_width,
                    config.decoder_depth,
                    config.decoder_heads,
                    config.hidden_width(config.decoder_width),
                    config.patch_elements(modality),
                    backend,
                    cross=config.decoder_attention == "cross",
                    num_sources=len(config.modalities) if config.decoder_fusion == "multimae" else 0,
                    checkpoints=config.checkpoint_activations,
                )
                for modality in config.modalities
            }
        )
        self.checkpoints = config.checkpoint_activations
        self.positions = make_positions(config.positions, config.grid, config.decoder_width)

    def forward(
        self,
        latents: dict[str, Tensor],
        global_BD: Tensor | None,
        visible: dict[str, Tensor],
        queries: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Predictions (B, Q, E) for each given modality.

        Args:
            latents: (B, V, D) by modality.
            global_BD: the global token; used where the config says so.
            visible: (B, V) patches that the latents stand for.
            queries: (B, Q) patches to predict.
        """
        contexts = self._contexts(latents, global_BD, visible)
        return {name: self.light[name](context, self.positions(queries[name])) for name, context in contexts}

    def with_tokens(
        self,
        latents: dict[str, Tensor],
        global_BD: Tensor | None,
        visible: dict[str, Tensor],
        queries: dict[str, Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Predictions as `forward` gives them, and what each light decoder's last block gives of its patches."""
        predictions, tokens = {}, {}
        for name, context in self._contexts(latents, global_BD, visible):
            positions_BQW = self.positions(queries[name])
            predictions[name], tokens[name] = self.light[name](context, positions_BQW, with_tokens=True)
        return predictions, tokens

    def _contexts(
        self, latents: dict[str, Tensor], global_BD: Tensor | None, visible: dict[str, Tensor]
    ) -> Iterator[tuple[str, Context]]:
        """Each given modality, and what its light decoder sees."""
        seen_BD = global_BD if self.config.decode_global_token else None
        if self.config.decoder_fusion == "xad":
            latents = self._fused(latents, seen_BD)
        for name in latents:
            chosen = list(latents) if self.config.decoder_fusion == "multimae" else [name]
            lengths = {other: latents[other].shape[1] for other in chosen}
            start = sum(lengths[other] for other in chosen[: chosen.index(name)])
            context = Context(
                torch.cat([latents[other] for other in chosen], dim=1),
                torch.cat([self.positions(visible[other]) for other in chosen], dim=1),
                tuple(lengths.get(other, 0) for other in self.config.modality_names),
                slice(start, start + lengths[name]),
                seen_BD,
            )
            yield name, context

    def _fused(self, latents: dict[str, Tensor], seen_BD: Tensor | None) -> dict[str, Tensor]:
        fused = {}
        rest = [] if seen_BD is None else [seen_BD[:, None]]
        for name, z_BVD in latents.items():
            others = [latents[other] for other in latents if other != name]
            joined = torch.cat([*others, *rest], dim=1) if others or rest else None
            fused[name] = run_block(self, self.fusion[name], z_BVD, joined)
        return fused

    def packed(self, z_1RD: Tensor, global_BD: Tensor | None, packing: Packing) -> dict[str, Tensor]:
        """Predictions (B, N, E) of all patches, from latents (1, R, D) by modality."""
        seen_BD = global_BD if self.config.decode_global_token else None
        if self.config.decoder_fusion == "xad":
            others_1LD = z_1RD if seen_BD is None else torch.cat([z_1RD, seen_BD[None]], dim=1)
            fused = [
                run_block(self, self.fusion[name].packed, z_1RD[:, part], others_1LD, packing.decoder_crossings[name])
                for name, part in packing.parts.items()
            ]
            z_1RD = torch.cat(fused, dim=1)
        places_BNW = self.positions(packing.all_patches_BN)
        predictions = {}
        for name, part in packing.parts.items():
            chosen = packing.names if self.config.decoder_fusion == "multimae" else (name,)
            sizes = {other: packing.parts[other].stop - packing.parts[other].start for other in chosen}
            ids_R = torch.cat([packing.patches[other] for other in chosen]) % self.config.num_patches
            context = Context(
                z_1RD if len(chosen) > 1 else z_1RD[:, part],
                self.positions(ids_R[None]),
                tuple(sizes.get(other, 0) for other in self.config.modality_names),
                part if len(chosen) > 1 else slice(0, sizes[name]),
                seen_BD,
            )
            light: Any = self.light[name]
            predictions[name] = light.packed(context, places_BNW, packing.patches[name], packing.everything)
        return predictions
