"""Decoders, masks, targets and positions that a config may ask for, each against its definition written out."""

import pytest
import torch

from fusmae import CounterRandom, FusMAE, Modality
from fusmae.decoder import Context, CrossBlock, LightDecoder
from fusmae.hiding import hide
from fusmae.masking import MaskingConfig, sample_masks
from fusmae.patch import gather_patches, patchify, sincos_positions

VARIANTS = [
    {"decoder_fusion": "multimae", "encoder_fusion": "none"},
    {"decoder_fusion": "multimae", "decode_global_token": True},
    {"decoder_attention": "cross", "decoder_queries": 0.25},
    {"decoder_attention": "cross", "decoder_fusion": "none", "decode_global_token": True},
    {"decoder_queries": 0.5, "target_norm": "per_band_group"},
    {"global_token": False, "positions": "learned"},
    {"masking": "disjoint", "decode_global_token": True},
    {"masking": "band_group", "target_norm": "per_band_group"},
]


def randomised(tiny, randomise, **changes):
    return randomise(FusMAE(tiny(**changes)).double(), 0.1)


def hidden_pixels(model, output, name, images_BCHW):
    """(B, C, H, W) bool: what the model may not see."""
    patch, side = model.config.patch_size, model.config.grid
    grid_BRC = output.masks[name].mask_BN.unflatten(1, (side, side))
    return grid_BRC.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, None].expand_as(images_BCHW)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_nothing_leaks_and_everything_that_is_visible_counts(tiny, images, draw, randomise, changes):
    model = randomised(tiny, randomise, **changes)
    batch = {name: image.requires_grad_() for name, image in images(model.config, 4, torch.float64).items()}
    random = draw(range(4))
    out = model(batch, random)
    bands = hide(model.config, list(batch), random, training=True).hidden_bands
    everything = sum(prediction.square().sum() for prediction in out.predictions.values())
    for what in (everything, out.loss):
        gradients = torch.autograd.grad(what, [*batch.values()], retain_graph=True)
        for name, gradient in zip(batch, gradients, strict=True):
            hidden = hidden_pixels(model, out, name, gradient).clone()
            if name in bands:
                hidden |= bands[name][:, :, None, None]
            assert (gradient[hidden] == 0).all()
            assert (gradient[~hidden] != 0).float().mean() > 0.99


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_weight_learns(tiny, images, draw, randomise, changes):
    model = randomised(tiny, randomise, **changes)
    model(images(model.config, 4, torch.float64), draw(range(4))).loss.backward()
    idle = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert idle == []


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_a_batch_gives_what_each_of_its_samples_gives_alone(tiny, images, draw, randomise, changes):
    model = randomised(tiny, randomise, **changes)
    batch = images(model.config, 4, torch.float64)
    together = model(batch, draw(range(4)))
    for sample in range(4):
        alone = model({name: image[sample : sample + 1] for name, image in batch.items()}, draw([sample]))
        for name in batch:
            torch.testing.assert_close(
                alone.predictions[name][0], together.predictions[name][sample], rtol=0, atol=1e-11
            )


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("name", ["s1", "s2"])
def test_one_modality_alone_is_no_obstacle(tiny, images, draw, randomise, changes, name):
    model = randomised(tiny, randomise, **changes)
    batch = {name: images(model.config, 4, torch.float64)[name]}
    out = model(batch, draw(range(4)))
    assert out.loss.isfinite() and list(out.losses) == [name]
    made_up = model.reconstruct(batch, draw(range(4)))
    hidden = hidden_pixels(model, out, name, batch[name])
    assert torch.equal(made_up.images[name][~hidden], batch[name][~hidden])
    assert (made_up.images[name][hidden] != batch[name][hidden]).all()


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_backends_give_the_same_loss(tiny, images, draw, randomise, changes):
    oracle = randomised(tiny, randomise, attention_backend="math", **changes)
    batch = images(oracle.config, 4, torch.float64)
    for backend in ("xformers", "sdpa"):
        model = FusMAE(tiny(attention_backend=backend, **changes)).double()
        model.load_state_dict(oracle.state_dict())
        torch.testing.assert_close(
            model(batch, draw(range(4))).loss, oracle(batch, draw(range(4))).loss, rtol=0, atol=1e-12
        )


# Decoders


def cross_block(oracle, w, x, y, heads):
    x = x + oracle.cross(w["cross_attention"], oracle.norm(w["norm1"], x), oracle.norm(w["norm1"], y), heads)
    return x + oracle.mlp(w["mlp"], oracle.norm(w["norm2"], x))


def vit_block(oracle, w, x, heads):
    x = x + oracle.self_attention(w["attention"], oracle.norm(w["norm1"], x), heads)
    return x + oracle.mlp(w["mlp"], oracle.norm(w["norm2"], x))


