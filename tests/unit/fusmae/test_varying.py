"""Masks whose numbers of visible patches differ: packed rows give what each sample gives alone, and nothing leaks."""

import pytest
import torch

from fusmae import FusMAE, Modality
from fusmae.attention import Segments, attention
from fusmae.masking import MaskingConfig, sample_varying_masks
from fusmae.packing import pack

NAMES = ("s1", "s2")
VARYING = [
    {"masking": "union"},
    {"masking": "dirichlet"},
    {"masking": "modality", "modality_mask_ratio": 0.5},
    {"masking": "independent", "modality_dropout": 0.5},
    {"masking": "dirichlet", "modality_dropout": 0.5},
]
DECODERS = [
    {},
    {"encoder_fusion": "none", "decoder_fusion": "none", "global_token": False},
    {"encoder_fusion": "none", "decoder_fusion": "multimae"},
    {"decoder_fusion": "multimae", "decode_global_token": True},
    {"encoder_fusion": "none", "decode_global_token": True},
    {"decode_global_token": True, "share_cross_attention": False},
    {"target_norm": "per_band_group", "positions": "learned"},
    {"modalities": tuple(Modality(name=f"m{i}", bands=tuple("ABC"[: i + 1])) for i in range(3))},
]


@pytest.fixture
def made(tiny, randomise):
    """Makes a model in float64 whose weights are all random."""
    return lambda **changes: randomise(FusMAE(tiny(**changes)).double(), 0.1)


# Numbers


@pytest.mark.parametrize("changes", VARYING, ids=str)
@pytest.mark.parametrize("names", [NAMES, ("a", "b", "c")])
def test_counts_are_those_of_the_masks_and_add_up(draw, changes, names):
    config = MaskingConfig(
        strategy=changes["masking"], **{key: value for key, value in changes.items() if key != "masking"}
    )
    masks, counts_BK = sample_varying_masks(config, 225, names, draw(range(200)))
    for number, name in enumerate(names):
        assert torch.equal((~masks[name]).sum(1), counts_BK[:, number])
    totals = counts_BK.sum(1)
    assert totals.min() > 0
    if not config.modality_dropout:
        assert (totals == 56 * len(names)).all()


def test_union_is_uniform_over_the_patches_of_both(draw):
    _, counts_BK = sample_varying_masks(MaskingConfig(strategy="union"), 225, NAMES, draw(range(4000)))
    assert counts_BK[:, 0].double().mean().item() == pytest.approx(56, abs=0.4)
    assert counts_BK[:, 0].double().std().item() == pytest.approx(4.6, abs=0.2)  # hypergeometric


def test_dirichlet_is_uniform_over_the_shares(draw):
    _, counts_BK = sample_varying_masks(MaskingConfig(strategy="dirichlet"), 225, NAMES, draw(range(8000)))
    first_B = counts_BK[:, 0].double()
    assert first_B.mean().item() == pytest.approx(56, abs=1.5)
    assert first_B.std().item() == pytest.approx(112 / 12**0.5, abs=0.7)
    assert (first_B <= 5).double().mean().item() == pytest.approx(5.5 / 112, abs=0.01)


def test_dirichlet_gives_no_modality_more_than_it_has(draw):
    masks, counts_BK = sample_varying_masks(
        MaskingConfig(strategy="dirichlet", mask_ratio=0.5), 16, tuple("abcd"), draw(range(500))
    )
    assert counts_BK.max() == 16 and (counts_BK.sum(1) == 32).all()
    assert all(mask_BN.shape == (500, 16) for mask_BN in masks.values())


def test_modality_hides_one_in_its_share_of_the_samples_and_the_other_gets_its_patches(draw):
    _, counts_BK = sample_varying_masks(MaskingConfig(strategy="modality"), 225, NAMES, draw(range(4000)))
    kinds = {tuple(row) for row in counts_BK.tolist()}
    assert kinds == {(56, 56), (112, 0), (0, 112)}
    assert (counts_BK == 0).any(1).double().mean().item() == pytest.approx(0.25, abs=0.03)
    assert (counts_BK[:, 0] == 0).double().mean().item() == pytest.approx(0.125, abs=0.03)


