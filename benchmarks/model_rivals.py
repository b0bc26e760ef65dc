"""The models beside ours in `benchmarks.model` and `benchmarks.gpu`, written from the papers.

`TimmBlockMAE` (He et al., "Masked autoencoders are scalable vision learners", 2022): one stream of all bands stacked,
through ViT blocks as timm builds them (one map to q, k, v; `F.scaled_dot_product_attention`). All patches are
projected, masked by sorting noise, and put back in place for a decoder that maps all of them to pixels. Its patches are
half as wide as ours, so that it has as many tokens as our two modalities together; how many it sees is what brings its
FLOPs nearest to ours.

`NaiveFusMAE`: Fus-MAE as its equations read (Eq. 1-3, 5-9), without a thought for speed: a convolution over all
patches before masking, boolean indices (which wait for a GPU), separate maps to q, k and v, attention scores written
out in float32, one direction of the XAttnEncoder after the other, predictions of all patches.

Shape legend: B batch, C bands, N patches, V visible of them, D width, W width of a decoder, H heads, K = D / H width of
a head, M tokens that are attended to, E numbers of a patch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fusmae import FusMAEConfig
from fusmae.flops import forward_flops
from fusmae.patch import patchify, sincos_positions

NORM_EPS = 1e-6


class TimmBlock(nn.Module):
    """A pre-norm ViT block in the manner of timm."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        batch, num, width = x_BND.shape
        qkv = self.qkv(self.norm1(x_BND)).reshape(batch, num, 3, self.heads, width // self.heads)
        q_BHNK, k_BHNK, v_BHNK = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out_BHNK = F.scaled_dot_product_attention(q_BHNK, k_BHNK, v_BHNK)
        x_BND = x_BND + self.proj(out_BHNK.transpose(1, 2).reshape(batch, num, width))
        return x_BND + self.fc2(F.gelu(self.fc1(self.norm2(x_BND))))


class TimmBlockMAE(nn.Module):
    """A plain MAE of the sizes of a `FusMAEConfig`, over all bands as one image.

    Args:
        config: whose encoder, decoder and image it takes.
        num_visible: patches that the encoder sees.
    """

    def __init__(self, config: FusMAEConfig, num_visible: int) -> None:
        super().__init__()
        if config.patch_size % 2:
            raise ValueError(f"patch_size {config.patch_size} cannot be halved; take an even one")
        self.kernel = config.patch_size, config.patch_size // 2
        grid = config.grid, 2 * config.grid
        self.num_patches, self.num_visible = grid[0] * grid[1], num_visible
        bands = sum(len(modality.bands) for modality in config.modalities)
        width, inner = config.width, config.decoder_width
        self.project = nn.Conv2d(bands, width, self.kernel, self.kernel)
        self.cls_D = nn.Parameter(torch.randn(width) * 0.02)
        hidden = config.hidden_width(width)
        self.blocks = nn.Sequential(*(TimmBlock(width, config.heads, hidden) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.embed = nn.Linear(width, inner)
        self.mask_token_W = nn.Parameter(torch.randn(inner) * 0.02)
        hidden = config.hidden_width(inner)
        self.decoder = nn.Sequential(
            *(TimmBlock(inner, config.decoder_heads, hidden) for _ in range(config.decoder_depth))
        )
        self.decoder_norm = nn.LayerNorm(inner, eps=NORM_EPS)
        self.head = nn.Linear(inner, bands * self.kernel[0] * self.kernel[1])
        self.register_buffer("positions_ND", sincos_positions(*grid, width), persistent=False)
        self.register_buffer("decoder_positions_NW", sincos_positions(*grid, inner), persistent=False)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """The loss: mean squared error of the masked patches, in float32."""
        x_BND = self._tokens(image_BCHW)
        order_BN = torch.rand(x_BND.shape[:2], device=x_BND.device).argsort(dim=1)
        restore_BN = order_BN.argsort(dim=1)
        x_BVD = _take(x_BND, order_BN[:, : self.num_visible])
        y_BNW = self.embed(self._encode(x_BVD))
        num_masked = self.num_patches - self.num_visible
        mask_tokens = self.mask_token_W.to(y_BNW.dtype).expand(len(y_BNW), num_masked, -1)
        placed_BNW = _take(torch.cat([y_BNW[:, 1:], mask_tokens], dim=1), restore_BN) + self.decoder_positions_NW
        y_BNW = self.decoder(torch.cat([y_BNW[:, :1], placed_BNW], dim=1))
        predicted_BNE = self.head(self.decoder_norm(y_BNW))[:, 1:]
        loss_BN = (predicted_BNE.float() - self._patches(image_BCHW)).square().mean(dim=-1)
        mask_BN = (restore_BN >= self.num_visible).float()
        return (loss_BN * mask_BN).sum() / mask_BN.sum()

    def features(self, image_BCHW: Tensor) -> Tensor:
        """(B, D): the mean of all patches' tokens, nothing being masked."""
        return self._encode(self._tokens(image_BCHW))[:, 1:].float().mean(dim=1)

    def _tokens(self, image_BCHW: Tensor) -> Tensor:
        projected = self.project(image_BCHW.to(self.project.weight.dtype))
        return projected.flatten(2).transpose(1, 2) + self.positions_ND

    def _encode(self, x_BVD: Tensor) -> Tensor:
        cls_B1D = self.cls_D.to(x_BVD.dtype).expand(len(x_BVD), 1, -1)
        return self.norm(self.blocks(torch.cat([cls_B1D, x_BVD], dim=1)))

    def _patches(self, image_BCHW: Tensor) -> Tensor:
        """(B, N, E)."""
        high, wide = self.kernel
        cut = image_BCHW.unflatten(3, (-1, wide)).unflatten(2, (-1, high))  # B C rows high columns wide
        return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


class NaiveAttention(nn.Module):
    """Softmax(q kT / sqrt(K)) v (Fus-MAE Eq. 5), the scores in float32 and in memory."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x_BND: Tensor, y_BMD: Tensor) -> Tensor:
        q_BNHK = self.q(x_BND).unflatten(2, (self.heads, -1))
        k_BMHK = self.k(y_BMD).unflatten(2, (self.heads, -1))
        v_BMHK = self.v(y_BMD).unflatten(2, (self.heads, -1))
        scores_BHNM = torch.einsum("bnhk,bmhk->bhnm", q_BNHK, k_BMHK).float() / q_BNHK.shape[-1] ** 0.5
        weights_BHNM = scores_BHNM.softmax(dim=-1).to(v_BMHK.dtype)
        return self.out(torch.einsum("bhnm,bmhk->bnhk", weights_BHNM, v_BMHK).flatten(2))


class NaiveBlock(nn.Module):
    """A pre-norm ViT block; with other tokens to attend to, one direction of Eq. 2."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attention = NaiveAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x_BND: Tensor) -> Tensor:
        normed_BND = self.norm1(x_BND)
        return self.feed(x_BND + self.attention(normed_BND, normed_BND))

    def feed(self, x_BND: Tensor) -> Tensor:
        return x_BND + self.mlp(self.norm2(x_BND))


class NaiveDecoder(nn.Module):
    """The light decoder of one modality (Eq. 9) over all its tokens, in place."""

    def __init__(self, config: FusMAEConfig, num_elements: int) -> None:
        super().__init__()
        width = config.decoder_width
        self.embed = nn.Linear(config.width, width)
        self.mask_token_W = nn.Parameter(torch.randn(width) * 0.02)
        self.modality_embedding_W = nn.Parameter(torch.randn(width) * 0.02)
        hidden = config.hidden_width(width)
        self.blocks = nn.Sequential(
            *(NaiveBlock(width, config.decoder_heads, hidden) for _ in range(config.decoder_depth))
        )
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head = nn.Linear(width, num_elements)
        self.register_buffer("positions_NW", sincos_positions(config.grid, config.grid, width), persistent=False)

    def forward(self, latents_BVD: Tensor, mask_BN: Tensor) -> Tensor:
        visible_BVW = self.embed(latents_BVD)
        tokens_BNW = self.mask_token_W.to(visible_BVW.dtype).repeat(*mask_BN.shape, 1)
        tokens_BNW[~mask_BN] = visible_BVW.flatten(0, 1)
        return self.head(self.norm(self.blocks(tokens_BNW + self.positions_NW + self.modality_embedding_W)))


class NaiveFusMAE(nn.Module):
    """Fus-MAE with the XAttnEncoder, of the sizes of a `FusMAEConfig`, as its equations read."""

    def __init__(self, config: FusMAEConfig) -> None:
        super().__init__()
        self.config = config
        width, hidden, size = config.width, config.hidden_width(config.width), config.patch_size
        self.project = nn.ModuleDict({m.name: nn.Conv2d(len(m.bands), width, size, size) for m in config.modalities})
        self.fusion = NaiveBlock(width, config.heads, hidden)
        self.global_token_D = nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = nn.Sequential(*(NaiveBlock(width, config.heads, hidden) for _ in range(config.depth - 1)))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.decoders = nn.ModuleDict(
            {m.name: NaiveDecoder(config, config.patch_elements(m)) for m in config.modalities}
        )
        self.register_buffer("positions_ND", sincos_positions(config.grid, config.grid, width), persistent=False)

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        """The loss: each modality's mean squared error of its masked patches, in float32, summed."""
        tokens = self._tokens(images)
        masks, visible = {}, {}
        for name, x_BND in tokens.items():
            rank_BN = torch.rand(x_BND.shape[:2], device=x_BND.device).argsort(dim=1).argsort(dim=1)
            masks[name] = rank_BN >= self.config.num_visible
            visible[name] = x_BND[~masks[name]].reshape(len(x_BND), -1, self.config.width)
        latents = self._encode(visible)
        losses = []
        for name, mask_BN in masks.items():
            predicted_BNE = self.decoders[name](latents[name], mask_BN)
            target_BNE = patchify(images[name], self.config.patch_size)
            losses.append((predicted_BNE.float() - target_BNE)[mask_BN].square().mean())
        return torch.stack(losses).sum()

    def features(self, images: dict[str, Tensor]) -> Tensor:
        """(B, D): the mean of all patches' tokens, nothing being masked."""
        return torch.cat([*self._encode(self._tokens(images)).values()], dim=1).float().mean(dim=1)

    def _tokens(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """(B, N, D) by modality (Eq. 1)."""
        tokens = {}
        for name, image_BCHW in images.items():
            projected = self.project[name](image_BCHW.to(self.global_token_D.dtype))
            tokens[name] = projected.flatten(2).transpose(1, 2) + self.positions_ND
        return tokens

    def _encode(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        """Eq. 2-3, then Eq. 6-8."""
        fused = []
        for name, x_BVD in tokens.items():
            other_BMD = torch.cat([y_BMD for other, y_BMD in tokens.items() if other != name], dim=1)
            crossed_BVD = self.fusion.attention(self.fusion.norm1(x_BVD), self.fusion.norm1(other_BMD))
            fused.append(x_BVD + crossed_BVD)
        x_BND = self.fusion.feed(torch.cat(fused, dim=1))
        x_BND = torch.cat([x_BND, self.global_token_D.to(x_BND.dtype).expand(len(x_BND), 1, -1)], dim=1)
        x_BND = self.norm(self.blocks(x_BND))[:, :-1]
        lengths = [x_BVD.shape[1] for x_BVD in tokens.values()]
        return dict(zip(tokens, x_BND.split(lengths, dim=1), strict=True))


def timm_mae_forward_flops(model: TimmBlockMAE, image_size: int) -> int:
    """Operations of the forward pass of one sample of a model on the meta device, by torch's counter."""
    with torch.device("meta"), FlopCounterMode(display=False) as counting:
        model(torch.empty(1, model.project.in_channels, image_size, image_size))
    return counting.get_total_flops()


def equal_flops_visible(config: FusMAEConfig) -> tuple[int, int]:
    """How many patches a `TimmBlockMAE` sees when its forward pass costs as nearly as can be what ours costs.

    Returns the number, and the operations of that pass.
    """
    with torch.device("meta"):
        model = TimmBlockMAE(config, 1)

    def cost(num_visible: int) -> int:
        model.num_visible = num_visible
        return timm_mae_forward_flops(model, config.image_size)

    # The cost is a polynomial of the second degree: blocks are linear in the tokens, attention is quadratic.
    first, second, third = (cost(num) for num in (1, 2, 3))
    slope, bend = second - first, third - 2 * second + first
    costs = {num: first + (num - 1) * slope + (num - 1) * (num - 2) // 2 * bend for num in range(1, model.num_patches)}
    ours = forward_flops(config)
    return min(costs.items(), key=lambda item: abs(item[1] - ours))


def _take(x_BND: Tensor, ids_BV: Tensor) -> Tensor:
    return x_BND.gather(1, ids_BV[:, :, None].expand(-1, -1, x_BND.shape[-1]))
