"""A trained Fus-MAE encoder in one file: Sentinel-1 and Sentinel-2 images in, features out.

Needs torch and safetensors alone, and lies beside the weights that it reads:

    model = load("folder")                       # of config.json and model.safetensors
    model({"s1": s1, "s2": s2})                  # (B, D): the mean of all patches' tokens
    model({"s2": s2})                            # of one sensor alone
    model.tokens({"s1": s1, "s2": s2})["s2"]     # (B, N, D): a token for each patch, row by row

Images are what config.json says under `modalities`, not normalised: bands in that order, in these units. S1 is
backscatter in dB; S2 is digital numbers, without the offset of -1000 that processing baseline 04.00 and later add
(give `radiometric_offset=-1000` where yours have it).

Shape legend: B batch, C bands, S pixels of an image's side, P of a patch's side, N patches of an image, D width of a
token, H heads, K = D / H.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FORMAT = "fusmae-export/1"
NORM_EPS = 1e-6
OPTICAL_UNITS = ("DN", "reflectance")
"""Units of bands to which a radiometric offset is added."""


def load(folder: str | Path, data_set: str | None = None, device: str | torch.device = "cpu") -> "FusMAE":
    """The exported model in `folder`, fp32, in evaluation mode.

    Args:
        folder: holds config.json and model.safetensors.
        data_set: name of that data set of config.json with whose statistics images are normalised; None: the first.
        device: where its weights go.

    Raises ValueError when the folder is of another format or has no such data set.
    """
    from safetensors.torch import load_file

    config = json.loads((Path(folder) / "config.json").read_text())
    model = FusMAE(config, data_set)
    model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return model.to(device).eval()


class FusMAE(nn.Module):
    """The encoder that a config.json describes, with its normalisation."""

    def __init__(self, config: Mapping[str, Any], data_set: str | None = None) -> None:
        super().__init__()
        if config.get("format") != FORMAT:
            raise ValueError(f"this file reads the format {FORMAT!r}, the config.json has {config.get('format')!r}")
        model = config["model"]
        self.config = config
        self.image_size, self.patch_size, self.width = model["image_size"], model["patch_size"], model["width"]
        self.grid = self.image_size // self.patch_size
        data_sets = {entry["name"]: entry for entry in config["data_sets"]}
        if data_set is not None and data_set not in data_sets:
            raise ValueError(f"there are no statistics of data set {data_set}, only of {', '.join(data_sets)}")
        self.data_set: Mapping[str, Any] = data_sets[data_set or next(iter(data_sets))]
        self.bands = {modality["name"]: tuple(modality["bands"]) for modality in model["modalities"]}
        learned = model["positions"] == "learned"
        self.positions = LearnedPositions(self.grid, self.width) if learned else FixedPositions(self.grid, self.width)
        elements = {name: self.patch_size**2 * len(bands) for name, bands in self.bands.items()}
        self.projections = nn.ModuleDict({name: PatchProjection(n, self.width) for name, n in elements.items()})
        self.encoder = Encoder(model)

    def forward(self, images: Mapping[str, Any], radiometric_offset: float | Tensor = 0.0) -> Tensor:
        """(B, D) float32: the mean of the patch tokens of all given sensors, without the global token.

        Args:
            images: by sensor, (B, C, S, S) numbers as the module's docstring says; or its bands by name, (B, s, s)
                each, at their own resolutions: S must be a multiple of s. Bands that are left out count as missing.
                Pixels that are no finite numbers, or nodata, count as missing too.
            radiometric_offset: added to the optical bands first, one number or (B,).

        Raises ValueError for images that do not fit, and says what would.
        """
        tokens = self.tokens(images, radiometric_offset).values()
        return torch.cat([x_BND.float() for x_BND in tokens], dim=1).mean(1)

    def tokens(self, images: Mapping[str, Any], radiometric_offset: float | Tensor = 0.0) -> dict[str, Tensor]:
        """(B, N, D) for each given sensor, patches row by row; arguments as in `forward`."""
        return self.encode(images, radiometric_offset)[0]

    def encode(
        self, images: Mapping[str, Any], radiometric_offset: float | Tensor = 0.0
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """The tokens, and the global token (B, D) of a model that has one."""
        return self.after_blocks(images, [self.encoder.depth - 1], radiometric_offset)[0]

    def after_blocks(
        self, images: Mapping[str, Any], blocks: Sequence[int], radiometric_offset: float | Tensor = 0.0
    ) -> list[tuple[dict[str, Tensor], Tensor | None]]:
        """The same behind each of `blocks` (0 is the first), in their order; the last block's are normalised."""
        normalised = self.normalise(images, radiometric_offset)
        tokens = {
            name: self.projections[name](_patchify(image_BCSS, self.patch_size), self.positions())
            for name, image_BCSS in normalised.items()
        }
        return self.encoder(tokens, blocks)

    def normalise(self, images: Mapping[str, Any], radiometric_offset: float | Tensor = 0.0) -> dict[str, Tensor]:
        """(B, C, S, S) float32 by sensor, in the model's order, as they were in training; missing is 0, the mean."""
        unknown = sorted(set(images) - set(self.bands))
        if unknown or not images:
            known = ", ".join(self.bands)
            raise ValueError(f"images of {', '.join(unknown) or 'no sensor'} were given; the model knows {known}")
        normalised = {}
        for name in self.bands:
            if name in images:
                planes = self._planes(name, images[name])
                normalised[name] = self._normalised(name, planes, radiometric_offset)
        _check_numbers(normalised)
        return normalised

    def _planes(self, name: str, given: Any) -> dict[str, Tensor]:
        """The given bands of a sensor, checked: (B, s, s) each."""
        bands, size = self.bands[name], self.image_size
        if isinstance(given, Mapping):
            unknown = sorted(set(given) - set(bands))
            if unknown or not given:
                raise ValueError(f"{name} has the bands {', '.join(bands)}, not {', '.join(unknown) or 'none'}")
            planes = {band: torch.as_tensor(plane) for band, plane in given.items()}
        else:
            image_BCSS = torch.as_tensor(given)
            if image_BCSS.shape[1:] != (len(bands), size, size):
                raise ValueError(
                    f"images of {name} have shape {tuple(image_BCSS.shape)}; they must be (B, {len(bands)}, {size},"
                    f" {size}) with the bands {', '.join(bands)}: cut tiles into squares of {size} pixels"
                )
            planes = dict(zip(bands, image_BCSS.unbind(1), strict=True))
        _check_numbers(planes)
        for band, plane_BSS in planes.items():
            if plane_BSS.dtype == torch.bool or plane_BSS.is_complex():
                raise ValueError(f"band {band} of {name} holds {plane_BSS.dtype}; it must be integers or floats")
            side = plane_BSS.shape[-1]
            if plane_BSS.ndim != 3 or plane_BSS.shape[1] != side or not side or size % side:
                raise ValueError(
                    f"band {band} of {name} has shape {tuple(plane_BSS.shape)}; it must be (B, s, s) with"
                    f" s = {size} or a whole part of it"
                )
        return planes

    def _normalised(self, name: str, planes: dict[str, Tensor], radiometric_offset: float | Tensor) -> Tensor:
        device = self.encoder.norm.weight.device
        offset = torch.as_tensor(radiometric_offset, dtype=torch.float32, device=device)
        if offset.ndim > 1:
            raise ValueError(f"radiometric_offset must be one number or (B,), not {tuple(offset.shape)}")
        offset_B11 = offset.reshape(-1, 1, 1)
        facts = self.data_set["bands"]
        if not any(band in facts for band in self.bands[name]):
            raise ValueError(f"data set {self.data_set['name']} has no band of {name}; load with another data_set")
        present = [band in facts and band in planes for band in self.bands[name]]
        batch = next(iter(planes.values())).shape[0]
        absent_BSS = torch.zeros((batch, self.image_size, self.image_size), device=device)
        values, means, stds = [], [], []
        for band, known in zip(self.bands[name], present, strict=True):
            values.append(self._value(planes[band].to(device), facts[band], offset_B11) if known else absent_BSS)
            means.append(facts[band]["mean"] if known else 0.0)
            # A band that never varies tells nothing: it becomes 0.
            stds.append((facts[band]["std"] if known else 1.0) or 1.0)
        mean_C11, std_C11 = (torch.tensor(x, dtype=torch.float32, device=device)[:, None, None] for x in (means, stds))
        image_BCSS = (torch.stack(values, dim=1) - mean_C11) / std_C11
        return torch.where(torch.tensor(present, device=device)[:, None, None], image_BCSS, 0.0)

    def _value(self, plane_BSS: Tensor, fact: Mapping[str, Any], offset_B11: Tensor) -> Tensor:
        """A band in its units at the model's resolution, the mean where it is missing."""
        stored_BSS = plane_BSS.float()
        value_BSS = stored_BSS + offset_B11 if fact["units"] in OPTICAL_UNITS else stored_BSS
        if fact["nodata"] is not None:
            value_BSS = torch.where(stored_BSS == fact["nodata"], fact["mean"], value_BSS)
        if plane_BSS.is_floating_point():
            value_BSS = torch.where(value_BSS.isfinite(), value_BSS, fact["mean"])
        if value_BSS.shape[-1] == self.image_size:
            return value_BSS
        mode = self.config["upsample"]
        return F.interpolate(value_BSS[:, None], size=(self.image_size, self.image_size), mode=mode)[:, 0]


