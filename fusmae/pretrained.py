"""Start from a plain ViT: weights under timm's names (MAE's are the same) into a Fus-MAE.

A XAttnEncoder has the parameters of a ViT block and is one but for the pairs that may attend (see `fusmae.encoder`), so
the ViT's first block goes there. Everything is checked before the first weight is written.

Shape legend: D width, N patches, C bands, P pixels of a patch side.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from fusmae.config import FusMAEConfig, Modality
from fusmae.encoder import XAttnEncoder
from fusmae.model import FusMAE

RGB = ("B04", "B03", "B02")
"""Sentinel-2's red, green and blue, in the order of a ViT's input channels."""

TIMM_BLOCK = {
    "norm1": "norm1",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.proj",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""Layers of a block: timm's names, which DINO and MAE share, and ours."""
_UNUSED = {
    r"decoder|mask_token": "of the file's own decoder",
    r"head|fc_norm|pre_logits": "of its classifier",
}
"""Why we have no place for a key that begins so."""


@dataclass(frozen=True)
class LoadReport:
    """What became of each parameter of the model and of each key of the file."""

    loaded: dict[str, str]
    """Our parameter: the key that it came from, and what was done to it."""
    left: tuple[str, ...]
    """Our parameters that keep their random start."""
    unused: dict[str, str]
    """Keys of the file that went nowhere: why."""

    def describe(self) -> list[str]:
        """Lines for people: whole groups of parameters, not each."""
        lines = [f"{len(self.loaded)} of {len(self.loaded) + len(self.left)} parameters start from the file"]
        for family, names in _families(self.loaded).items():
            sources = [self.loaded[name] for name in names]
            lines.append(f"  loaded: {family} ({len(names)}) from {_origin(sources)}")
        for family, names in _families(self.left).items():
            lines.append(f"  random: {family} ({len(names)})")
        by_reason: dict[str, list[str]] = {}
        for key, reason in self.unused.items():
            by_reason.setdefault(reason, []).append(key)
        for reason, keys in by_reason.items():
            listed = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            lines.append(f"  not used: {listed}: {reason}")
        return lines


@dataclass(frozen=True)
class _Planned:
    """What a parameter of ours will hold, and what the report says of it."""

    value: Tensor
    key: str
    note: str = ""

    @property
    def source(self) -> str:
        return f"{self.key}{self.note}"


def load_vit(model: FusMAE, state_dict: Mapping[str, Tensor]) -> LoadReport:
    """Put a ViT's weights into `model`, as far as it has a place for them.

    - Blocks in order; with encoder_fusion xae the first goes into the XAttnEncoder (into each of its cross-attentions
      when they are not shared). The last LayerNorm too, if the file has one.
    - The patch projection of every modality is the file's, spread over the bands (`inflate_kernel`) after it was
      brought to our patch size (`resize_kernel`); the bias stays.
    - The class token becomes the global token, without the position that it has in a ViT: ours has none.
    - Positions: into a learned table of the encoder, resized to our grid; fixed ones stay as they are.

    The number of heads leaves no trace in the shapes: give the model as many as the ViT has.

    Raises:
        ValueError: no ViT in `state_dict`; another width, MLP or number of blocks; a missing key, a shape that does not
            fit, a layer that our blocks lack, a weight that is not finite. The model is as it was then.
    """
    config = model.config
    _check_sizes(config, state_dict)
    shapes = _expected_shapes(config)
    _check_blocks(state_dict, shapes)
    _check_rest(config, state_dict)
    kept = {
        key: value.detach().to("cpu", torch.promote_types(value.dtype, torch.float32))
        for key, value in state_dict.items()
    }
    planned = _plan_blocks(model, kept) | _plan_projections(config, kept) | _plan_tokens(model, kept)
    parameters = dict(model.named_parameters())
    for name, plan in planned.items():
        assert parameters[name].shape == plan.value.shape, name
        if not torch.isfinite(plan.value).all():
            raise ValueError(f"'{plan.key}' holds numbers that are not finite; use a file of whole weights")
    with torch.no_grad():
        for name, plan in planned.items():
            parameters[name].copy_(plan.value)
    used = {plan.key for plan in planned.values()}
    return LoadReport(
        loaded={name: planned[name].source for name in parameters if name in planned},
        left=tuple(name for name in parameters if name not in planned),
        unused={key: _why_unused(config, key) for key in state_dict if key not in used},
    )


