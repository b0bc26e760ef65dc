"""What a Fus-MAE is made of; checked when it is made, without torch.

Defaults are ViT-B on BigEarthNet-MM. The paper leaves sizes, heads, decoder, positions and target open; where
it does, the defaults are those of the MAE family, so that the parameter and FLOP counts match the baselines'.
"""

import re
from dataclasses import dataclass
from math import ceil, isfinite
from typing import Any, ClassVar, Literal, Self, get_args

AttentionBackend = Literal["xformers", "sdpa", "math"]
MaskingStrategy = Literal["independent", "consistent", "disjoint", "union", "dirichlet", "modality", "band_group"]
VARYING: tuple[MaskingStrategy, ...] = ("union", "dirichlet", "modality")
"""Strategies under which the number of visible patches of a modality differs between samples."""

_FORBID: dict[str, Any] = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True)
class Modality:
    """One sensor: a name and the names of its bands, in the order of the image's channels."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    name: str
    """Short lower-case name, such as s1."""
    bands: tuple[str, ...]
    """Names of the bands as ESA writes them; channel i of an image is bands[i]."""
    groups: tuple[tuple[str, ...], ...] = ()
    """Bands that belong together, such as those of one resolution: each band in one group. Empty: one of all."""

    @property
    def group_indices(self) -> tuple[tuple[int, ...], ...]:
        """The channels of each group."""
        return tuple(tuple(self.bands.index(band) for band in group) for group in self.groups or (self.bands,))

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise ValueError(f"modality name '{self.name}' must be lower-case letters, digits and _, such as s2")
        if not self.bands:
            raise ValueError(f"modality '{self.name}' has no bands; name at least one")
        if len(set(self.bands)) != len(self.bands):
            raise ValueError(f"modality '{self.name}' names a band twice: {', '.join(self.bands)}")
        grouped = [band for group in self.groups for band in group]
        if self.groups and (sorted(grouped) != sorted(self.bands) or not all(self.groups)):
            raise ValueError(
                f"the groups of modality '{self.name}' hold {', '.join(grouped)}; write each of its bands"
                f" {', '.join(self.bands)} in one group"
            )


def count_visible(mask_ratio: float, num_patches: int) -> int:
    """Visible patches of a modality: (1 - mask_ratio) of all, rounded, halves to even; 56 of 225 at 0.75.

    Raises ValueError unless at least one is visible and one hidden.
    """
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio {mask_ratio} must lie between 0 and 1, such as 0.75")
    visible = round((1 - mask_ratio) * num_patches)
    if not 0 < visible < num_patches:
        raise ValueError(
            f"mask_ratio {mask_ratio} leaves {visible} of {num_patches} patches visible;"
            " at least one must be visible and one hidden"
        )
    return visible


def _ratio_of(visible: int, num_patches: int) -> float:
    """A short ratio that leaves so many patches visible."""
    return ceil(1000 * (1 - visible / num_patches) - 1e-9) / 1000


S1 = Modality(name="s1", bands=("VV", "VH"), groups=(("VV",), ("VH",)))
S2 = Modality(
    name="s2",
    bands=("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"),
    groups=(("B02", "B03", "B04", "B08"), ("B05", "B06", "B07", "B8A", "B11", "B12"), ("B01", "B09")),
)
"""Grouped by native resolution: 10, 20 and 60 m."""


@dataclass(frozen=True, kw_only=True)
class FusMAEConfig:
    """All that determines a Fus-MAE's weights and what is computed with them."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    image_size: int = 120
    """Pixels of an image's side."""
    patch_size: int = 8
    """Pixels of a patch's side; must divide image_size."""
    modalities: tuple[Modality, ...] = (S1, S2)
    """Sensors and their bands."""
    width: int = 768
    """Width of the encoder's tokens."""
    depth: int = 12
    """Blocks of the encoder; with encoder_fusion xae the first of them is the XAttnEncoder."""
    heads: int = 12
    """Attention heads of the encoder and of the XAttnDecoder."""
    mlp_ratio: float = 4.0
    """Hidden width of every MLP, in widths."""
    encoder_fusion: Literal["none", "xae"] = "xae"
    """xae: each modality first attends to the others (Eq. 2-3). none: tokens are only joined."""
    decoder_fusion: Literal["none", "xad", "multimae"] = "xad"
    """xad: each modality's latents attend to the others' before their decoder (Eq. 10-11). multimae: a decoder's first
    block lets all its tokens, mask tokens too, attend to the latents of all modalities (MultiMAE)."""
    share_cross_attention: bool = True
    """One cross-attention for all directions of the XAttnEncoder, as in Eq. 2; false: one a modality."""
    positions: Literal["sincos", "learned"] = "sincos"
    """sincos: fixed. learned: a table for the encoder and one for each decoder."""
    global_token: bool = True
    """A learned token without a place joins the patches behind the XAttnEncoder (z_CLS of Eq. 6)."""
    decode_global_token: bool = False
    """The decoders see the global token too."""
    decoder_width: int = 256
    """Width of the light decoders."""
    decoder_depth: int = 2
    """Blocks of each light decoder."""
    decoder_heads: int = 8
    """Attention heads of the light decoders."""
    decoder_attention: Literal["self", "cross"] = "self"
    """self: ViT blocks over visible and mask tokens. cross: mask tokens only attend to the visible ones (CrossMAE)."""
    decoder_queries: float = 1.0
    """Share of the hidden patches, drawn at random, that is predicted and compared in training (CrossMAE: 0.25)."""
    mask_ratio: float = 0.75
    """Share of each modality's patches that is hidden."""
    masking: MaskingStrategy = "independent"
    """independent: hidden positions are drawn for each modality. consistent: the same positions in all. disjoint: no
    position is visible in two. union: one draw over the patches of all. dirichlet: the shares of the modalities are
    drawn uniformly, then their positions. modality: some samples hide a whole modality. band_group: independent, and
    one group of each modality's bands is hidden in the visible patches too. See `fusmae.masking`."""
    modality_mask_ratio: float = 0.25
    """Share of samples that hide a whole modality under masking: modality."""
    modality_dropout: float = 0.0
    """Share of samples of which training hides all of one modality besides, so that one alone is a trained input."""
    target_norm: Literal["none", "per_patch", "per_band_group"] = "none"
    """per_patch: the target of a patch has mean 0 and variance 1 over its pixels and bands. per_band_group: over its
    pixels and each group of bands."""
    loss_weights: tuple[float, ...] = ()
    """Weight of each modality's loss, in the order of modalities; empty: 1 each."""
    attention_backend: AttentionBackend = "xformers"
    """xformers: memory-efficient attention. sdpa: torch's own. math: written out, the tests' reference."""
    checkpoint_activations: bool = False
    """Training keeps only the inputs of blocks and computes the rest again: less memory, a third more work."""

    @classmethod
    def vit_s(cls, **overrides: Any) -> Self:
        """ViT-S: width 384, depth 12, 6 heads."""
        return cls(**{"width": 384, "depth": 12, "heads": 6, **overrides})

    @classmethod
    def vit_b(cls, **overrides: Any) -> Self:
        """ViT-B: width 768, depth 12, 12 heads."""
        return cls(**{"width": 768, "depth": 12, "heads": 12, **overrides})

    @classmethod
    def vit_l(cls, **overrides: Any) -> Self:
        """ViT-L: width 1024, depth 24, 16 heads."""
        return cls(**{"width": 1024, "depth": 24, "heads": 16, **overrides})

    @classmethod
    def vit_h(cls, **overrides: Any) -> Self:
        """ViT-H: width 1280, depth 32, 16 heads."""
        return cls(**{"width": 1280, "depth": 32, "heads": 16, **overrides})

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_image()
        self._check_modalities()
        self._check_sizes("heads", self.heads, "width", self.width)
        self._check_sizes("decoder_heads", self.decoder_heads, "decoder_width", self.decoder_width)
        self._check_masking()
        self._check_decoders()
        if self.encoder_fusion == "xae" and self.depth < 2:
            raise ValueError(
                f"depth {self.depth} leaves no block after the XAttnEncoder for the global token;"
                " write at least 2, or encoder_fusion: none"
            )

    @property
    def grid(self) -> int:
        """Patches along an image's side."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return self.grid**2

    @property
    def num_visible(self) -> int:
        """Patches of a modality that the encoder sees; see `count_visible`."""
        return count_visible(self.mask_ratio, self.num_patches)

    @property
    def num_predicted(self) -> int:
        """Hidden patches of a modality that are predicted in training, at a fixed number of visible ones."""
        return max(1, round(self.decoder_queries * (self.num_patches - self.num_visible)))

    @property
    def varies(self) -> bool:
        """Whether samples of a training batch may differ in their numbers of visible patches."""
        return self.masking in VARYING or self.modality_dropout > 0

    @property
    def modality_names(self) -> tuple[str, ...]:
        """Names of the modalities, in order."""
        return tuple(modality.name for modality in self.modalities)

    def hidden_width(self, width: int) -> int:
        """Hidden width of the MLP of a block of `width`."""
        return round(self.mlp_ratio * width)

    def patch_elements(self, modality: Modality) -> int:
        """Numbers in one patch: pixels times bands."""
        return self.patch_size**2 * len(modality.bands)

    def loss_weight(self, name: str) -> float:
        """Weight of the loss of the modality called `name`."""
        return self.loss_weights[self.modality_names.index(name)] if self.loss_weights else 1.0

    def _check_choices(self) -> None:
        choices = {
            "encoder_fusion": ("none", "xae"),
            "decoder_fusion": ("none", "xad", "multimae"),
            "decoder_attention": ("self", "cross"),
            "positions": ("sincos", "learned"),
            "masking": get_args(MaskingStrategy),
            "target_norm": ("none", "per_patch", "per_band_group"),
            "attention_backend": get_args(AttentionBackend),
        }
        for field, allowed in choices.items():
            if (value := getattr(self, field)) not in allowed:
                raise ValueError(f"{field} '{value}' does not exist; write one of {', '.join(allowed)}")
        for field in ("image_size", "patch_size", "width", "depth", "heads"):
            if (value := getattr(self, field)) < 1:
                raise ValueError(f"{field} {value} must be at least 1")
        for field in ("decoder_width", "decoder_depth", "decoder_heads"):
            if (value := getattr(self, field)) < 1:
                raise ValueError(f"{field} {value} must be at least 1")

    def _check_image(self) -> None:
        if self.image_size % self.patch_size:
            divisors = [str(p) for p in range(4, self.image_size // 2 + 1) if self.image_size % p == 0]
            sizes = sorted(self.patch_size * (self.image_size // self.patch_size + step) for step in (0, 1))
            raise ValueError(
                f"image_size {self.image_size} is no whole number of patches of {self.patch_size} pixels;"
                f" write patch_size {', '.join(divisors) or 1}, or image_size {' or '.join(map(str, sizes))}"
            )
        count_visible(self.mask_ratio, self.num_patches)

    def _check_modalities(self) -> None:
        names = self.modality_names
        if not names:
            raise ValueError("there are no modalities; name at least one, such as s2 with its bands")
        if len(set(names)) != len(names):
            raise ValueError(f"a modality's name stands twice: {', '.join(names)}")
        for field, off in (("encoder_fusion", self.encoder_fusion), ("decoder_fusion", self.decoder_fusion)):
            if len(names) == 1 and off != "none":
                raise ValueError(f"{field} '{off}' needs two modalities, there is only {names[0]}; write none")
        if self.encoder_fusion != "xae" and not self.share_cross_attention:
            raise ValueError(
                f"share_cross_attention false has no effect under encoder_fusion '{self.encoder_fusion}', which has no"
                " cross-attention; write true, or encoder_fusion: xae"
            )
        weights = self.loss_weights
        if weights and len(weights) != len(names):
            raise ValueError(f"{len(weights)} loss_weights do not fit {len(names)} modalities: {', '.join(names)}")
        if any(weight < 0 or not isfinite(weight) for weight in weights) or (weights and not any(weights)):
            raise ValueError(f"loss_weights {weights} must be finite, not negative and not all 0")

    def _check_masking(self) -> None:
        for field in ("modality_mask_ratio", "modality_dropout"):
            if not 0 <= (value := getattr(self, field)) <= 1:
                raise ValueError(f"{field} {value} must lie between 0 and 1")
        if self.masking != "modality" and self.modality_mask_ratio != (default := FusMAEConfig.modality_mask_ratio):
            raise ValueError(
                f"modality_mask_ratio {self.modality_mask_ratio} has no effect under masking '{self.masking}';"
                f" write {default}, or masking: modality"
            )
        if self.masking == "modality" and not self.modality_mask_ratio:
            raise ValueError(
                f"modality_mask_ratio {self.modality_mask_ratio} hides no modality under masking 'modality';"
                " write more, or masking: independent"
            )
        num, visible = len(self.modalities), self.num_visible
        if self.masking in ("disjoint", "modality") and num > self.num_patches:
            raise ValueError(
                f"masking '{self.masking}' does not work with {num} modalities of {self.num_patches} patches;"
                " lower patch_size, or write independent"
            )
        if self.target_norm == "per_band_group" and all(len(modality.groups) < 2 for modality in self.modalities):
            raise ValueError("target_norm 'per_band_group' needs a modality with two groups of bands; write its groups")
        if self.masking in ("modality", "union", "dirichlet", "disjoint", "consistent") and num < 2:
            raise ValueError(f"masking '{self.masking}' needs two modalities; write independent")
        if self.modality_dropout and num < 2:
            raise ValueError(f"modality_dropout {self.modality_dropout} needs two modalities; write 0")
        if self.masking == "disjoint" and num * visible > self.num_patches:
            raise ValueError(
                f"masking 'disjoint' needs {num} times {visible} visible patches, an image has {self.num_patches};"
                f" raise mask_ratio to {_ratio_of(self.num_patches // num, self.num_patches)} or more"
            )
        room = (num - 1) * self.num_patches
        if self.masking == "modality" and num * visible > room:
            raise ValueError(
                f"masking 'modality' gives {num * visible} visible patches to {num - 1} modalities of"
                f" {self.num_patches}; raise mask_ratio to {_ratio_of(room // num, self.num_patches)} or more"
            )
        if self.masking == "band_group" and all(len(modality.groups) < 2 for modality in self.modalities):
            raise ValueError("masking 'band_group' needs a modality with two groups of bands; write its groups")

    def _check_decoders(self) -> None:
        if self.decode_global_token and not self.global_token:
            raise ValueError("decode_global_token needs global_token: true")
        if not 0 < self.decoder_queries <= 1:
            raise ValueError(f"decoder_queries {self.decoder_queries} must lie above 0 and at most at 1")
        if self.decoder_queries < 1 and self.varies:
            what = "modality_dropout" if self.modality_dropout else f"masking '{self.masking}'"
            raise ValueError(f"decoder_queries {self.decoder_queries} does not go with {what}; write 1")
        if self.decoder_attention == "cross" and self.varies:
            what = "modality_dropout" if self.modality_dropout else f"masking '{self.masking}'"
            raise ValueError(f"decoder_attention 'cross' does not go with {what}; write self")
        if self.decoder_fusion == "multimae" and self.decoder_attention == "cross":
            raise ValueError("decoder_fusion 'multimae' has its own cross-attention; write decoder_attention: self")

    def _check_sizes(self, heads_field: str, heads: int, width_field: str, width: int) -> None:
        if width % 4:
            raise ValueError(f"{width_field} {width} must be a multiple of 4 for the sin-cos positions")
        if width % heads:
            raise ValueError(f"{width_field} {width} is no multiple of {heads_field} {heads}")
        if self.attention_backend == "xformers" and width // heads % 8:
            better = 8 * heads * max(1, round(width / heads / 8))
            raise ValueError(
                f"{width_field} {width} over {heads_field} {heads} makes heads {width // heads} wide; xformers'"
                f" GPU kernels need a multiple of 8: write {width_field} {better}"
            )
        hidden = self.mlp_ratio * width
        if hidden < 1 or abs(hidden - round(hidden)) > 1e-6:
            raise ValueError(f"mlp_ratio {self.mlp_ratio} times {width_field} {width} is {hidden}, no whole width")
