"""Two scales: each loss written out in float64, the released code's defects shown to matter, and no leak."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from fusmae import cross_scale as module
from fusmae.cross_scale import SECOND_VIEW, CrossScaleFusMAE, contrast_loss
from fusmae.cross_scale_config import CrossScaleConfig
from fusmae.patch import unpatchify
from fusmae.scale_view import Windows, draw_windows, resample
from tests.unit.fusmae.two_scales import VARIANTS


def by_grid_sample(x_BCSS, windows):
    """The windows by torch's own functions."""
    side, zero = windows.side_B, torch.zeros_like(windows.side_B)
    rows = [[side, zero, 2 * windows.left_B + side - 1], [zero, side, 2 * windows.top_B + side - 1]]
    theta_B23 = torch.stack([torch.stack(row, 1) for row in rows], 1).to(x_BCSS.dtype)
    places = F.affine_grid(theta_B23, list(x_BCSS.shape), align_corners=False)
    return F.grid_sample(x_BCSS, places, mode="bilinear", padding_mode="border", align_corners=False)


def views_of(model, images, random):
    """The images of the second view, and the windows, independently."""
    windows = draw_windows(model.cross_scale.min_area, model.cross_scale.max_area, random)
    return {name: by_grid_sample(image, windows) for name, image in images.items()}, windows


def watch(model):
    """Records the encoder's latents and, by modality, what the last block of each light decoder gives."""
    seen = {}
    model.fusmae.encoder.register_forward_hook(lambda m, inputs, out: seen.__setitem__("latents", out[0]))
    for name, light in model.fusmae.decoder.light.items():
        light.blocks[-1].register_forward_hook(lambda m, inputs, out, name=name: seen.__setitem__(name, out))
    return seen


def pooled(seen):
    return torch.cat([*seen["latents"].values()], dim=1).mean(1).chunk(2)


def nt_xent(first, second, temperature, with_positive=True):
    """Written out, view by view; without the positive in the denominator, the released code's."""
    views = [*first, *second]
    total = 0.0
    for i, view in enumerate(views):
        partner = (i + len(first)) % len(views)
        terms = [(F.cosine_similarity(view, other, dim=0) / temperature).exp() for other in views]
        kept = [t for j, t in enumerate(terms) if j != i and (with_positive or j != partner)]
        total = total - (terms[partner] / sum(kept)).log()
    return total / len(views)


def raster(tokens_BNF, mask, num_patches):
    """Tokens (visible, then hidden, behind anything else) put in place one by one."""
    tokens_BNF = tokens_BNF[:, tokens_BNF.shape[1] - num_patches :]
    ids_BN = torch.cat([mask.ids_visible_BV, mask.ids_masked_BM], 1)
    placed = torch.empty_like(tokens_BNF)
    for sample in range(len(ids_BN)):
        placed[sample, ids_BN[sample]] = tokens_BNF[sample]
    return placed.chunk(2)


def cross_prediction(model, seen, out, windows, oracle, target=None):
    """L_cp, written out; `target` makes it from the full view's tokens (B, F, g, g)."""
    target = target or (lambda map_BFSS: by_grid_sample(map_BFSS, windows))
    total = 0.0
    for name, predictor in model.predictors.items():
        w, grid = oracle.tree(predictor), model.config.grid
        full, second = raster(seen[name], out.masks[name], grid**2)
        hidden = oracle.norm(w["norm"], oracle.linear(w["fc1"], second))
        predicted = oracle.linear(w["fc2"], hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)))
        wanted = target(full.transpose(1, 2).unflatten(2, (grid, grid))).flatten(2).transpose(1, 2)
        total = total + model.config.loss_weight(name) * (predicted - wanted).square().mean()
    return total


# The second view


def test_a_window_of_the_whole_image_gives_the_image_bit_for_bit(draw):
    windows = draw_windows(1.0, 1.0, draw(range(3)))
    for dtype, size in ((torch.float32, 120), (torch.float64, 15), (torch.bfloat16, 7)):
        image = torch.randn(3, 2, size, size).to(dtype)
        assert torch.equal(resample(image, windows), image)
    image = torch.randn(3, 2, 120, 120)
    assert not torch.equal(by_grid_sample(image, windows), image)  # torch's own rounds on the way


def test_windows_show_what_torch_s_own_functions_show(draw):
    windows = draw_windows(0.05, 0.9, draw(range(20)))
    image = torch.randn(20, 3, 30, 30, dtype=torch.float64)
    torch.testing.assert_close(resample(image, windows), by_grid_sample(image, windows), rtol=0, atol=1e-12)