def resize_kernel(kernel_DCPP: Tensor, patch_size: int) -> Tensor:
    """The kernel of a patch projection at another patch size, bicubic; each band's sum over the pixels stays.

    So a constant patch has the same token at either size. The sum is kept by the ratio of the areas, and what the
    borders leave over is spread evenly: a ratio of the sums would blow up kernels of edges, whose sum is near 0.
    """
    size = kernel_DCPP.shape[-1]
    if size == patch_size:
        return kernel_DCPP
    kernel = kernel_DCPP.double()
    resized = F.interpolate(kernel, (patch_size, patch_size), mode="bicubic", antialias=True) * (size / patch_size) ** 2
    missing = kernel.sum((2, 3), keepdim=True) - resized.sum((2, 3), keepdim=True)
    return (resized + missing / patch_size**2).to(kernel_DCPP.dtype)


def inflate_kernel(kernel_D3PP: Tensor, modality: Modality) -> Tensor:
    """The weight (D, P·P·C) of a modality's projection, in the order of `patchify`, from a kernel over R, G and B.

    Every band gets the mean over the colours times 3 / C, so that the response to a grey patch (all bands equal) keeps
    its size. A modality that has all of B04, B03 and B02 gives these their own colour's kernel times 3 / C, which
    leaves the sum over the bands as it is.
    """
    num_bands = len(modality.bands)
    mean_DPP = kernel_D3PP.mean(1)
    has_colours = set(RGB) <= set(modality.bands)
    own = {band: kernel_D3PP[:, channel] for channel, band in enumerate(RGB)} if has_colours else {}
    weight_DPPC = torch.stack([own.get(band, mean_DPP) for band in modality.bands], dim=-1) * (3 / num_bands)
    return weight_DPPC.flatten(1)


def resize_positions(table_ND: Tensor, grid: int) -> Tensor:
    """A table of positions of a square grid, patches row by row, at another grid; bicubic."""
    side = isqrt(len(table_ND))
    if side == grid:
        return table_ND
    image_1Dss = table_ND.T.unflatten(1, (side, side))[None]
    return F.interpolate(image_1Dss, (grid, grid), mode="bicubic", antialias=True)[0].flatten(1).T


def _block_numbers(keys: Iterable[str]) -> list[int]:
    return sorted({int(found[1]) for key in keys if (found := re.match(r"blocks\.(\d+)\.", key))})


def _check_sizes(config: FusMAEConfig, state_dict: Mapping[str, Tensor]) -> None:
    """Width, MLP and number of blocks, each with the setting that would fit."""
    numbers = _block_numbers(state_dict)
    if not numbers:
        first = ", ".join(list(state_dict)[:5]) or "none"
        raise ValueError(
            f"there is no ViT under timm's names: no key such as blocks.0.attn.qkv.weight; the first keys are {first}"
        )
    if missing := sorted(set(range(numbers[-1] + 1)) - set(numbers)):
        raise ValueError(f"block {missing[0]} of {numbers[-1] + 1} is missing; use a whole file")
    width, hidden = config.width, config.hidden_width(config.width)
    norm, fc1 = (state_dict.get(f"blocks.0.{key}.weight") for key in ("norm1", "mlp.fc1"))
    if norm is not None and norm.ndim == 1 and len(norm) != width:
        raise ValueError(
            f"the ViT is {len(norm)} wide, the model {width}: write width: {len(norm)}, or use a file of width {width}"
        )
    if fc1 is not None and fc1.ndim == 2 and len(fc1) != hidden:
        raise ValueError(
            f"the ViT's MLP is {len(fc1)} wide, the model's {hidden}: write mlp_ratio: {len(fc1) / width:g}, or use"
            f" a file with {hidden}"
        )
    if len(numbers) != config.depth:
        raise ValueError(
            f"the ViT has {len(numbers)} blocks, the model {config.depth}: write depth: {len(numbers)}, or use a file"
            f" with {config.depth}"
        )