def test_dropout_leaves_the_masks_of_the_others_alone(draw):
    plain, _ = sample_varying_masks(MaskingConfig(strategy="dirichlet"), 225, NAMES, draw(range(300)))
    dropping, counts_BK = sample_varying_masks(
        MaskingConfig(strategy="dirichlet", modality_dropout=0.5), 225, NAMES, draw(range(300))
    )
    is_dropped_BK = torch.stack([dropping[name].all(1) & ~plain[name].all(1) for name in NAMES], 1)
    assert is_dropped_BK.any(1).double().mean().item() == pytest.approx(0.5, abs=0.1)
    assert not is_dropped_BK.all(1).any()
    for number, name in enumerate(NAMES):
        kept_B = ~is_dropped_BK[:, number]
        assert torch.equal(dropping[name][kept_B], plain[name][kept_B])
    assert counts_BK.sum(1).min() > 0


@pytest.mark.parametrize("changes", VARYING, ids=str)
def test_a_mask_does_not_depend_on_the_batch_around_its_sample(draw, changes):
    config = MaskingConfig(
        strategy=changes["masking"], **{key: value for key, value in changes.items() if key != "masking"}
    )
    whole, _ = sample_varying_masks(config, 64, NAMES, draw([10, 11, 12, 13]))
    part, _ = sample_varying_masks(config, 64, NAMES, draw([13, 11]))
    assert all(torch.equal(part[name], whole[name][[3, 1]]) for name in NAMES)


# Rows


@pytest.mark.parametrize("global_token", [True, False])
def test_both_orders_of_the_rows_hold_each_token_once(draw, global_token):
    config = MaskingConfig(strategy="dirichlet", modality_dropout=0.3)
    masks, counts_BK = sample_varying_masks(config, 16, tuple("abc"), draw(range(30)))
    packing = pack(masks, counts_BK, global_token=global_token)
    total = int(counts_BK.sum())
    rows = torch.arange(total + 30 * global_token)
    by_sample = rows[packing.to_samples]
    assert torch.equal(by_sample.sort().values, rows)
    assert torch.equal(by_sample[packing.to_modalities], torch.arange(total))
    sample_R = torch.cat([packing.patches[name] // 16 for name in packing.names])
    sample_of = torch.cat([sample_R, torch.arange(30)[: 30 * global_token]])[packing.to_samples]
    assert (sample_of.diff() >= 0).all()
    assert packing.samples.queries == tuple((counts_BK.sum(1) + global_token).tolist())
    if global_token:
        assert torch.equal(by_sample[packing.global_tokens], total + torch.arange(30))
    for name, crossing in packing.crossings.items():
        lengths = torch.tensor(crossing.segments.queries), torch.tensor(crossing.segments.keys)
        asking, asked = sample_R[crossing.queries], sample_R[crossing.keys]
        present = torch.unique(asking)
        assert torch.equal(asking, present.repeat_interleave(lengths[0]))
        assert torch.equal(asked, present.repeat_interleave(lengths[1]))
        part = packing.parts[name]
        assert ((crossing.queries >= part.start) & (crossing.queries < part.stop)).all()
        assert not ((crossing.keys >= part.start) & (crossing.keys < part.stop)).any()


@pytest.mark.parametrize("backend", ["xformers", "sdpa", "math"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [((3, 1, 5), (2, 7, 1)), ((4, 4), (3, 3))], ids=str)
def test_segments_are_samples_by_themselves_in_value_and_gradient(backend, dtype, lengths):
    tokens = [torch.randn(1, sum(of), 2, 8, dtype=dtype, requires_grad=True) for of in (*lengths, lengths[1])]
    out = attention(*tokens, backend, Segments(*lengths))
    parts = [
        attention(*(x.double() for x in part), "math")
        for part in zip(*(x.split(of, 1) for x, of in zip(tokens, (*lengths, lengths[1]), strict=True)), strict=True)
    ]
    expected = torch.cat(parts, dim=1)
    limits = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=limits[dtype])
    gradient = torch.randn_like(expected)
    ours = torch.autograd.grad(out, tokens, gradient.to(dtype))
    theirs = torch.autograd.grad(expected, tokens, gradient)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), other.double(), rtol=0, atol=3 * limits[dtype])


def test_segments_of_other_lengths_than_the_row_are_refused():
    x = torch.randn(1, 5, 2, 8)
    with pytest.raises(ValueError, match=r"segments of \(4, 4\) queries and keys do not fit 1 rows of \(5, 5\)"):
        attention(x, x, x, "math", Segments((4,), (4,)))
    with pytest.raises(ValueError, match="need a query and a key each"):
        Segments((1, 0), (1, 1))


