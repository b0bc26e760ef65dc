import copy

import pytest
import torch

from fusmae import FusMAE, Modality, Purpose
from fusmae.losses import masked_mse
from fusmae.patch import gather_patches, normalise_patches, patch_statistics, patchify, unpatchify

FUSIONS = [
    {"encoder_fusion": "xae", "decoder_fusion": "xad"},
    {"encoder_fusion": "xae", "decoder_fusion": "none"},
    {"encoder_fusion": "none", "decoder_fusion": "xad"},
    {"encoder_fusion": "none", "decoder_fusion": "none"},
]


def latents_of(model):
    """Records what the encoder gives."""
    seen = []
    model.encoder.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs))
    return seen


def pixels(mask_BN, config):
    """(B, 1, H, W): the pixels of the patches that are true in (B, N)."""
    patches = mask_BN[:, :, None].expand(-1, -1, config.patch_size**2)
    return unpatchify(patches, config.patch_size, config.image_size, config.image_size)


@pytest.mark.parametrize("changes", [*FUSIONS, {"masking": "consistent"}, {"target_norm": "per_patch"}], ids=str)
def test_masked_pixels_change_no_latent_and_no_prediction_bit_for_bit(tiny, images, draw, changes):
    config = tiny(**changes)
    model, batch, random = FusMAE(config), images(config), draw(range(3))
    seen = latents_of(model)
    before = model(batch, random)
    perturbed = {
        name: image.where(~pixels(before.masks[name].mask_BN, config), torch.randn_like(image) * 100)
        for name, image in batch.items()
    }
    after = model(perturbed, random)
    for name in batch:
        assert not torch.equal(perturbed[name], batch[name])
        assert torch.equal(seen[0][0][name], seen[1][0][name])
        assert torch.equal(before.predictions[name], after.predictions[name])
    assert torch.equal(seen[0][1], seen[1][1])
    assert not torch.equal(before.loss, after.loss)  # the target did change


@pytest.mark.parametrize("changes", FUSIONS, ids=str)
@pytest.mark.parametrize("name", ["s1", "s2"])
def test_one_visible_pixel_changes_latents_and_predictions(tiny, images, draw, changes, name):
    config = tiny(**changes)
    model, batch, random = FusMAE(config), images(config), draw(range(3))
    seen = latents_of(model)
    before = model(batch, random)
    row, column = pixels(~before.masks[name].mask_BN, config)[1, 0].nonzero()[0].tolist()
    batch[name][1, 0, row, column] += 1
    after = model(batch, random)
    for other in batch:
        assert not torch.equal(seen[0][0][other][1], seen[1][0][other][1])
        assert not torch.equal(before.predictions[other][1], after.predictions[other][1])
        assert torch.equal(before.predictions[other][[0, 2]], after.predictions[other][[0, 2]])  # other samples


@pytest.mark.parametrize("changes", FUSIONS, ids=str)
def test_predictions_and_loss_have_exactly_no_gradient_at_masked_pixels(tiny, images, draw, changes):
    config = tiny(target_norm="per_patch", **changes)
    model, batch, random = FusMAE(config), images(config), draw(range(3))
    for image in batch.values():
        image.requires_grad_()
    out = model(batch, random)
    everything = sum(prediction.square().sum() for prediction in out.predictions.values())
    for what in (everything, out.loss):  # the loss too: its target is data
        gradients = torch.autograd.grad(what, [*batch.values()], retain_graph=True)
        for name, gradient in zip(batch, gradients, strict=True):
            hidden = pixels(out.masks[name].mask_BN, config).expand_as(gradient)
            assert (gradient[hidden] == 0).all()
            assert (gradient[~hidden] != 0).float().mean() > 0.99


@pytest.mark.parametrize("changes", [*FUSIONS, {"share_cross_attention": False}], ids=str)
def test_every_weight_learns(tiny, images, draw, changes):
    config = tiny(**changes)
    model = FusMAE(config)
    model(images(config), draw(range(3))).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []


@pytest.mark.parametrize("target_norm", ["none", "per_patch"])
def test_the_loss_is_that_of_the_masked_patches_by_hand(tiny, images, draw, target_norm):
    config = tiny(target_norm=target_norm, loss_weights=(1.0, 0.5))
    model, batch = FusMAE(config), images(config)
    out = model(batch, draw(range(3)))
    expected = 0.0
    for name, weight in (("s1", 1.0), ("s2", 0.5)):
        target = patchify(batch[name], 4)
        if target_norm == "per_patch":
            target = normalise_patches(target, patch_statistics(target))
        by_hand = (
            (out.predictions[name] - target[out.masks[name].mask_BN].view_as(out.predictions[name])).square().mean()
        )
        torch.testing.assert_close(out.losses[name], by_hand)
        expected += weight * by_hand
    torch.testing.assert_close(out.loss, expected)
    assert out.loss.dtype == torch.float32 and out.loss.ndim == 0


