"""The encoder: XAttnEncoder first (or not), then ViT blocks over the tokens of all modalities together.

Shape legend: B batch, V visible tokens of a modality, N tokens of a block, M tokens attended to, D width.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fusmae.attention import CrossAttention, Segments, SelfAttention
from fusmae.config import AttentionBackend, FusMAEConfig
from fusmae.packing import Packing

NORM_EPS = 1e-6
"""Epsilon of every LayerNorm, as in ViT."""


class MLP(nn.Module):
    """Two linear maps with a GELU between them (Fus-MAE Eq. 3)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x_BND)))
        return out


class Block(nn.Module):
    """A pre-norm ViT block: x + SA(LN(x)), then + MLP(LN(.))."""

    def __init__(self, width: int, heads: int, hidden: int, backend: AttentionBackend = "xformers") -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attention = SelfAttention(width, heads, backend)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = MLP(width, hidden)

    def forward(self, x_BND: Tensor, bias_BHNM: Tensor | Segments | None = None) -> Tensor:
        """(B, N, D); `bias_BHNM` is added to the attention scores, or divides a row into samples."""
        x_BND = x_BND + self.attention(self.norm1(x_BND), bias_BHNM)
        return x_BND + self.mlp(self.norm2(x_BND))


class XAttnEncoder(nn.Module):
    """Early fusion (Fus-MAE Eq. 2-3): each modality attends to all others, in parallel from the same inputs.

    fus(x, y) = x(+)y + CA(x, y)(+)CA(y, x), then fus + MLP(fus), (+) joining tokens. LayerNorms stand before
    both, as in a ViT block; with shared weights the whole equals a ViT block whose tokens may not attend
    within their own modality. With more than two modalities, each attends to the tokens of the others joined.
    A modality that comes alone has nothing to attend to: fus(x) = x.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        modalities: Sequence[str],
        share: bool = True,
        backend: AttentionBackend = "xformers",
    ) -> None:
        super().__init__()
        self.share = share
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.cross_attention = nn.ModuleDict(
            {name: CrossAttention(width, heads, backend) for name in (["shared"] if share else modalities)}
        )
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = MLP(width, hidden)

    def forward(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fused tokens (B, V, D) of each given modality; V may differ between them."""
        normed = {name: self.norm1(x_BVD) for name, x_BVD in tokens.items()}
        fused = {}
        for name, x_BVD in tokens.items():
            others = [normed[other] for other in normed if other != name]
            if others:
                cross = self.cross_attention["shared" if self.share else name]
                x_BVD = x_BVD + cross(normed[name], _join(others))
            fused[name] = x_BVD + self.mlp(self.norm2(x_BVD))
        return fused

    def packed(self, x_1RD: Tensor, packing: Packing) -> Tensor:
        """The same for samples with different numbers of tokens, (1, R, D) by modality.

        In a sample that has tokens of one modality only, these have nothing to attend to: fus(x) = x.
        """
        normed_1RD, fused_1RD = self.norm1(x_1RD), x_1RD
        for name, crossing in packing.crossings.items():
            cross = self.cross_attention["shared" if self.share else name]
            if crossing is None:
                if x_1RD.shape[1]:  # every rank must have a gradient of every weight
                    fused_1RD = fused_1RD + 0 * cross(normed_1RD[:, :1], normed_1RD[:, :1])
            else:
                asking_1RD, asked_1LD = normed_1RD[:, crossing.queries], normed_1RD[:, crossing.keys]
                crossed = cross(asking_1RD, asked_1LD, crossing.segments)
                fused_1RD = fused_1RD.index_add(1, crossing.queries, crossed.to(fused_1RD.dtype))
        return fused_1RD + self.mlp(self.norm2(fused_1RD))

    def load_block(self, block: Block) -> None:
        """Take the weights of a ViT block of the same size."""
        for cross in self.cross_attention.values():
            cross.load_self_attention(block.attention)  # type: ignore[operator]
        for ours, theirs in ((self.norm1, block.norm1), (self.norm2, block.norm2), (self.mlp, block.mlp)):
            ours.load_state_dict(theirs.state_dict())


class Encoder(nn.Module):
    """`depth` blocks over all given modalities' tokens and a global token (Fus-MAE Eq. 6-8), LayerNorm last.

    With fusion `xae` the first block is the XAttnEncoder. The learned global token (z_CLS of Eq. 6), unless the model
    has none, has no position and is appended at the end, after the XAttnEncoder.
    """

    global_token_D: nn.Parameter | None

    def __init__(self, config: FusMAEConfig) -> None:
        super().__init__()
        width, heads, backend = config.width, config.heads, config.attention_backend
        hidden = config.hidden_width(width)
        self.fusion = None
        if config.encoder_fusion == "xae":
            share = config.share_cross_attention
            self.fusion = XAttnEncoder(width, heads, hidden, config.modality_names, share, backend)
        self.global_token_D = nn.Parameter(torch.empty(width)) if config.global_token else None
        self.checkpoints = config.checkpoint_activations
        num_blocks = config.depth - (self.fusion is not None)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, backend) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, tokens: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | None]:
        """Latents (B, V, D) of each given modality, and the global token (B, D) if there is one."""
        if self.fusion is not None:
            tokens = run_block(self, self.fusion, tokens)
        lengths = [x_BVD.shape[1] for x_BVD in tokens.values()]
        first = next(iter(tokens.values()))
        parts = [*tokens.values()]
        if self.global_token_D is not None:
            parts.append(self.global_token_D.to(first.dtype).expand(first.shape[0], 1, -1))
        x_BND = torch.cat(parts, dim=1)
        for block in self.blocks:
            x_BND = run_block(self, block, x_BND)
        x_BND = self.norm(x_BND)
        latents = x_BND[:, : sum(lengths)].split(lengths, dim=1)
        return dict(zip(tokens, latents, strict=True)), None if self.global_token_D is None else x_BND[:, -1]

    def packed(self, x_1RD: Tensor, packing: Packing) -> tuple[Tensor, Tensor | None]:
        """The same for samples with different numbers of tokens: latents (1, R, D) by modality."""
        if self.fusion is not None:
            x_1RD = run_block(self, self.fusion.packed, x_1RD, packing)
        batch = len(packing.global_tokens)
        if self.global_token_D is not None:
            x_1RD = torch.cat([x_1RD, self.global_token_D.to(x_1RD.dtype).expand(1, batch, -1)], dim=1)
        x_1RD = x_1RD[:, packing.to_samples]
        for block in self.blocks:
            x_1RD = run_block(self, block, x_1RD, packing.samples)
        x_1RD = self.norm(x_1RD)
        global_BD = None if self.global_token_D is None else x_1RD[0, packing.global_tokens]
        return x_1RD[:, packing.to_modalities], global_BD


def run_block(owner: nn.Module, block: Any, *arguments: Any) -> Any:
    """What `block` gives; while training, when its owner `checkpoints`, without keeping what lies within it."""
    if owner.checkpoints and owner.training:
        return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
    return block(*arguments)


def _join(tokens: list[Tensor]) -> Tensor:
    return tokens[0] if len(tokens) == 1 else torch.cat(tokens, dim=1)