class Encoder(nn.Module):
    """ViT blocks over the tokens of all sensors and a global token, LayerNorm last.

    With fusion `xae` the first block lets each sensor attend to the others alone. The global token has no position and
    joins at the end, behind that block.
    """

    def __init__(self, model: Mapping[str, Any]) -> None:
        super().__init__()
        width, heads, hidden = model["width"], model["heads"], round(model["mlp_ratio"] * model["width"])
        written_out = model["attention_backend"] == "math"
        self.depth = model["depth"]
        self.fusion: CrossAttentionBlock | None = None
        if model["encoder_fusion"] == "xae":
            names = None if model["share_cross_attention"] else [modality["name"] for modality in model["modalities"]]
            self.fusion = CrossAttentionBlock(width, heads, hidden, names, written_out)
        self.global_token_D = nn.Parameter(torch.zeros(width)) if model["global_token"] else None
        num_blocks = self.depth - (self.fusion is not None)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, written_out) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(
        self, tokens: dict[str, Tensor], wanted: Sequence[int]
    ) -> list[tuple[dict[str, Tensor], Tensor | None]]:
        """Tokens and global token behind each wanted block."""
        found: dict[int, tuple[dict[str, Tensor], Tensor | None]] = {}
        if self.fusion is not None:
            tokens = self.fusion(tokens)
            found[0] = tokens, None
        parts = [*tokens.values()]
        if self.global_token_D is not None:
            parts.append(self.global_token_D.to(parts[0].dtype).expand(parts[0].shape[0], 1, -1))
        lengths = [x_BND.shape[1] for x_BND in tokens.values()]
        x_BND = torch.cat(parts, dim=1)
        for number, block in enumerate(self.blocks, start=self.depth - len(self.blocks)):
            x_BND = block(x_BND)
            out_BND = self.norm(x_BND) if number == self.depth - 1 else x_BND
            patches = out_BND[:, : sum(lengths)].split(lengths, dim=1)
            last = None if self.global_token_D is None else out_BND[:, -1]
            found[number] = dict(zip(tokens, patches, strict=True)), last
        if unknown := [number for number in wanted if number not in found]:
            raise ValueError(f"there is no block {unknown[0]}; the encoder has the blocks 0 to {self.depth - 1}")
        return [found[number] for number in wanted]