def _expected_shapes(config: FusMAEConfig) -> dict[str, tuple[int, ...]]:
    """Of every key that a file must have."""
    width, hidden = config.width, config.hidden_width(config.width)
    maps = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    maps |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(config.depth):
        for layer in TIMM_BLOCK:
            weight = maps.get(layer, (width,))
            shapes |= {f"blocks.{number}.{layer}.weight": weight, f"blocks.{number}.{layer}.bias": weight[:1]}
    return shapes


def _check_blocks(state_dict: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for key in state_dict:
        # A scale, a norm of q and k or the like: without it the block would compute something else.
        if key.startswith(("blocks.", "norm_pre.")) and key not in shapes:
            raise ValueError(
                f"'{key}' has no place in the model: its blocks are plain pre-norm ViT blocks; use such a ViT"
            )
    for key, shape in shapes.items():
        _check_shape(state_dict, key, shape)


def _check_rest(config: FusMAEConfig, state_dict: Mapping[str, Tensor]) -> None:
    """What lies outside of the blocks: projection and, if they are there, norm, class token and positions."""
    width = (config.width,)
    _check_shape(state_dict, "patch_embed.proj.bias", width)
    kernel = state_dict.get("patch_embed.proj.weight")
    side = kernel.shape[-1] if kernel is not None and kernel.ndim == 4 else config.patch_size
    _check_shape(state_dict, "patch_embed.proj.weight", (config.width, 3, side, side))
    if "norm.weight" in state_dict or "norm.bias" in state_dict:
        _check_shape(state_dict, "norm.weight", width)
        _check_shape(state_dict, "norm.bias", width)
    if "cls_token" in state_dict and config.global_token:
        _check_shape(state_dict, "cls_token", (1, 1, config.width))
    if "pos_embed" in state_dict and config.positions == "learned":
        found = tuple(state_dict["pos_embed"].shape)
        if len(found) != 3 or found[::2] != (1, config.width) or _prefix_tokens(found[1]) is None:
            raise ValueError(
                f"'pos_embed' has shape {found}; expected (1, patches, {config.width}) of a square grid, with a class"
                " token before it or none; or write positions: sincos"
            )


def _check_shape(state_dict: Mapping[str, Tensor], key: str, expected: tuple[int, ...]) -> None:
    if key not in state_dict:
        raise ValueError(f"'{key}' is missing; use a file of a whole ViT with biases")
    found = tuple(state_dict[key].shape)
    if found != expected:
        raise ValueError(f"'{key}' has shape {found}, expected {expected}")
    if not state_dict[key].is_floating_point():
        raise ValueError(f"'{key}' holds {state_dict[key].dtype}, expected floating-point weights")


def _prefix_tokens(length: int) -> int | None:
    """Positions before those of a square grid: none, or the class token's."""
    return next(
        (prefix for prefix in (0, 1) if length > prefix and isqrt(length - prefix) ** 2 == length - prefix), None
    )


def _plan_blocks(model: FusMAE, kept: Mapping[str, Tensor]) -> dict[str, _Planned]:
    """Blocks and last norm."""
    planned: dict[str, _Planned] = {}
    fusion = model.encoder.fusion
    for number in range(model.config.depth):
        for theirs, ours in TIMM_BLOCK.items():
            for part in ("weight", "bias"):
                key = f"blocks.{number}.{theirs}.{part}"
                if number == 0 and fusion is not None:
                    planned |= _plan_fusion(fusion, kept[key], key, f"{ours}.{part}")
                else:
                    block = number - (fusion is not None)
                    planned[f"encoder.blocks.{block}.{ours}.{part}"] = _Planned(kept[key], key)
    if "norm.weight" in kept:
        planned |= {
            f"encoder.norm.{part}": _Planned(kept[f"norm.{part}"], f"norm.{part}") for part in ("weight", "bias")
        }
    return planned


def _plan_fusion(fusion: XAttnEncoder, value: Tensor, key: str, ours: str) -> dict[str, _Planned]:
    """One parameter of a ViT block in the XAttnEncoder: its map to q, k and v is cut into ours to q and to k, v."""
    if not ours.startswith("attention."):
        return {f"encoder.fusion.{ours}": _Planned(value, key)}
    _, layer, part = ours.split(".")
    pieces = {layer: _Planned(value, key)}
    if layer == "qkv":
        width = len(value) // 3
        pieces = {"q": _Planned(value[:width], key, f"[:{width}]"), "kv": _Planned(value[width:], key, f"[{width}:]")}
    return {
        f"encoder.fusion.cross_attention.{name}.{layer}.{part}": plan
        for name in fusion.cross_attention
        for layer, plan in pieces.items()
    }


def _plan_projections(config: FusMAEConfig, kept: Mapping[str, Tensor]) -> dict[str, _Planned]:
    key = "patch_embed.proj"
    kernel_D3pp = kept[f"{key}.weight"]
    kernel_D3PP = resize_kernel(kernel_D3pp, config.patch_size)
    side = kernel_D3pp.shape[-1]
    resized = f" resized from {side} to {config.patch_size} pixels," if side != config.patch_size else ""
    planned = {}
    for modality in config.modalities:
        own = ", B04 B03 B02 their own colour's" if set(RGB) <= set(modality.bands) else ""
        note = f",{resized} spread over {len(modality.bands)} bands{own}"
        name = f"projections.{modality.name}.linear"
        planned[f"{name}.weight"] = _Planned(inflate_kernel(kernel_D3PP, modality), f"{key}.weight", note)
        planned[f"{name}.bias"] = _Planned(kept[f"{key}.bias"], f"{key}.bias")
    return planned


def _plan_tokens(model: FusMAE, kept: Mapping[str, Tensor]) -> dict[str, _Planned]:
    """The class token and the positions."""
    planned = {}
    config = model.config
    if "cls_token" in kept and config.global_token:
        planned["encoder.global_token_D"] = _Planned(kept["cls_token"][0, 0], "cls_token", ", without its position")
    if "pos_embed" in kept and config.positions == "learned":
        table_ND = kept["pos_embed"][0]
        table_ND = table_ND[_prefix_tokens(len(table_ND)) or 0 :]
        side = isqrt(len(table_ND))
        resized = f", resized from {side} x {side} to {config.grid} x {config.grid}" if side != config.grid else ""
        planned["positions.table_ND"] = _Planned(resize_positions(table_ND, config.grid), "pos_embed", resized)
    return planned


def _why_unused(config: FusMAEConfig, key: str) -> str:
    if key == "cls_token":
        return "the model has no global token"
    if key == "pos_embed":
        return "the model's positions are fixed"
    return next((reason for start, reason in _UNUSED.items() if re.match(start, key)), "unknown to the model")


def _families(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by their first two parts."""
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(".".join(name.split(".")[:2]), []).append(name)
    return families


def _origin(sources: list[str]) -> str:
    """Where a family came from: its blocks, or what the first of its parameters says."""
    numbers = _block_numbers(sources)
    if not numbers:
        return sources[0]
    return f"blocks.{numbers[0]}" + (f" to blocks.{numbers[-1]}" if len(numbers) > 1 else "")