def test_areas_are_uniform_and_windows_lie_anywhere_within(draw):
    windows = draw_windows(0.25, 0.75, draw(range(4000)))
    area_B = windows.side_B.square()
    assert 0.25 <= area_B.min() < 0.251 and 0.749 < area_B.max() <= 0.75
    assert area_B.mean().item() == pytest.approx(0.5, abs=0.01)
    assert area_B.std().item() == pytest.approx(0.5 / 12**0.5, abs=0.01)
    places = []
    for start_B in (windows.top_B, windows.left_B):
        assert start_B.min() >= 0 and (start_B + windows.side_B).max() <= 1
        places.append(start_B / (1 - windows.side_B))
        assert places[-1].mean().item() == pytest.approx(0.5, abs=0.02)
        assert places[-1].std().item() == pytest.approx(1 / 12**0.5, abs=0.01)
    assert (torch.corrcoef(torch.stack([area_B, *places])) - torch.eye(3)).abs().max() < 0.06


def test_each_sample_has_a_window_of_its_own_that_depends_on_nothing_else(draw):
    whole = draw_windows(0.25, 0.75, draw([10, 11, 12, 13]))
    part = draw_windows(0.25, 0.75, draw([13, 11]))
    assert all(torch.equal(few, many[[3, 1]]) for few, many in zip(part, whole, strict=True))
    assert all(len(column.unique()) == 4 for column in whole)
    for other in (draw([10], seed=8), draw([10], epoch=1), draw([14])):
        assert not torch.equal(draw_windows(0.25, 0.75, other).side_B, whole.side_B[:1])


def test_a_marked_pixel_lands_in_the_same_place_of_every_modality(tiny, draw, monkeypatch):
    model, seen = CrossScaleFusMAE(tiny()), []
    monkeypatch.setattr(module, "resample", lambda *inputs: seen.append(resample(*inputs)) or seen[-1])
    marked = torch.zeros(4, 1, 16, 16)
    marked[:, 0, 8, 8] = 1
    model({"s1": marked.repeat(1, 2, 1, 1), "s2": marked.repeat(1, 3, 1, 1)}, draw(range(4)))
    s1, s2 = seen[:2]
    assert torch.equal(s1[:, 0], s2[:, 2]) and s1.flatten(1).any(1).all()
    assert not torch.equal(s1[0], s1[1])  # but not of every sample


# The losses


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_reconstruction_is_the_sum_of_that_of_both_views(two_scales, images, draw, changes):
    """The inner model by itself on the image and on the window that torch's own functions cut."""
    model, random = two_scales(**changes), draw(range(3))
    batch = images(model.config, 3, torch.float64)
    valid = {"s2": torch.tensor([[True, False, True], [True] * 3, [False] * 3])}
    out = model(batch, random, valid)
    second, _ = views_of(model, batch, random)
    alone = model.fusmae(batch, random, valid), model.fusmae(second, random.from_stream(SECOND_VIEW), valid)
    expected = 0.0
    for name in batch:
        both = alone[0].losses[name] + alone[1].losses[name]
        torch.testing.assert_close(out.losses[name], both, rtol=0, atol=1e-10)
        for field in ("predictions", "targets"):
            rows = torch.cat([getattr(one, field)[name] for one in alone])
            torch.testing.assert_close(getattr(out, field)[name], rows, rtol=0, atol=1e-8)
        assert torch.equal(out.masks[name].mask_BN, torch.cat([one.masks[name].mask_BN for one in alone]))
        assert not torch.equal(*out.masks[name].mask_BN.chunk(2))
        expected += model.config.loss_weight(name) * both
    assert list(out.losses) == ["s1", "s2", "contrast", "prediction"]
    expected += out.losses["contrast"] + out.losses["prediction"]
    torch.testing.assert_close(out.loss, expected, rtol=0, atol=1e-10)