def test_cross_block_attends_to_others_and_keeps_a_residual(oracle, randomise):
    module = randomise(CrossBlock(32, 4, 128).double())
    x, y = torch.randn(2, 5, 32, dtype=torch.float64), torch.randn(2, 7, 32, dtype=torch.float64)
    torch.testing.assert_close(module(x, y), cross_block(oracle, oracle.tree(module), x, y, 4), rtol=0, atol=1e-11)


@pytest.mark.parametrize("with_global", [False, True])
def test_mask_tokens_of_a_cross_decoder_read_visible_ones_and_not_each_other(oracle, randomise, draw, with_global):
    module = randomise(LightDecoder(32, 16, 2, 2, 64, 48, cross=True).double())
    w, table = oracle.tree(module), sincos_positions(4, 4, 16, torch.float64)
    mask = sample_masks(MaskingConfig(), 16, ("s2",), draw(range(3)))["s2"]
    z, global_BD = torch.randn(3, 4, 32, dtype=torch.float64), torch.randn(3, 32, dtype=torch.float64)
    visible = oracle.linear(w["embed"], z) + table[mask.ids_visible_BV] + w["modality_embedding_W"]
    if with_global:
        visible = torch.cat([visible, (oracle.linear(w["embed"], global_BD) + w["modality_embedding_W"])[:, None]], 1)
    x = w["mask_token_W"] + table[mask.ids_masked_BM] + w["modality_embedding_W"]
    for number in ("0", "1"):
        x = cross_block(oracle, w["blocks"][number], x, visible, 2)
    expected = oracle.linear(w["head"], oracle.norm(w["norm"], x))
    context = Context(z, table[mask.ids_visible_BV], (4,), slice(0, 4), global_BD if with_global else None)
    torch.testing.assert_close(module(context, table[mask.ids_masked_BM]), expected, rtol=0, atol=1e-11)
    few = module(context, table[mask.ids_masked_BM[:, 3:5]])
    torch.testing.assert_close(few, expected[:, 3:5], rtol=0, atol=1e-11)  # a query does not care about the others


@pytest.mark.parametrize("with_global", [False, True])
def test_multimae_decoder_first_reads_the_latents_of_all(oracle, randomise, draw, with_global):
    module = randomise(LightDecoder(32, 16, 1, 2, 64, 48, num_sources=2).double())
    w, table = oracle.tree(module), sincos_positions(4, 4, 16, torch.float64)
    masks = sample_masks(MaskingConfig(), 16, ("s1", "s2"), draw(range(3)))
    z = {name: torch.randn(3, 4, 32, dtype=torch.float64) for name in masks}
    global_BD = torch.randn(3, 32, dtype=torch.float64)
    embedded = {n: oracle.linear(w["embed"], z[n]) + table[masks[n].ids_visible_BV] for n in masks}
    context = torch.cat([embedded[n] + w["source_embedding_SW"][i] for i, n in enumerate(masks)], 1)
    if with_global:
        context = torch.cat([context, oracle.linear(w["embed"], global_BD)[:, None]], 1)
    queries = w["mask_token_W"] + table[masks["s2"].ids_masked_BM]
    x = torch.cat([embedded["s2"], queries], 1) + w["modality_embedding_W"]
    x = cross_block(oracle, w["fusion"], x, context, 2)
    x = vit_block(oracle, w["blocks"]["0"], x, 2)
    expected = oracle.linear(w["head"], oracle.norm(w["norm"], x))[:, 4:]
    given = Context(
        torch.cat([*z.values()], 1),
        torch.cat([table[mask.ids_visible_BV] for mask in masks.values()], 1),
        (4, 4),
        slice(4, 8),
        global_BD if with_global else None,
    )
    torch.testing.assert_close(module(given, table[masks["s2"].ids_masked_BM]), expected, rtol=0, atol=1e-11)


def test_only_the_queries_that_are_drawn_are_predicted_and_reconstruction_predicts_all(tiny, images, draw):
    model = FusMAE(tiny(decoder_queries=0.25))
    batch = images(model.config, 5)
    out = model(batch, draw(range(5)))
    assert out.predictions["s1"].shape == (5, 3, 32)
    chosen = hide(model.config, ["s1", "s2"], draw(range(5)), training=True).queries["s1"]
    assert torch.equal(out.targets["s1"], gather_patches(patchify(batch["s1"], 4), chosen))
    assert out.masks["s1"].mask_BN.gather(1, chosen).all() and (chosen.diff(dim=1) > 0).all()
    filled = model.reconstruct(batch, draw(range(5)))
    changed = (patchify(filled.images["s1"], 4) != patchify(batch["s1"], 4)).all(2)
    assert torch.equal(changed, out.masks["s1"].mask_BN)