def test_absent_bands_are_left_out_of_the_loss(tiny, images, draw):
    config = tiny()
    model, batch, random = FusMAE(config), images(config), draw(range(3))
    valid = {"s2": torch.tensor([[True, False, True], [True, True, True], [False, False, False]])}
    out = model(batch, random, valid)
    target = gather_patches(patchify(batch["s2"], 4), out.masks["s2"].ids_masked_BM)
    assert torch.equal(out.losses["s2"], masked_mse(out.predictions["s2"], target, valid["s2"]))
    assert torch.equal(out.losses["s1"], model(batch, random).losses["s1"])
    assert not torch.equal(out.losses["s2"], model(batch, random).losses["s2"])


def test_a_modality_without_any_band_costs_nothing_and_breaks_nothing(tiny, images, draw):
    config = tiny(target_norm="per_patch")
    model = FusMAE(config)
    out = model(images(config), draw(range(3)), {"s1": torch.zeros(3, 2, dtype=torch.bool)})
    out.loss.backward()
    assert out.losses["s1"].item() == 0.0
    assert torch.equal(out.loss, out.losses["s2"])
    assert not model.decoder.light["s1"].head.weight.grad.any()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


def test_a_batch_in_parts_gives_the_same_predictions_and_the_mean_of_their_losses(tiny, images, draw):
    config = tiny()
    model, batch = FusMAE(config).double(), images(config, 4, torch.float64)
    whole = model(batch, draw(range(4)))
    parts = [model({n: x[i : i + 2] for n, x in batch.items()}, draw([i, i + 1])) for i in (0, 2)]
    torch.testing.assert_close(sum(part.loss for part in parts) / 2, whole.loss, rtol=0, atol=1e-12)
    for name in batch:
        joined = torch.cat([part.predictions[name] for part in parts])
        torch.testing.assert_close(joined, whole.predictions[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("changes", FUSIONS, ids=str)
@pytest.mark.parametrize("name", ["s1", "s2"])
def test_a_missing_modality_is_no_obstacle(tiny, images, draw, changes, name):
    config = tiny(**changes)
    model, batch, random = FusMAE(config), images(config), draw(range(3))
    alone = {name: batch[name]}
    out = model(alone, random)
    out.loss.backward()
    assert list(out.predictions) == list(out.losses) == list(out.masks) == [name]
    assert out.loss.isfinite()
    assert torch.equal(out.masks[name].mask_BN, model(batch, random).masks[name].mask_BN)
    encoded = model.encode(alone)
    assert encoded.tokens[name].shape == (3, 16, 32) and encoded.global_token_BD.shape == (3, 32)
    assert not torch.allclose(encoded.tokens[name], model.encode(batch).tokens[name])
    assert model.reconstruct(alone, random).images[name].shape == batch[name].shape


def test_three_modalities_and_any_two_of_them(tiny, images, draw):
    third = Modality(name="dem", bands=("height",))
    config = tiny(modalities=(*tiny().modalities, third))
    model, batch = FusMAE(config), images(config)
    assert set(model(batch, draw(range(3))).losses) == {"s1", "s2", "dem"}
    for left_out in batch:
        pair = {name: image for name, image in batch.items() if name != left_out}
        assert model(pair, draw(range(3))).loss.isfinite()
        assert model.features(pair).shape == (3, 32)


def test_encode_sees_every_patch_and_features_are_their_mean(tiny, images):
    config = tiny()
    model, batch = FusMAE(config), images(config)
    encoded = model.encode(batch)
    for name in ("s1", "s2"):
        changed = {**batch, name: batch[name].clone()}
        changed[name][0, 0, 15, 15] += 1
        assert not torch.equal(model.encode(changed).tokens[name][0, 0], encoded.tokens[name][0, 0])
    mean = torch.cat([encoded.tokens["s1"], encoded.tokens["s2"]], 1).mean(1)
    torch.testing.assert_close(model.features(batch), mean)
    torch.testing.assert_close(
        model.features({"s2": batch["s2"]}), model.encode({"s2": batch["s2"]}).tokens["s2"].mean(1)
    )


def test_the_order_in_which_modalities_are_given_does_not_matter(tiny, images, draw):
    config = tiny()
    model, batch, random = FusMAE(config), images(config), draw(range(3))
    swapped = {"s2": batch["s2"], "s1": batch["s1"]}
    assert torch.equal(model(batch, random).loss, model(swapped, random).loss)
    assert torch.equal(model.features(batch), model.features(swapped))


@pytest.mark.parametrize("target_norm", ["none", "per_patch"])
def test_reconstruction_keeps_visible_pixels_and_fills_masked_ones_with_predictions(tiny, images, draw, target_norm):
    config = tiny(target_norm=target_norm)
    model, batch, random = FusMAE(config), images(config), draw(range(3))
    with torch.no_grad():
        out = model(batch, random)
    picture = model.reconstruct(batch, random)
    for name, image in batch.items():
        hidden = picture.pixel_masks[name]
        assert torch.equal(hidden, pixels(out.masks[name].mask_BN, config)[:, 0])
        assert torch.equal(picture.images[name].where(~hidden[:, None], 0), image.where(~hidden[:, None], 0))
        true = gather_patches(patchify(image, 4), out.masks[name].ids_masked_BM)
        filled = gather_patches(patchify(picture.images[name], 4), out.masks[name].ids_masked_BM)
        expected = out.predictions[name]
        if target_norm == "per_patch":
            expected = expected * (true.var(-1, keepdim=True) + 1e-6).sqrt() + true.mean(-1, keepdim=True)
        torch.testing.assert_close(filled, expected)
        assert not picture.images[name].requires_grad


def test_a_perfect_prediction_reconstructs_the_image(tiny, images, draw):
    config = tiny(target_norm="per_patch")
    model, batch, random = FusMAE(config), images(config), draw(range(3))

    def perfect(module, inputs, outputs):
        for name in outputs:
            true = gather_patches(patchify(batch[name], 4), inputs[3][name])
            outputs[name] = normalise_patches(true, patch_statistics(true))

    model.decoder.register_forward_hook(perfect)
    for name, image in model.reconstruct(batch, random).images.items():
        torch.testing.assert_close(image, batch[name])


def test_shuffling_moves_visible_contents_and_nothing_else(tiny, images, draw):
    config = tiny(mask_ratio=0.5)
    model, batch, random = FusMAE(config), images(config), draw(range(3))
    seen = []
    for name in batch:
        model.projections[name].register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    plain, shuffled = model(batch, random), model(batch, random, shuffle_visible=True)
    for number, name in enumerate(batch):
        (contents, positions), (moved, same_positions) = seen[number], seen[number + 2]
        order = random.permutation(8, Purpose.SHUFFLE, number)
        assert torch.equal(moved, gather_patches(contents, order)) and not torch.equal(moved, contents)
        assert torch.equal(positions, same_positions)
        assert torch.equal(plain.masks[name].mask_BN, shuffled.masks[name].mask_BN)
        assert not torch.equal(plain.predictions[name], shuffled.predictions[name])
    assert torch.equal(shuffled.loss, model(batch, random, shuffle_visible=True).loss)
    picture = model.reconstruct(batch, random, shuffle_visible=True)
    assert not torch.equal(picture.images["s2"], model.reconstruct(batch, random).images["s2"])


def test_weights_are_a_function_of_the_seed(tiny):
    def make(seed):
        torch.manual_seed(seed)
        return FusMAE(tiny()).state_dict()

    first, again, other = make(1), make(1), make(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_state_dict_comes_back_and_holds_only_what_is_learned(tiny, images, draw):
    config = tiny()
    torch.manual_seed(1)
    model = FusMAE(config)
    torch.manual_seed(2)
    other = FusMAE(config)
    batch, random = images(config), draw(range(3))
    assert not torch.equal(model(batch, random).loss, other(batch, random).loss)
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(batch, random).loss, other(batch, random).loss)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_the_whole_model_in_bfloat16_is_finite_and_close(tiny, images, draw):
    config = tiny(target_norm="per_patch")
    model, batch, random = FusMAE(config), images(config), draw(range(3))
    exact = model(batch, random)
    half = copy.deepcopy(model).bfloat16()
    out = half(batch, random)
    out.loss.backward()
    assert out.loss.dtype == torch.float32
    assert out.predictions["s2"].dtype == torch.bfloat16
    assert all(weight.grad.isfinite().all() for weight in half.parameters())
    assert out.loss.item() == pytest.approx(exact.loss.item(), rel=0.02)
    assert torch.equal(half.positions.table_ND, model.positions.table_ND)
    assert torch.equal(half.decoder.positions.table_ND, model.decoder.positions.table_ND)
    assert half.features(batch).dtype == torch.float32
    assert half.reconstruct(batch, random).images["s1"].dtype == torch.float32


def test_autocast_is_finite_and_close(tiny, images, draw):
    config = tiny()
    model, batch, random = FusMAE(config), images(config), draw(range(3))
    exact = model(batch, random).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(batch, random).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("backend", ["sdpa", "math"])
def test_backends_give_the_same_model(tiny, images, draw, backend):
    config = tiny()
    model, other = FusMAE(config).double(), FusMAE(tiny(attention_backend=backend)).double()
    other.load_state_dict(model.state_dict())
    batch, random = images(config, dtype=torch.float64), draw(range(3))
    ours, theirs = model(batch, random), other(batch, random)
    ours.loss.backward()
    theirs.loss.backward()
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=0, atol=1e-12)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-12)


