import pytest
import torch

from fusmae.decoder import Context, Decoder, LightDecoder, XAttnDecoder
from fusmae.masking import MaskingConfig, sample_masks
from fusmae.patch import gather_patches, sincos_positions


def test_xattn_decoder_is_equations_10_and_11(oracle, randomise):
    module = randomise(XAttnDecoder(32, 4, 128).double())
    w = oracle.tree(module)
    z_i, z_j = torch.randn(2, 5, 32, dtype=torch.float64), torch.randn(2, 7, 32, dtype=torch.float64)
    crossed = z_i + oracle.cross(w["cross_attention"], oracle.norm(w["norm1"], z_i), oracle.norm(w["norm1"], z_j), 4)
    expected = crossed + oracle.mlp(w["mlp"], oracle.norm(w["norm2"], crossed))
    torch.testing.assert_close(module(z_i, z_j), expected, rtol=0, atol=1e-11)


def test_xattn_decoder_alone_skips_the_cross_attention(oracle, randomise):
    module = randomise(XAttnDecoder(32, 4, 128).double())
    w, z = oracle.tree(module), torch.randn(2, 5, 32, dtype=torch.float64)
    expected = z + oracle.mlp(w["mlp"], oracle.norm(w["norm2"], z))
    torch.testing.assert_close(module(z, None), expected, rtol=0, atol=1e-11)


def test_a_vit_b_xattn_decoder_has_the_parameters_of_a_vit_b_block():
    with torch.device("meta"):
        module = XAttnDecoder(768, 12, 3072)
    assert sum(parameter.numel() for parameter in module.parameters()) == 7_087_872


def test_light_decoder_predicts_as_if_tokens_were_put_back_in_place(oracle, randomise, draw):
    """The usual way: mask tokens and latents in raster order, decode all, keep the masked."""
    module = randomise(LightDecoder(32, 16, 2, 2, 64, 48).double())
    w, table = oracle.tree(module), sincos_positions(4, 4, 16, torch.float64)
    mask = sample_masks(MaskingConfig(), 16, ("s2",), draw(range(3)))["s2"]
    z = torch.randn(3, 4, 32, dtype=torch.float64)
    raster = w["mask_token_W"].expand(3, 16, 16).clone()
    raster.scatter_(1, mask.ids_visible_BV[:, :, None].expand(-1, -1, 16), oracle.linear(w["embed"], z))
    x = raster + table + w["modality_embedding_W"]
    for number in ("0", "1"):
        block = w["blocks"][number]
        x = x + oracle.self_attention(block["attention"], oracle.norm(block["norm1"], x), 2)
        x = x + oracle.mlp(block["mlp"], oracle.norm(block["norm2"], x))
    expected = gather_patches(oracle.linear(w["head"], oracle.norm(w["norm"], x)), mask.ids_masked_BM)
    context = Context(z, table[mask.ids_visible_BV], (4,), slice(0, 4), None)
    predicted = module(context, table[mask.ids_masked_BM])
    torch.testing.assert_close(predicted, expected, rtol=0, atol=1e-11)


def parts(masks):
    """Visible and masked patches by modality."""
    return {n: m.ids_visible_BV for n, m in masks.items()}, {n: m.ids_masked_BM for n, m in masks.items()}


@pytest.mark.parametrize(("fusion", "crosses"), [("xad", True), ("multimae", True), ("none", False)])
def test_only_the_xattn_decoder_lets_one_modality_see_the_other(tiny, draw, randomise, fusion, crosses):
    decoder = randomise(Decoder(tiny(decoder_fusion=fusion)).double())
    masks = sample_masks(MaskingConfig(), 16, ("s1", "s2"), draw(range(2)))
    latents = {name: torch.randn(2, 4, 32, dtype=torch.float64) for name in ("s1", "s2")}
    before = decoder(latents, None, *parts(masks))
    after = decoder({**latents, "s2": latents["s2"] + 1}, None, *parts(masks))
    assert torch.equal(before["s1"], after["s1"]) is not crosses
    assert before["s1"].shape == (2, 12, 32) and before["s2"].shape == (2, 12, 48)


def test_each_modality_is_crossed_with_the_others_latents_from_the_encoder(tiny, draw, randomise):
    decoder = randomise(Decoder(tiny()).double())
    masks = sample_masks(MaskingConfig(), 16, ("s1", "s2"), draw(range(2)))
    z = {name: torch.randn(2, 4, 32, dtype=torch.float64) for name in ("s1", "s2")}
    predictions = decoder(z, None, *parts(masks))
    for name, other in (("s1", "s2"), ("s2", "s1")):
        crossed = decoder.fusion[name](z[name], z[other])
        sizes = tuple(4 * (modality == name) for modality in ("s1", "s2"))
        context = Context(crossed, decoder.positions(masks[name].ids_visible_BV), sizes, slice(0, 4), None)
        positions = decoder.positions(masks[name].ids_masked_BM)
        assert torch.equal(predictions[name], decoder.light[name](context, positions))