class Block(nn.Module):
    """x + SA(LN(x)), then + MLP(LN(.))."""

    def __init__(self, width: int, heads: int, hidden: int, written_out: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attention = SelfAttention(width, heads, written_out)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = MLP(width, hidden)

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D)."""
        x_BND = x_BND + self.attention(self.norm1(x_BND))
        out: Tensor = x_BND + self.mlp(self.norm2(x_BND))
        return out


class CrossAttentionBlock(nn.Module):
    """The first block under fusion `xae`: x + CA(LN(x), LN(others)), then + MLP(LN(.)); alone, only the MLP."""

    def __init__(self, width: int, heads: int, hidden: int, names: Sequence[str] | None, written_out: bool) -> None:
        super().__init__()
        self.shared = names is None
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        directions = {name: CrossAttention(width, heads, written_out) for name in names or ["shared"]}
        self.cross_attention = nn.ModuleDict(directions)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = MLP(width, hidden)

    def forward(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        """(B, N, D) of each given sensor."""
        normed = {name: self.norm1(x_BND) for name, x_BND in tokens.items()}
        fused = {}
        for name, x_BND in tokens.items():
            others = [normed[other] for other in normed if other != name]
            if others:
                cross = self.cross_attention["shared" if self.shared else name]
                x_BND = x_BND + cross(normed[name], others[0] if len(others) == 1 else torch.cat(others, dim=1))
            fused[name] = x_BND + self.mlp(self.norm2(x_BND))
        return fused


class SelfAttention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int, written_out: bool) -> None:
        super().__init__()
        self.heads, self.written_out = heads, written_out
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D)."""
        q, k, v = self.qkv(x_BND).unflatten(2, (3, self.heads, -1)).unbind(2)
        out: Tensor = self.proj(_attention(q, k, v, self.written_out).flatten(2))
        return out


