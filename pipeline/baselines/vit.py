"""A plain ViT of our own blocks, into which the published encoders' weights go, whatever they call them.

Shape legend: B batch, C channels, S pixels of a side, N tokens, D width.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fusmae.encoder import Block
from fusmae.pretrained import TIMM_BLOCK
from pipeline.baselines.key_map import KeyMap, Place, block_places


class ViT(nn.Module):
    """Patches, positions, pre-norm blocks and a last LayerNorm; the class token, if there is one, comes first."""

    class_token_11D: nn.Parameter | None

    def __init__(
        self,
        *,
        channels: int,
        patch_size: int,
        grid: int,
        width: int,
        depth: int,
        heads: int,
        eps: float = 1e-6,
        class_token: bool = True,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.projection = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        self.class_token_11D = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None
        self.positions_1ND = nn.Parameter(torch.zeros(1, class_token + grid**2, width))
        self.blocks = nn.ModuleList(make_block(width, heads, eps) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=eps)

    def positions(self, side: int) -> Tensor:
        """(1, N, D) of a grid of so many patches a side, with the class token's; here only the one made for."""
        if side != self.grid:
            raise ValueError(f"{side} x {side} patches do not fit the positions of {self.grid} x {self.grid}")
        return self.positions_1ND

    def last_tokens(self, image_BCSS: Tensor, count: int = 1) -> list[Tensor]:
        """(B, N, D) of each of the last `count` blocks, all through the last LayerNorm."""
        patches_BDss = self.projection(image_BCSS)
        x_BND = patches_BDss.flatten(2).transpose(1, 2)
        if self.class_token_11D is not None:
            x_BND = torch.cat([self.class_token_11D.expand(len(x_BND), -1, -1), x_BND], dim=1)
        x_BND = x_BND + self.positions(patches_BDss.shape[-1])
        found = []
        for number, block in enumerate(self.blocks):
            x_BND = block(x_BND)
            if number >= len(self.blocks) - count:
                found.append(self.norm(x_BND))
        return found


def make_block(width: int, heads: int, eps: float, *, qkv_bias: bool = True) -> Block:
    """A block that computes with torch's attention; without a bias of q, k and v it has one that stays 0."""
    block = Block(width, heads, 4 * width, "sdpa")
    for norm in (block.norm1, block.norm2):
        norm.eps = eps
    if not qkv_bias:
        leave_at_zero(block.attention.qkv.bias)
    return block


def leave_at_zero(bias: Tensor) -> None:
    """Of a layer that has none where it was published: 0, and not trained."""
    nn.init.zeros_(bias).requires_grad_(False)


@torch.no_grad()
def draw_weights(network: nn.Module) -> None:
    """Random weights as ViT begins: normal with deviation 0.02, cut at two; biases 0, norms 1 and 0."""
    for name, parameter in network.named_parameters():
        owner = network.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, nn.LayerNorm):
            parameter.fill_(float(name.endswith("weight")))
        elif name.endswith("bias"):
            parameter.zero_()
        elif parameter.requires_grad:
            nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04)


def sincos_table(width: int, places_N: Tensor) -> Tensor:
    """(N, width): sines, then cosines, of places times frequencies that fall from 1 to nearly 1 / 10,000 (MAE)."""
    frequency_F = 10_000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angle_NF = places_N.double()[:, None] * frequency_F
    return torch.cat([angle_NF.sin(), angle_NF.cos()], dim=1).float()


def timm_map(vit: ViT, ignored: tuple[str, ...]) -> KeyMap:
    """The places of a state dict under timm's names."""
    places: dict[str, Place] = {
        "cls_token": Place(name="class_token_11D"),
        "pos_embed": Place(name="positions_1ND"),
        "patch_embed.proj.weight": Place(name="projection.weight"),
        "patch_embed.proj.bias": Place(name="projection.bias"),
        "norm.weight": Place(name="norm.weight"),
        "norm.bias": Place(name="norm.bias"),
    }
    for number in range(len(vit.blocks)):
        places |= block_places(f"blocks.{number}.", f"blocks.{number}.", TIMM_BLOCK)
    return KeyMap(places=places, ignored=ignored)


def without_prefixes(tensors: Mapping[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    """Names without each of these, in this order, at their start."""
    found = dict(tensors)
    for prefix in prefixes:
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found