def test_xformers_gets_a_block_diagonal_mask(monkeypatch):
    import xformers.ops
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    seen, real = [], xformers.ops.memory_efficient_attention

    def watched(*arguments, **options):
        seen.append(options["attn_bias"])
        return real(*arguments, **options)

    monkeypatch.setattr("xformers.ops.memory_efficient_attention", watched)
    x = torch.randn(1, 5, 2, 8)
    attention(x, x, x, "xformers", Segments((2, 3), (4, 1)))
    assert [type(bias) for bias in seen] == [BlockDiagonalMask]


# The model


def difference(one, other):
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize("decoder", DECODERS, ids=str)
@pytest.mark.parametrize("changes", VARYING, ids=str)
def test_a_batch_gives_what_each_of_its_samples_gives_alone(made, images, draw, changes, decoder):
    model = made(attention_backend="math", **changes, **decoder)
    batch = images(model.config, 6, torch.float64)
    together = model(batch, draw(range(6)))
    for sample in range(6):
        alone = model({name: image[sample : sample + 1] for name, image in batch.items()}, draw([sample]))
        for name in batch:
            torch.testing.assert_close(
                alone.predictions[name][0], together.predictions[name][sample], rtol=0, atol=1e-11
            )


@pytest.mark.parametrize("decoder", DECODERS, ids=str)
def test_equal_numbers_in_packed_rows_give_the_fixed_model(made, images, draw, decoder):
    fixed = made(attention_backend="math", **decoder)
    packed = made(attention_backend="math", modality_dropout=1e-12, **decoder)
    packed.load_state_dict(fixed.state_dict())
    batch = images(fixed.config, 4, torch.float64)
    one, other = fixed(batch, draw(range(4))), packed(batch, draw(range(4)))
    torch.testing.assert_close(one.loss, other.loss, rtol=0, atol=1e-12)
    for name in batch:
        mask = one.masks[name]
        assert torch.equal(mask.mask_BN, other.masks[name].mask_BN) and other.masks[name].ids_masked_BM is None
        rows = other.predictions[name].gather(
            1, mask.ids_masked_BM[:, :, None].expand(-1, -1, other.predictions[name].shape[2])
        )
        torch.testing.assert_close(rows, one.predictions[name], rtol=0, atol=1e-11)