class CrossAttention(nn.Module):
    """The tokens of x ask those of y, multi-head."""

    def __init__(self, width: int, heads: int, written_out: bool) -> None:
        super().__init__()
        self.heads, self.written_out = heads, written_out
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor, y_BMD: Tensor) -> Tensor:
        """(B, N, D)."""
        q = self.q(x_BND).unflatten(2, (self.heads, -1))
        k, v = self.kv(y_BMD).unflatten(2, (2, self.heads, -1)).unbind(2)
        out: Tensor = self.proj(_attention(q, k, v, self.written_out).flatten(2))
        return out


class MLP(nn.Module):
    """Two linear maps with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x_BND)))
        return out


class PatchProjection(nn.Module):
    """Patches to tokens: a linear map of each patch, plus its position, in the weights' dtype."""

    def __init__(self, num_elements: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_elements, width)

    def forward(self, patches_BNE: Tensor, positions_1ND: Tensor) -> Tensor:
        """(B, N, D)."""
        dtype = self.linear.weight.dtype
        tokens: Tensor = self.linear(patches_BNE.to(dtype)) + positions_1ND
        return tokens.to(dtype)


class LearnedPositions(nn.Module):
    """A learned position for each place of a square grid."""

    def __init__(self, grid: int, width: int) -> None:
        super().__init__()
        self.table_ND = nn.Parameter(torch.zeros(grid**2, width))

    def forward(self) -> Tensor:
        """(1, N, D)."""
        return self.table_ND[None]


class FixedPositions(nn.Module):
    """Sin-cos positions of a square grid: half of the width tells the row, half the column; float32 or better."""

    table_ND: Tensor

    def __init__(self, grid: int, width: int) -> None:
        super().__init__()
        self.grid, self.width = grid, width
        self.register_buffer("table_ND", self._table(torch.float32), persistent=False)

    def _table(self, dtype: torch.dtype) -> Tensor:
        frequency = 10000.0 ** (-torch.arange(self.width // 4, dtype=torch.float64) / (self.width // 4))
        angle = torch.arange(self.grid).double()[:, None] * frequency
        code = torch.cat([angle.sin(), angle.cos()], dim=1)
        rows, columns = code[:, None].expand(-1, self.grid, -1), code[None].expand(self.grid, -1, -1)
        return torch.cat([rows, columns], dim=2).flatten(0, 1).to(dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> "FixedPositions":
        # A cast of the module to bfloat16 would round the table: it is made anew, where the module went.
        super()._apply(fn, recurse)
        dtype = torch.promote_types(self.table_ND.dtype, torch.float32)
        if self.table_ND.device.type != "meta":
            self.table_ND = self._table(dtype).to(self.table_ND.device)
        return self

    def forward(self) -> Tensor:
        """(1, N, D)."""
        return self.table_ND[None]


def _attention(q_BNHK: Tensor, k_BMHK: Tensor, v_BMHK: Tensor, written_out: bool) -> Tensor:
    """(B, N, H, K): softmax(q kT / sqrt(K)) v."""
    q_BHNK, k_BHMK, v_BHMK = (x.transpose(1, 2) for x in (q_BNHK, k_BMHK, v_BMHK))
    if not written_out:
        return F.scaled_dot_product_attention(q_BHNK, k_BHMK, v_BHMK).transpose(1, 2)
    dtype = torch.promote_types(q_BHNK.dtype, torch.float32)
    scores_BHNM = q_BHNK.to(dtype) @ k_BHMK.to(dtype).transpose(2, 3) * q_BHNK.shape[-1] ** -0.5
    return (scores_BHNM.softmax(-1) @ v_BHMK.to(dtype)).to(q_BHNK.dtype).transpose(1, 2)


def _check_numbers(images: Mapping[str, Tensor]) -> None:
    shapes = {name: image.shape for name, image in images.items()}
    first = next(iter(shapes.values()))
    if any(shape[:1] != first[:1] for shape in shapes.values()):
        raise ValueError(
            f"images of one batch differ in number: {', '.join(f'{n} {tuple(s)}' for n, s in shapes.items())}"
        )


def _patchify(image_BCSS: Tensor, patch_size: int) -> Tensor:
    """(B, N, E): patches row by row, in each pixels row by row, the band fastest."""
    grid = image_BCSS.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