def test_one_window_for_the_whole_batch_is_another_loss(two_scales, images, draw, monkeypatch):
    model = two_scales()
    batch = images(model.config, 3, torch.float64)
    own = model(batch, draw(range(3)))

    def first_for_all(*inputs):
        return Windows(*(column[:1].expand_as(column) for column in draw_windows(*inputs)))

    monkeypatch.setattr(module, "draw_windows", first_for_all)
    shared = model(batch, draw(range(3)))
    for name in ("s1", "prediction"):
        assert abs(own.losses[name] - shared.losses[name]) > 1e-3
    torch.testing.assert_close(own.predictions["s1"][[0, 3]], shared.predictions["s1"][[0, 3]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("changes", VARIANTS[:3], ids=str)
@pytest.mark.parametrize("temperature", [0.5, 0.07])
def test_contrast_is_nt_xent_of_the_mean_latents(two_scales, images, draw, changes, temperature):
    model = two_scales(CrossScaleConfig(temperature=temperature), **changes)
    seen = watch(model)
    out = model(images(model.config, 4, torch.float64), draw(range(4)))
    expected = nt_xent(*pooled(seen), temperature)
    torch.testing.assert_close(out.losses["contrast"], expected, rtol=0, atol=1e-11)
    released = nt_xent(*pooled(seen), temperature, with_positive=False)
    assert abs(released - expected) > 0.1  # whose least value is not 0


def test_contrast_is_least_where_views_agree_and_finite_for_a_single_sample():
    eye = torch.eye(4)
    assert contrast_loss(eye, eye, 0.01) < 1e-6 < 1 < contrast_loss(eye, eye.roll(1, 0), 0.5)
    alone = torch.randn(1, 4, requires_grad=True)
    loss = contrast_loss(alone, alone * 2 + 1, 0.5)
    loss.backward()
    assert loss.item() == 0 and not alone.grad.any()


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_prediction_is_that_of_the_full_view_s_tokens_in_the_window(two_scales, images, draw, oracle, changes):
    model, random = two_scales(**changes), draw(range(3))
    batch, seen = images(model.config, 3, torch.float64), watch(model)
    out = model(batch, random)
    _, windows = views_of(model, batch, random)
    expected = cross_prediction(model, seen, out, windows, oracle)
    torch.testing.assert_close(out.losses["prediction"], expected, rtol=0, atol=1e-10)
    by_index = cross_prediction(model, seen, out, windows, oracle, target=lambda map_BFSS: map_BFSS)
    assert abs(by_index - expected) > 1e-3 * expected  # the released code's


def test_without_a_window_prediction_is_by_index(two_scales, images, draw, oracle):
    model = two_scales(CrossScaleConfig(min_area=1.0, max_area=1.0))
    seen = watch(model)
    out = model(images(model.config, 3, torch.float64), draw(range(3)))
    by_index = cross_prediction(model, seen, out, None, oracle, target=lambda map_BFSS: map_BFSS)
    torch.testing.assert_close(out.losses["prediction"], by_index, rtol=0, atol=1e-11)


def test_the_full_view_s_tokens_get_no_gradient_from_being_predicted(two_scales, images, draw, oracle):
    model, random = two_scales(), draw(range(3))
    batch, seen = images(model.config, 3, torch.float64), watch(model)
    out = model(batch, random)
    _, windows = views_of(model, batch, random)
    flowing = cross_prediction(model, seen, out, windows, oracle)  # the released code's, without a stop
    for name in batch:
        full, second = torch.autograd.grad(out.losses["prediction"], seen[name], retain_graph=True)[0].chunk(2)
        assert not full.any() and second.any(2).all()
        assert torch.autograd.grad(flowing, seen[name], retain_graph=True)[0].chunk(2)[0].any()


def test_a_modality_that_a_sample_lacks_is_not_predicted(two_scales, images, draw):
    model = two_scales()
    batch, seen = images(model.config, 3, torch.float64), watch(model)
    valid = {"s1": torch.tensor([[True, True], [False, False], [False, True]])}
    out = model(batch, draw(range(3)), valid)
    gradient = torch.autograd.grad(out.losses["prediction"], seen["s1"])[0].chunk(2)[1]
    assert gradient.flatten(1).any(1).tolist() == [True, False, True]


@pytest.mark.parametrize("weights", [(0.0, 0.0), (2.0, 0.5)])
def test_the_weights_weigh(two_scales, images, draw, weights):
    model = two_scales(CrossScaleConfig(contrast_weight=weights[0], prediction_weight=weights[1]))
    losses = (out := model(images(model.config, 3, torch.float64), draw(range(3)))).losses
    expected = losses["s1"] + losses["s2"] + weights[0] * losses["contrast"] + weights[1] * losses["prediction"]
    torch.testing.assert_close(out.loss, expected, rtol=0, atol=1e-12)


# Ranks


def whole_graph(slots, rank):
    return torch.cat(slots)


def on_ranks(model, batch, draw, num_ranks, joined=whole_graph):
    """The outputs of `num_ranks` ranks that gather through one graph, in which gradients of all ranks add up."""
    size = len(batch["s1"]) // num_ranks
    slots, barrier = [None] * num_ranks, threading.Barrier(num_ranks, timeout=30)

    def forward(rank):
        def gather(x_BD):
            slots[rank] = x_BD
            barrier.wait()
            return joined(slots, rank)

        part = {name: image[rank * size : (rank + 1) * size] for name, image in batch.items()}
        return model(part, draw(range(rank * size, (rank + 1) * size)), gather=gather, rank=rank)

    with ThreadPoolExecutor(num_ranks) as pool:
        return [*pool.map(forward, range(num_ranks))]


def gradients(model, loss):
    return torch.autograd.grad(loss, [*model.parameters()])


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_loss_and_gradient_do_not_depend_on_how_a_global_batch_is_cut(two_scales, images, draw, num_ranks):
    model = two_scales()
    batch = images(model.config, 6, torch.float64)
    whole = model(batch, draw(range(6)))
    parts = on_ranks(model, batch, draw, num_ranks)
    mean = sum(part.loss for part in parts) / num_ranks
    torch.testing.assert_close(mean, whole.loss, rtol=0, atol=1e-11)
    contrast = sum(part.losses["contrast"] for part in parts) / num_ranks
    torch.testing.assert_close(contrast, whole.losses["contrast"], rtol=0, atol=1e-12)
    for cut, uncut in zip(gradients(model, mean), gradients(model, whole.loss), strict=True):
        torch.testing.assert_close(cut, uncut, rtol=0, atol=1e-10)


def test_negatives_of_one_rank_only_or_without_their_gradient_are_another_training(two_scales, images, draw):
    model = two_scales()
    batch = images(model.config, 4, torch.float64)
    whole = model(batch, draw(range(4))).losses["contrast"]
    local = [model({n: x[i : i + 2] for n, x in batch.items()}, draw([i, i + 1])).losses["contrast"] for i in (0, 2)]
    assert abs(sum(local) / 2 - whole) > 0.1

    def detached(slots, rank):
        return torch.cat([x if r == rank else x.detach() for r, x in enumerate(slots)])

    mean = sum(part.losses["contrast"] for part in on_ranks(model, batch, draw, 2, detached)) / 2
    torch.testing.assert_close(mean, whole, rtol=0, atol=1e-12)
    name = "encoder.norm.weight"
    exact, partial = (torch.autograd.grad(x, model.fusmae.get_parameter(name))[0] for x in (whole, mean))
    assert (exact - partial).norm() > 0.05 * exact.norm()


def test_gathered_rows_that_do_not_fit_are_refused():
    x = torch.randn(2, 4)
    with pytest.raises(ValueError, match=r"3 gathered rows do not hold 2 of rank 0"):
        contrast_loss(x, x, 0.5, lambda pair: torch.cat([pair, pair[:1]]))
    with pytest.raises(ValueError, match=r"of rank 1"):
        contrast_loss(x, x, 0.5, rank=1)


# Leaks


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_nothing_leaks_from_masked_pixels_into_predictions_of_their_view(
    two_scales, images, draw, monkeypatch, changes
):
    model, cut = two_scales(CrossScaleConfig(gsd_positions="positions" not in changes), **changes), []
    monkeypatch.setattr(module, "resample", lambda *inputs: cut.append(resample(*inputs)) or cut[-1])
    batch = {name: image.requires_grad_() for name, image in images(model.config, 3, torch.float64).items()}
    out = model(batch, draw(range(3)))
    views = [*batch.values()], cut[: len(batch)]
    for number, view in enumerate(views):
        everything = sum(x.chunk(2)[number].square().sum() for x in out.predictions.values())
        found = torch.autograd.grad(everything, view, retain_graph=True)
        for name, gradient in zip(batch, found, strict=True):
            mask_BN = out.masks[name].mask_BN.chunk(2)[number]
            hidden = unpatchify(mask_BN[:, :, None].expand(-1, -1, 16), 4, 16, 16).expand_as(gradient)
            assert (gradient[hidden] == 0).all()
            assert (gradient[~hidden] != 0).double().mean() > (0.3 if changes.get("masking") == "band_group" else 0.99)


def test_the_views_do_not_see_each_other(two_scales, images, draw):
    model = two_scales()
    batch = images(model.config, 3, torch.float64)
    out, alone = model(batch, draw(range(3))), model.fusmae(batch, draw(range(3)))
    for name in batch:
        torch.testing.assert_close(out.predictions[name][:3], alone.predictions[name], rtol=0, atol=1e-12)