@pytest.mark.parametrize("backend", ["xformers", "sdpa"])
@pytest.mark.parametrize("changes", VARYING, ids=str)
def test_backends_give_the_same_loss_and_gradient(made, images, draw, backend, changes):
    oracle, model = made(attention_backend="math", **changes), made(attention_backend=backend, **changes)
    model.load_state_dict(oracle.state_dict())
    batch = images(model.config, 5, torch.float64)
    for one in (oracle, model):
        one(batch, draw(range(5))).loss.backward()
    for mine, other in zip(model.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("decoder", DECODERS, ids=str)
@pytest.mark.parametrize("changes", VARYING, ids=str)
def test_nothing_leaks_from_what_is_hidden(made, images, draw, changes, decoder):
    model = made(**changes, **decoder)
    batch = {name: image.requires_grad_() for name, image in images(model.config, 6, torch.float64).items()}
    out = model(batch, draw(range(6)))
    everything = sum(prediction.square().sum() for prediction in out.predictions.values())
    size, patch = model.config.image_size, model.config.patch_size
    for what in (everything, out.loss):
        gradients = torch.autograd.grad(what, [*batch.values()], retain_graph=True)
        for name, gradient in zip(batch, gradients, strict=True):
            grid_BRC = out.masks[name].mask_BN.unflatten(1, (size // patch, -1))
            hidden = grid_BRC.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, None].expand_as(gradient)
            assert (gradient[hidden] == 0).all()
            assert (gradient[~hidden] != 0).float().mean() > 0.99


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("changes", VARYING, ids=str)
def test_one_modality_alone_is_no_obstacle(made, images, draw, changes, name):
    model = made(**changes)
    batch = {name: images(model.config, 6, torch.float64)[name]}
    out = model(batch, draw(range(6)))
    out.loss.backward()
    assert out.loss.isfinite() and list(out.losses) == [name]
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("changes", [{"decoder_fusion": "multimae"}, {}, {"encoder_fusion": "none"}], ids=str)
@pytest.mark.parametrize("global_token", [True, False])
def test_samples_of_which_nothing_is_visible_are_no_obstacle(made, images, draw, changes, global_token):
    """Of the one modality that is given, all is hidden."""
    model = made(masking="modality", modality_mask_ratio=1.0, global_token=global_token, **changes)
    both = images(model.config, 1, torch.float64)
    hidden = [i for i in range(20) if model(both, draw([i])).masks["s1"].mask_BN.all()]
    assert hidden
    out = model({"s1": both["s1"]}, draw(hidden[:1]))
    out.loss.backward()
    assert out.loss.isfinite() and out.predictions["s1"].shape == (1, 16, 32)


@pytest.mark.parametrize("changes", [{}, {"decoder_fusion": "multimae"}], ids=str)
def test_autocast_is_finite_and_close(tiny, images, draw, changes):
    model = FusMAE(tiny(masking="dirichlet", **changes))
    batch = images(model.config, 6)
    exact = model(batch, draw(range(6))).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(batch, draw(range(6))).loss
    rounded.backward()
    assert rounded.dtype == torch.float32 and rounded.item() == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("decoder", [*DECODERS, {"share_cross_attention": False}], ids=str)
@pytest.mark.parametrize("changes", [*VARYING, {"modality_dropout": 1.0}], ids=str)
def test_every_weight_has_a_gradient_in_every_batch(made, images, draw, changes, decoder):
    """Ranks average gradients: one that lacks some would stop the others."""
    model = made(**changes, **decoder)
    for sample in range(8):
        model(images(model.config, 1, torch.float64), draw([sample])).loss.backward()
        assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())
        model.zero_grad(set_to_none=True)


def test_dropout_is_for_training(made, images, draw):
    model = made(modality_dropout=1.0)
    batch = images(model.config, 4, torch.float64)
    training, evaluating = model(batch, draw(range(4))), model.eval()(batch, draw(range(4)))
    assert all(sum(bool(training.masks[n].mask_BN[i].all()) for n in NAMES) == 1 for i in range(4))
    assert not any(evaluating.masks[name].mask_BN.all(1).any() for name in NAMES)


def test_only_masked_patches_and_bands_that_are_there_count(made, images, draw):
    model = made(masking="dirichlet")
    batch = images(model.config, 4, torch.float64)
    valid = {"s2": torch.tensor([[True, True, False]] * 2 + [[True] * 3] * 2)}
    out = model(batch, draw(range(4)), valid)
    for name in NAMES:
        squares = (out.predictions[name] - out.targets[name]).square().unflatten(2, (16, -1))
        counted = out.masks[name].mask_BN[:, :, None, None].expand_as(squares).clone()
        if name in valid:
            counted &= valid[name][:, None, None, :]
        means = [squares[i][counted[i]].mean() if counted[i].any() else squares.new_zeros(()) for i in range(4)]
        torch.testing.assert_close(out.losses[name], torch.stack(means).mean(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("changes", VARYING, ids=str)
def test_reconstruction_and_shuffling(made, images, draw, changes):
    model = made(**changes).eval()
    batch = images(model.config, 5, torch.float64)
    made_up = model.reconstruct(batch, draw(range(5)))
    for name, image in batch.items():
        hidden = made_up.pixel_masks[name][:, None].expand_as(image)
        assert torch.equal(made_up.images[name][~hidden], image[~hidden])
        assert (made_up.images[name][hidden] != image[hidden]).all()
    plain, shuffled = model(batch, draw(range(5))), model(batch, draw(range(5)), shuffle_visible=True)
    assert difference(plain.targets, shuffled.targets) == 0
    assert difference(plain.predictions, shuffled.predictions) > 1e-5
    constant = {name: torch.ones_like(image) for name, image in batch.items()}
    same, moved = model(constant, draw(range(5))), model(constant, draw(range(5)), shuffle_visible=True)
    assert difference(same.predictions, moved.predictions) == 0


def test_the_cpu_knows_all_numbers(made, images, draw, monkeypatch):
    """What would wait for a device: reading numbers of a tensor. All that is read lies on the CPU by construction."""
    random = draw(range(4))
    moved = random.to("meta")
    assert moved.on_cpu is random
    assert moved.to("meta").on_cpu is random


def test_bfloat16_is_finite_and_close(tiny, images, draw):
    config = tiny(masking="dirichlet", decoder_fusion="multimae")
    model = FusMAE(config)
    batch = images(config, 6)
    exact = model(batch, draw(range(6))).loss.item()
    rounded = model.bfloat16()(batch, draw(range(6)))
    rounded.loss.backward()
    assert rounded.loss.dtype == torch.float32
    assert rounded.loss.item() == pytest.approx(exact, rel=0.02)
