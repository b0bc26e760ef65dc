import pytest
import torch

from fusmae.encoder import MLP, Block, Encoder, XAttnEncoder
from fusmae.model import FusMAE


def make_tokens(*lengths, width=32):
    return {f"m{i}": torch.randn(2, n, width, dtype=torch.float64) for i, n in enumerate(lengths)}


def make_fusion(names, share=True, backend="xformers"):
    return XAttnEncoder(32, 4, 128, names, share, backend).double()


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_mlp_is_two_linear_maps_and_a_gelu(oracle, randomise):
    module = randomise(MLP(8, 16).double())
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(module(x), oracle.mlp(oracle.tree(module), x), rtol=0, atol=1e-12)


def test_block_is_a_pre_norm_vit_block(oracle, randomise):
    module = randomise(Block(32, 4, 128).double())
    w, x = oracle.tree(module), torch.randn(2, 7, 32, dtype=torch.float64)
    middle = x + oracle.self_attention(w["attention"], oracle.norm(w["norm1"], x), 4)
    expected = middle + oracle.mlp(w["mlp"], oracle.norm(w["norm2"], middle))
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("share", [True, False])
def test_xattn_encoder_is_equations_2_and_3(oracle, randomise, share):
    tokens = make_tokens(5, 7)
    module = randomise(make_fusion(tokens, share))
    w, (x, y) = oracle.tree(module), tokens.values()
    cross_x, cross_y = (w["cross_attention"]["shared" if share else name] for name in tokens)
    normed_x, normed_y = oracle.norm(w["norm1"], x), oracle.norm(w["norm1"], y)
    fus = torch.cat([x, y], 1) + torch.cat(
        [oracle.cross(cross_x, normed_x, normed_y, 4), oracle.cross(cross_y, normed_y, normed_x, 4)], 1
    )
    expected = fus + oracle.mlp(w["mlp"], oracle.norm(w["norm2"], fus))
    torch.testing.assert_close(torch.cat([*module(tokens).values()], 1), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("lengths", [(5, 7), (4, 4), (3, 5, 6)])
def test_shared_xattn_encoder_is_a_vit_block_that_may_not_attend_within_a_modality(randomise, lengths):
    tokens = make_tokens(*lengths)
    block, module = randomise(Block(32, 4, 128).double()), make_fusion(tokens)
    module.load_block(block)
    bias = torch.zeros(sum(lengths), sum(lengths), dtype=torch.float64)
    start = 0
    for length in lengths:
        bias[start : start + length, start : start + length] = float("-inf")
        start += length
    fused, joined = torch.cat([*module(tokens).values()], 1), torch.cat([*tokens.values()], 1)
    torch.testing.assert_close(fused, block(joined, bias[None, None]), rtol=0, atol=1e-11)
    assert not torch.allclose(fused, block(joined))  # the mask is what makes them equal
    assert count(module) == count(block)


def test_both_directions_read_the_same_inputs(randomise):
    tokens = make_tokens(5, 7)
    module = randomise(make_fusion(tokens))
    swapped = module(dict(reversed(tokens.items())))
    for name, fused in module(tokens).items():
        assert torch.equal(fused, swapped[name])


def test_with_three_modalities_each_reads_the_two_others(randomise):
    tokens = make_tokens(3, 4, 5)
    module = randomise(make_fusion(tokens))
    before = module(tokens)
    for changed in tokens:
        after = module({**tokens, changed: tokens[changed] + torch.randn_like(tokens[changed])})
        assert all(not torch.allclose(after[name], before[name]) for name in tokens)


@pytest.mark.parametrize("share", [True, False])
def test_a_modality_alone_skips_the_cross_attention(oracle, randomise, share):
    tokens = make_tokens(5, 7)
    module = randomise(make_fusion(tokens, share))
    w, x = oracle.tree(module), tokens["m0"]
    expected = x + oracle.mlp(w["mlp"], oracle.norm(w["norm2"], x))
    torch.testing.assert_close(module({"m0": x})["m0"], expected, rtol=0, atol=1e-11)


def test_backends_give_the_same_fusion(randomise):
    tokens = make_tokens(5, 7)
    reference = randomise(make_fusion(tokens, backend="math"))
    for backend in ("xformers", "sdpa"):
        module = make_fusion(tokens, backend=backend)
        module.load_state_dict(reference.state_dict())
        for name, fused in reference(tokens).items():
            torch.testing.assert_close(module(tokens)[name], fused, rtol=0, atol=1e-12)


def test_a_vit_b_fusion_has_the_parameters_of_a_vit_b_block():
    with torch.device("meta"):
        shared = XAttnEncoder(768, 12, 3072, ("s1", "s2"))
        apart = XAttnEncoder(768, 12, 3072, ("s1", "s2"), share=False)
        assert count(shared) == count(Block(768, 12, 3072)) == 7_087_872
    assert count(apart) - count(shared) == 2_362_368


@pytest.mark.parametrize("fusion", ["xae", "none"])
def test_encoder_joins_tokens_appends_the_global_one_and_normalises_last(tiny, fusion, randomise):
    tokens = {name: torch.randn(2, 4, 32, dtype=torch.float64) for name in ("s1", "s2")}
    encoder = randomise(Encoder(tiny(encoder_fusion=fusion)).double())
    latents, global_token = encoder(tokens)
    assert len(encoder.blocks) == (2 if fusion == "xae" else 3)
    x = torch.cat([*(encoder.fusion(tokens) if fusion == "xae" else tokens).values()], 1)
    x = torch.cat([x, encoder.global_token_D.expand(2, 1, 32)], 1)
    for block in encoder.blocks:
        x = block(x)
    x = encoder.norm(x)
    assert torch.equal(torch.cat([latents["s1"], latents["s2"]], 1), x[:, :8])
    assert torch.equal(global_token, x[:, 8])


def test_encoder_does_not_care_about_the_order_of_tokens(tiny, randomise):
    encoder = randomise(Encoder(tiny()).double())
    tokens = {name: torch.randn(2, 6, 32, dtype=torch.float64) for name in ("s1", "s2")}
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    latents, global_token = encoder(tokens)
    moved, moved_global = encoder({"s1": tokens["s1"][:, order], "s2": tokens["s2"]})
    torch.testing.assert_close(moved["s1"], latents["s1"][:, order], rtol=0, atol=1e-11)
    torch.testing.assert_close(moved["s2"], latents["s2"], rtol=0, atol=1e-11)
    torch.testing.assert_close(moved_global, global_token, rtol=0, atol=1e-11)


def test_fusion_costs_no_parameters(tiny):
    assert count(Encoder(tiny(encoder_fusion="xae"))) == count(Encoder(tiny(encoder_fusion="none")))


def test_matrices_start_xavier_uniform_and_the_rest_as_documented(tiny):
    model = FusMAE(tiny())
    bound = (6 / (32 + 32)) ** 0.5
    for block in model.encoder.blocks:
        for matrix in block.attention.qkv.weight.split(32):
            assert 0.9 * bound < matrix.abs().max() <= bound
    cross = model.encoder.fusion.cross_attention["shared"]
    for matrix in cross.kv.weight.split(32):
        assert 0.9 * bound < matrix.abs().max() <= bound
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif parameter.ndim == 1:
            assert 0 < parameter.abs().max() < 0.1, name
