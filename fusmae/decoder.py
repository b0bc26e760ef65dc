"""The decoders: XAttnDecoder between the latents (or not), then one light decoder a modality.

Shape legend: B batch, V visible and M masked patches of a modality, L latents of the other modalities, D
width of the encoder, W width of a light decoder, E = P·P·C numbers of a patch.
"""

import torch
from torch import Tensor, nn

from fusmae.attention import CrossAttention
from fusmae.config import AttentionBackend, FusMAEConfig
from fusmae.encoder import MLP, NORM_EPS, Block
from fusmae.masking import Masks
from fusmae.patch import FixedPositions


class XAttnDecoder(nn.Module):
    """Late fusion of one modality (Fus-MAE Eq. 10-11): z + CA(z, others), then + MLP; pre-norm, encoder width.

    One LayerNorm serves the latents of all modalities, as they leave the encoder through one; so the block
    has the parameters of a ViT block. Without others the cross-attention is left out.
    """

    def __init__(self, width: int, heads: int, hidden: int, backend: AttentionBackend = "xformers") -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.cross_attention = CrossAttention(width, heads, backend)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = MLP(width, hidden)

    def forward(self, z_BVD: Tensor, others_BLD: Tensor | None) -> Tensor:
        """(B, V, D)."""
        if others_BLD is not None:
            z_BVD = z_BVD + self.cross_attention(self.norm1(z_BVD), self.norm1(others_BLD))
        return z_BVD + self.mlp(self.norm2(z_BVD))


class LightDecoder(nn.Module):
    """Latents of one modality's visible patches to the pixels of its masked patches (Fus-MAE Eq. 9).

    A mask token stands for each masked patch; fixed sin-cos positions and a learned modality embedding are
    added to all. The tokens are in the order visible, masked: attention does not care, nothing has to be put
    back in place, and only masked patches pay for the last map.
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
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token_W = nn.Parameter(torch.empty(width))
        self.modality_embedding_W = nn.Parameter(torch.empty(width))
        self.blocks = nn.ModuleList(Block(width, heads, hidden, backend) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head = nn.Linear(width, num_elements)

    def forward(self, z_BVD: Tensor, visible_positions_BVW: Tensor, masked_positions_BMW: Tensor) -> Tensor:
        """Predictions (B, M, E) of the masked patches, from latents and float32 positions."""
        num_visible = z_BVD.shape[1]
        dtype = self.mask_token_W.dtype
        visible_BVW = self.embed(z_BVD) + visible_positions_BVW
        masked_BMW = self.mask_token_W + masked_positions_BMW
        x_BNW = torch.cat([visible_BVW, masked_BMW.to(visible_BVW.dtype)], dim=1)
        x_BNW = (x_BNW + self.modality_embedding_W).to(dtype)
        for block in self.blocks:
            x_BNW = block(x_BNW)
        out: Tensor = self.head(self.norm(x_BNW[:, num_visible:]))
        return out


class Decoder(nn.Module):
    """All decoders of the model; the global token is not decoded."""

    def __init__(self, config: FusMAEConfig) -> None:
        super().__init__()
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
                )
                for modality in config.modalities
            }
        )
        self.positions = FixedPositions(config.grid, config.decoder_width)

    def forward(self, latents: dict[str, Tensor], masks: Masks) -> dict[str, Tensor]:
        """Predictions (B, M, E) of each given modality's masked patches, in the order of `ids_masked_BM`."""
        predictions = {}
        for name, z_BVD in latents.items():
            if name in self.fusion:
                others = [latents[other] for other in latents if other != name]
                z_BVD = self.fusion[name](z_BVD, torch.cat(others, dim=1) if others else None)
            visible = self.positions(masks[name].ids_visible_BV)
            masked = self.positions(masks[name].ids_masked_BM)
            predictions[name] = self.light[name](z_BVD, visible, masked)
        return predictions