def test_a_step_repeats_bit_for_bit_under_deterministic_algorithms(tiny, images, draw):
    config = tiny(target_norm="per_patch")
    model, batch, random = FusMAE(config), images(config), draw(range(3))
    valid = {"s2": torch.tensor([[True, False, True]] * 3)}
    torch.use_deterministic_algorithms(True)
    try:
        gradients = []
        for _ in range(2):
            model.zero_grad()
            model(batch, random, valid).loss.backward()
            gradients.append([weight.grad for weight in model.parameters()])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_it_learns_a_small_batch(tiny, draw):
    config = tiny()
    model = FusMAE(config)
    wave = torch.linspace(0, 6, 16).sin()
    batch = {
        m.name: (wave[None, None, :, None] * torch.randn(4, len(m.bands), 1, 1) + wave).expand(4, -1, 16, 16)
        for m in config.modalities
    }
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        loss = model(batch, draw(range(4), epoch=step)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: {}, "images of no modality were given; the model knows s1, s2"),
        (lambda batch: {**batch, "s3": batch["s1"]}, "images of s3 were given"),
        (
            lambda batch: {**batch, "s2": batch["s2"][:, :2]},
            r"s2 have shape \(3, 2, 16, 16\).*\(3, 3, 16, 16\)",
        ),
        (lambda batch: {**batch, "s2": batch["s2"][:2]}, r"s2 have shape \(2, 3, 16, 16\)"),
        (lambda batch: {**batch, "s2": batch["s2"][..., :12]}, r"\(3, 3, 16, 12\)"),
        (
            lambda batch: {name: image[:2] for name, image in batch.items()},
            "random numbers for 3 samples .* 2 images",
        ),
    ],
)
def test_images_that_do_not_fit_are_refused(tiny, images, draw, change, message):
    config = tiny()
    with pytest.raises(ValueError, match=message):
        FusMAE(config)(change(images(config)), draw(range(3)))


