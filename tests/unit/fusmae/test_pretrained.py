"""A ViT under timm's names, written out here, beside a Fus-MAE that starts from its weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fusmae import FusMAE, Modality
from fusmae.encoder import Block, XAttnEncoder
from fusmae.patch import patchify
from fusmae.pretrained import inflate_kernel, load_vit, resize_kernel, resize_positions

GREY = Modality(name="grey", bands=("VV", "VH"))
COLOUR = Modality(name="colour", bands=("B01", "B02", "B03", "B04", "B08"))


class VitBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x, allowed=None):
        batch, length, width = x.shape
        qkv = self.attn["qkv"](self.norm1(x)).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*qkv, attn_mask=allowed).transpose(1, 2)
        x = x + self.attn["proj"](attended.reshape(batch, length, width))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Vit(nn.Module):
    def __init__(self, width=32, depth=3, heads=4, patch=4, grid=4):
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + grid**2, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.blocks = nn.ModuleList(VitBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 10)
        self.mask_token = nn.Parameter(torch.empty(1, 1, 8))
        self.decoder_blocks = nn.ModuleList([VitBlock(8, 2)])

    def patches(self, image):
        return self.patch_embed["proj"](image).flatten(2).transpose(1, 2)


@pytest.fixture
def vit(randomise):
    """Makes a ViT in which no weight is what it would be by chance or default."""
    return lambda **sizes: randomise(Vit(**sizes).double())


@pytest.fixture
def model(tiny):
    return lambda **changes: FusMAE(tiny(**{"decoder_fusion": "none", **changes})).double()


def parameters_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_without_fusion_the_encoder_is_the_vit(vit, model):
    source, loaded = vit(), model(encoder_fusion="none")
    load_vit(loaded, source.state_dict())
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    for ours, theirs in zip(loaded.encoder.blocks, source.blocks, strict=True):
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)
    tokens = {"s1": x[:, :4], "s2": x[:, 4:]}
    latents, global_token = loaded.encoder(tokens)
    expected = torch.cat([x, source.cls_token.expand(2, 1, -1)], dim=1)
    for block in source.blocks:
        expected = block(expected)
    expected = source.norm(expected)
    torch.testing.assert_close(torch.cat([*latents.values()], 1), expected[:, :9], rtol=0, atol=1e-11)
    torch.testing.assert_close(global_token, expected[:, 9], rtol=0, atol=1e-11)


def test_an_encoder_that_was_not_loaded_is_not_the_vit(vit, model):
    source, random = vit(), model(encoder_fusion="none")
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    assert not torch.allclose(random.encoder.blocks[0](x), source.blocks[0](x), atol=1e-3)


@pytest.mark.parametrize("share", [True, False])
def test_the_xattn_encoder_is_the_first_block_whose_tokens_may_not_attend_within_a_modality(vit, model, share):
    source, loaded = vit(), model(share_cross_attention=share)
    load_vit(loaded, source.state_dict())
    tokens = {name: torch.randn(2, n, 32, dtype=torch.float64) for name, n in (("s1", 5), ("s2", 7))}
    side = torch.arange(12) < 5
    allowed = side[:, None] != side[None]
    joined = torch.cat([*tokens.values()], dim=1)
    expected = source.blocks[0](joined, allowed)
    fused = torch.cat([*loaded.encoder.fusion(tokens).values()], dim=1)
    torch.testing.assert_close(fused, expected, rtol=0, atol=1e-11)
    assert not torch.allclose(fused, source.blocks[0](joined))  # the mask is what makes them equal
    for ours, theirs in zip(loaded.encoder.blocks, source.blocks[1:], strict=True):
        torch.testing.assert_close(ours(joined), theirs(joined), rtol=0, atol=1e-12)


def test_the_xattn_encoder_gets_what_load_block_gives_it(vit, model):
    source, loaded = vit(), model()
    load_vit(loaded, source.state_dict())
    block, by_hand = Block(32, 4, 128).double(), XAttnEncoder(32, 4, 128, ("s1", "s2")).double()
    names = {key.replace("attn.", "attention."): value for key, value in source.blocks[0].state_dict().items()}
    block.load_state_dict(names)
    by_hand.load_block(block)
    for name, value in by_hand.state_dict().items():
        assert torch.equal(loaded.encoder.fusion.state_dict()[name], value), name


def project(model, name, image):
    """Tokens before the position."""
    return model.projections[name].linear(patchify(image, model.config.patch_size))


@pytest.mark.parametrize("patch", [4, 8, 2, 7])
def test_a_grey_image_has_the_tokens_of_the_rgb_vit(vit, model, patch):
    source, loaded = vit(patch=patch), model(modalities=(GREY, COLOUR))
    load_vit(loaded, source.state_dict())
    expected = source.patches(torch.full((1, 3, patch, patch), 0.7, dtype=torch.float64))[:, 0]
    for modality in (GREY, COLOUR):
        image = torch.full((1, len(modality.bands), 16, 16), 0.7, dtype=torch.float64)
        for token in project(loaded, modality.name, image).unbind(1):
            torch.testing.assert_close(token, expected, rtol=0, atol=1e-12)


def test_three_bands_in_any_order_are_the_rgb_projection(vit, model):
    bands = ("B03", "B04", "B02")
    source, loaded = vit(), model(modalities=(Modality(name="rgb", bands=bands), GREY))
    load_vit(loaded, source.state_dict())
    rgb = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    ours = project(loaded, "rgb", rgb[:, [1, 0, 2]])
    torch.testing.assert_close(ours, source.patches(rgb), rtol=0, atol=1e-12)
    assert not torch.allclose(project(loaded, "rgb", rgb), source.patches(rgb))


def test_each_band_has_its_kernel_in_the_order_of_patchify():
    kernel_D3PP = torch.randn(6, 3, 4, 4, dtype=torch.float64)
    weight_DPPC = inflate_kernel(kernel_D3PP, COLOUR).unflatten(1, (4, 4, 5))
    kernels = {"B04": kernel_D3PP[:, 0], "B03": kernel_D3PP[:, 1], "B02": kernel_D3PP[:, 2]}
    for place, band in enumerate(COLOUR.bands):
        expected = kernels.get(band, kernel_D3PP.mean(1)) * (3 / 5)
        torch.testing.assert_close(weight_DPPC[..., place], expected, rtol=0, atol=1e-15)


def test_without_all_three_colours_every_band_has_the_mean():
    kernel_D3PP = torch.randn(6, 3, 4, 4, dtype=torch.float64)
    weight_DPPC = inflate_kernel(kernel_D3PP, Modality(name="s2", bands=("B04", "B02"))).unflatten(1, (4, 4, 2))
    for place in (0, 1):
        assert torch.equal(weight_DPPC[..., place], kernel_D3PP.mean(1) * 1.5)


@pytest.mark.parametrize("patch", [8, 12, 20])
def test_a_resized_kernel_keeps_each_sum_and_looks_the_same(patch):
    ramp = torch.linspace(-1, 1, 16, dtype=torch.float64)
    kernel = torch.stack([ramp.expand(16, 16), ramp[:, None].expand(16, 16) + 1, torch.randn(16, 16)])[None]
    resized = resize_kernel(kernel, patch)
    assert resized.shape == (1, 3, patch, patch)
    torch.testing.assert_close(resized.sum((2, 3)), kernel.sum((2, 3)), rtol=0, atol=1e-12)
    # A ramp stays a ramp, in units of the larger pixels; a kernel whose sum is 0 does not blow up.
    middle = resized[0, 0, patch // 2] / (16 / patch) ** 2
    assert (middle.diff() > 0).all() and 0.8 < middle[-1] <= 1.1 and -1.1 <= middle[0] < -0.8


def test_a_kernel_of_our_patch_size_is_taken_as_it_is():
    kernel = torch.randn(6, 3, 4, 4)
    assert torch.equal(resize_kernel(kernel, 4), kernel)


def test_learned_positions_are_taken_without_the_class_tokens(vit, model):
    source, loaded = vit(), model(positions="learned")
    before = parameters_of(loaded.decoder)
    report = load_vit(loaded, source.state_dict())
    assert torch.equal(loaded.positions.table_ND, source.pos_embed[0, 1:])
    assert report.loaded["positions.table_ND"] == "pos_embed"
    assert unchanged(loaded.decoder, before)


def test_positions_of_another_grid_are_resized_row_by_row():
    rows = torch.arange(6, dtype=torch.float64)[:, None].expand(6, 6)
    table_ND = torch.stack([rows.flatten(), rows.T.flatten(), torch.ones(36)], dim=1)
    resized = resize_positions(table_ND, 3).unflatten(0, (3, 3))
    assert resized.shape == (3, 3, 3)
    torch.testing.assert_close(resized[1, :, 0], torch.full((3,), 2.5, dtype=torch.float64))
    torch.testing.assert_close(resized[:, 1, 1], torch.full((3,), 2.5, dtype=torch.float64))
    torch.testing.assert_close(resized[..., 2], torch.ones(3, 3, dtype=torch.float64))
    assert (resized[..., 0].diff(dim=0) > 1).all() and (resized[..., 1].diff(dim=1) > 1).all()


def test_positions_of_another_grid_reach_the_model(vit, model):
    source, loaded = vit(grid=6), model(positions="learned")
    report = load_vit(loaded, source.state_dict())
    assert torch.equal(loaded.positions.table_ND, resize_positions(source.pos_embed[0, 1:], 4))
    assert report.loaded["positions.table_ND"] == "pos_embed, resized from 6 x 6 to 4 x 4"


@pytest.mark.parametrize("fusion", ["none", "xae"])
@pytest.mark.parametrize("positions", ["sincos", "learned"])
@pytest.mark.parametrize("global_token", [True, False])
def test_the_report_has_every_parameter_and_every_key_once(vit, model, fusion, positions, global_token):
    source = vit(patch=8).state_dict()
    loaded = model(encoder_fusion=fusion, positions=positions, global_token=global_token)
    before = parameters_of(loaded)
    report = load_vit(loaded, source)
    names = [name for name, _ in loaded.named_parameters()]
    assert sorted([*report.loaded, *report.left]) == sorted(names)
    used = {said.split(",")[0].split("[")[0] for said in report.loaded.values()}
    assert used | report.unused.keys() == source.keys() and not used & report.unused.keys()
    after = loaded.state_dict()
    for name in names:
        assert torch.equal(after[name], before[name]) == (name in report.left), name
    assert all(name.startswith(("decoder.", "positions.")) for name in report.left if name != "encoder.global_token_D")
    assert ("pos_embed" in report.unused) == (positions == "sincos")
    assert ("cls_token" in report.unused) == (not global_token)
    assert report.unused["head.weight"] == "of its classifier"
    assert report.unused["mask_token"] == report.unused["decoder_blocks.0.norm1.bias"] == "of the file's own decoder"


def test_the_report_is_told_by_groups(vit, model):
    loaded = model(modalities=(GREY, COLOUR))
    lines = load_vit(loaded, vit(patch=8).state_dict() | {"extra": torch.ones(1)}).describe()
    total = len(list(loaded.parameters()))
    assert lines[0].startswith("45 of ") and lines[0].endswith(f" {total} parameters start from the file")
    assert "  loaded: encoder.fusion (14) from blocks.0" in lines
    assert "  loaded: encoder.blocks (24) from blocks.1 to blocks.2" in lines
    spread = "patch_embed.proj.weight, resized from 8 to 4 pixels, spread over 5 bands, B04 B03 B02 their own colour's"
    assert f"  loaded: projections.colour (2) from {spread}" in lines
    assert "  loaded: encoder.global_token_D (1) from cls_token, without its position" in lines
    assert "  not used: pos_embed: the model's positions are fixed" in lines
    assert "  not used: extra: unknown to the model" in lines
    assert any(line.startswith("  random: decoder.") for line in lines)


def test_a_file_without_last_norm_leaves_ours(vit, model):
    source = vit().state_dict()
    report = load_vit(model(), {key: value for key, value in source.items() if not key.startswith("norm.")})
    assert {"encoder.norm.weight", "encoder.norm.bias"} <= set(report.left)


def test_half_precision_files_fill_a_float32_model(vit, tiny):
    source = {key: value.half() for key, value in vit(patch=8).state_dict().items()}
    loaded = FusMAE(tiny())
    load_vit(loaded, source)
    assert torch.equal(loaded.encoder.blocks[0].mlp.fc1.weight, source["blocks.1.mlp.fc1.weight"].float())
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def without(key):
    return lambda state: {name: value for name, value in state.items() if name != key}


def with_value(key, value):
    return lambda state: {**state, key: value}


def cut(key, *size):
    return lambda state: {**state, key: torch.zeros(size)}


WRONG = {
    "no vit": (lambda state: {"vit.layer.0.query": torch.ones(1)}, "no ViT.*the first keys are vit.layer.0.query"),
    "empty": (lambda state: {}, "no ViT.*the first keys are none"),
    "block without bias": (without("blocks.1.attn.qkv.bias"), r"'blocks\.1\.attn\.qkv\.bias' is missing"),
    "no width": (without("blocks.0.norm1.weight"), r"'blocks\.0\.norm1\.weight' is missing"),
    "no projection": (without("patch_embed.proj.weight"), r"'patch_embed\.proj\.weight' is missing"),
    "half a norm": (without("norm.bias"), r"'norm\.bias' is missing"),
    "layer scale": (with_value("blocks.0.ls1.gamma", torch.ones(32)), r"'blocks\.0\.ls1\.gamma' has no place"),
    "norm before": (with_value("norm_pre.weight", torch.ones(32)), r"'norm_pre\.weight' has no place"),
    "shape": (
        cut("blocks.2.attn.proj.weight", 32, 31),
        r"'blocks\.2\.attn\.proj\.weight' has shape \(32, 31\), expected \(32, 32\)",
    ),
    "twelve channels": (
        cut("patch_embed.proj.weight", 32, 12, 4, 4),
        r"'patch_embed\.proj\.weight' has shape \(32, 12, 4, 4\), expected \(32, 3, 4, 4\)",
    ),
    "oblong patches": (cut("patch_embed.proj.weight", 32, 3, 2, 4), r"expected \(32, 3, 4, 4\)"),
    "linear projection": (cut("patch_embed.proj.weight", 32, 48), r"expected \(32, 3, 4, 4\)"),
    "class token": (cut("cls_token", 1, 32), r"'cls_token' has shape \(1, 32\)"),
    "positions": (cut("pos_embed", 1, 15, 32), r"'pos_embed' has shape \(1, 15, 32\).*or write positions: sincos"),
    "integers": (
        with_value("blocks.0.norm1.weight", torch.ones(32, dtype=torch.int8)),
        r"'blocks\.0\.norm1\.weight' holds torch\.int8",
    ),
    "not finite": (
        with_value("blocks.1.mlp.fc1.bias", torch.full((128,), torch.nan)),
        r"'blocks\.1\.mlp\.fc1\.bias' holds numbers that are not finite",
    ),
    "gap": (
        lambda state: {key: value for key, value in state.items() if not key.startswith("blocks.1.")},
        "block 1 of 3 is missing",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_is_refused_and_writes_nothing(vit, model, kind):
    change, message = WRONG[kind]
    refused = model(positions="learned")
    before = parameters_of(refused)
    with pytest.raises(ValueError, match=message):
        load_vit(refused, change(vit().state_dict()))
    assert unchanged(refused, before)


@pytest.mark.parametrize(
    ("sizes", "changes", "message"),
    [
        ({"depth": 4}, {}, r"the ViT has 4 blocks, the model 3: write depth: 4, or use a file with 3"),
        ({"depth": 2}, {}, r"the ViT has 2 blocks, the model 3: write depth: 2, or use a file with 3"),
        ({"width": 64}, {}, r"the ViT is 64 wide, the model 32: write width: 64, or use a file of width 32"),
        ({}, {"mlp_ratio": 2.0}, r"MLP is 128 wide, the model's 64: write mlp_ratio: 4, or use a file with 64"),
    ],
)
def test_another_size_is_refused_with_the_setting_that_fits(vit, model, sizes, changes, message):
    refused = model(**changes)
    before = parameters_of(refused)
    with pytest.raises(ValueError, match=message):
        load_vit(refused, vit(**sizes).state_dict())
    assert unchanged(refused, before)


def test_the_right_file_is_not_refused(vit, model):
    loaded = model(positions="learned")
    before = parameters_of(loaded)
    load_vit(loaded, vit().state_dict())
    assert not unchanged(loaded, before)
