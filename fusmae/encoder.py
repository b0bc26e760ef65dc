"""The encoder: XAttnEncoder first (or not), then ViT blocks over the tokens of all modalities together.

Shape legend: B batch, V visible tokens of a modality, N tokens of a block, M tokens attended to, D width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusmae.attention import CrossAttention, SelfAttention
from fusmae.config import AttentionBackend, FusMAEConfig

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

    def forward(self, x_BND: Tensor, bias_BHNM: Tensor | None = None) -> Tensor:
        """(B, N, D); `bias_BHNM` is added to the attention scores."""
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

    def load_block(self, block: Block) -> None:
        """Take the weights of a ViT block of the same size."""
        for cross in self.cross_attention.values():
            cross.load_self_attention(block.attention)  # type: ignore[operator]
        for ours, theirs in ((self.norm1, block.norm1), (self.norm2, block.norm2), (self.mlp, block.mlp)):
            ours.load_state_dict(theirs.state_dict())


class Encoder(nn.Module):
    """`depth` blocks over all given modalities' tokens and a global token (Fus-MAE Eq. 6-8), LayerNorm last.

    With fusion `xae` the first block is the XAttnEncoder. The learned global token (z_CLS of Eq. 6)
    has no position and is appended at the end, after the XAttnEncoder.
    """

    def __init__(self, config: FusMAEConfig) -> None:
        super().__init__()
        width, heads, backend = config.width, config.heads, config.attention_backend
        hidden = config.hidden_width(width)
        self.fusion = None
        if config.encoder_fusion == "xae":
            share = config.share_cross_attention
            self.fusion = XAttnEncoder(width, heads, hidden, config.modality_names, share, backend)
        self.global_token_D = nn.Parameter(torch.empty(width))
        num_blocks = config.depth - (self.fusion is not None)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, backend) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, tokens: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Latents (B, V, D) of each given modality, and the global token (B, D)."""
        if self.fusion is not None:
            tokens = self.fusion(tokens)
        lengths = [x_BVD.shape[1] for x_BVD in tokens.values()]
        first = next(iter(tokens.values()))
        global_B1D = self.global_token_D.to(first.dtype).expand(first.shape[0], 1, -1)
        x_BND = torch.cat([*tokens.values(), global_B1D], dim=1)
        for block in self.blocks:
            x_BND = block(x_BND)
        *latents, global_B1D = self.norm(x_BND).split([*lengths, 1], dim=1)
        return dict(zip(tokens, latents, strict=True)), global_B1D[:, 0]


def _join(tokens: list[Tensor]) -> Tensor:
    return tokens[0] if len(tokens) == 1 else torch.cat(tokens, dim=1)