@pytest.mark.parametrize("method", ["forward", "reconstruct"])
def test_validity_that_does_not_fit_is_refused(tiny, images, draw, method):
    config = tiny()
    with pytest.raises(ValueError, match=r"validity of s2 has shape \(3, 2\).*3 columns"):
        getattr(FusMAE(config), method)(images(config), draw(range(3)), {"s2": torch.ones(3, 2, dtype=torch.bool)})
    with pytest.raises(ValueError, match="validity of s3 was given; the model knows s1, s2"):
        getattr(FusMAE(config), method)(images(config), draw(range(3)), {"s3": torch.ones(3, 3, dtype=torch.bool)})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "changes",
    [
        {"target_norm": "per_patch"},
        {"masking": "union"},
        {"masking": "modality", "modality_dropout": 0.3, "decode_global_token": True},
        {"decoder_fusion": "multimae", "masking": "dirichlet"},
        {"decoder_attention": "cross", "decoder_queries": 0.5},
        {"masking": "band_group", "positions": "learned"},
    ],
    ids=str,
)
def test_the_gpu_gives_the_same_loss_and_masks_without_waiting(tiny, images, draw, dtype, changes):
    config = tiny(**changes)
    model, batch, random = FusMAE(config).to(dtype), images(config), draw(range(3))
    valid = {"s2": torch.tensor([[True, False, True]] * 3)}
    here = model(batch, random, valid)
    model.cuda()
    there_batch = {name: image.cuda() for name, image in batch.items()}
    there_random, there_valid = random.to("cuda"), {"s2": valid["s2"].cuda()}
    model(there_batch, there_random, there_valid).loss.backward()  # warms up: first use of kernels may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = model(there_batch, there_random, there_valid)
        there.loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert there.loss.item() == pytest.approx(here.loss.item(), rel=2e-2 if dtype == torch.bfloat16 else 1e-3)
    for name in batch:
        assert torch.equal(there.masks[name].mask_BN.cpu(), here.masks[name].mask_BN)