def test_queries_are_drawn_uniformly_from_the_masked(tiny, draw):
    config = tiny(decoder_queries=0.25)
    hiding = hide(config, ["s1"], draw(range(4000)), training=True)
    times = torch.bincount(hiding.queries["s1"].flatten(), minlength=16).double() / 4000
    assert (times - 3 / 16).abs().max() < 0.03


# Masks


def test_disjoint_masks_show_no_position_twice(draw):
    masks = sample_masks(MaskingConfig(strategy="disjoint"), 225, tuple("abcd"), draw(range(50)))
    times_BN = sum((~mask.mask_BN).long() for mask in masks.values())
    assert times_BN.max() == 1 and (times_BN.sum(1) == 4 * 56).all()
    share_N = sum(
        (~m.mask_BN).double()
        for m in sample_masks(MaskingConfig(strategy="disjoint"), 16, ("a",), draw(range(4000))).values()
    ).mean(0)
    assert (share_N - 0.25).abs().max() < 0.035


def test_a_band_group_is_hidden_whole_and_each_is_drawn_alike(tiny, draw):
    hidden = hide(tiny(masking="band_group"), ["s2"], draw(range(3000)), training=True).hidden_bands["s2"]
    assert {tuple(row) for row in hidden.tolist()} == {(True, False, True), (False, True, False)}
    assert hidden[:, 1].double().mean().item() == pytest.approx(0.5, abs=0.04)


def test_a_group_hidden_in_the_visible_patches_is_still_to_be_predicted(tiny, images, draw):
    model = FusMAE(tiny(masking="band_group"))
    batch = images(model.config, 3)
    out = model(batch, draw(range(3)))
    assert torch.equal(out.targets["s2"], gather_patches(patchify(batch["s2"], 4), out.masks["s2"].ids_masked_BM))


# Targets, positions, memory


def test_targets_by_band_group_have_mean_0_and_variance_1_in_each(tiny, images, draw):
    config = tiny(target_norm="per_band_group")
    targets_BQPC = FusMAE(config)(images(config), draw(range(3))).targets["s2"].unflatten(2, (16, 3))
    for channels in ([0, 2], [1]):
        group = targets_BQPC[..., channels].flatten(2)
        torch.testing.assert_close(group.mean(2), torch.zeros(3, 12), rtol=0, atol=1e-5)
        torch.testing.assert_close(group.var(2), torch.ones(3, 12), rtol=1e-3, atol=0)


def test_learned_positions_are_those_of_the_patches(tiny, images, draw):
    model = FusMAE(tiny(positions="learned"))
    ids = torch.tensor([[3, 1], [0, 15]])
    assert torch.equal(model.positions(ids), model.positions.table_ND[ids])
    assert model.positions.table_ND.std().item() == pytest.approx(0.02, abs=0.003)
    names = model.no_weight_decay()
    assert names == {"positions.table_ND", "decoder.positions.table_ND"}
    assert FusMAE(tiny(decoder_fusion="multimae")).no_weight_decay() == {
        "decoder.light.s1.source_embedding_SW",
        "decoder.light.s2.source_embedding_SW",
    }


@pytest.mark.parametrize("changes", [{}, *VARIANTS, {"masking": "dirichlet"}], ids=str)
def test_checkpointing_keeps_less_and_changes_no_bit(tiny, images, draw, changes):
    def trained(**more):
        torch.manual_seed(3)
        model, kept = FusMAE(tiny(**changes, **more)), {}

        def keep(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(4)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(images(model.config, 4), draw(range(4))).loss
        loss.backward()
        return [loss, *(weight.grad for weight in model.parameters())], sum(kept.values())

    (plain, much), (again, little) = trained(), trained(checkpoint_activations=True)
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))
    assert little < 0.6 * much


def test_without_a_global_token_there_is_none(tiny, images):
    model = FusMAE(tiny(global_token=False))
    assert model.encode(images(model.config)).global_token_BD is None
    assert "encoder.global_token_D" not in model.state_dict()


def test_stacked_sensors_are_one_modality(tiny, images, draw):
    """SatViT's way: all bands in one token."""
    stacked = Modality(name="stacked", bands=("VV", "VH", "B02"), groups=(("VV", "VH"), ("B02",)))
    model = FusMAE(tiny(modalities=(stacked,), encoder_fusion="none", decoder_fusion="none", global_token=False))
    out = model(images(model.config), draw(range(3)))
    assert out.predictions["stacked"].shape == (3, 12, 48)
    position_B = torch.arange(3)
    random = CounterRandom(7, torch.zeros_like(position_B), position_B)
    alone = sample_masks(MaskingConfig(), 16, ("stacked",), random)["stacked"]
    assert torch.equal(out.masks["stacked"].mask_BN, alone.mask_BN)
