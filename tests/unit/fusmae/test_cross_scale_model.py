"""A cross-scale model besides its losses: positions, determinism, precision, FLOPs, evaluation, refusals."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fusmae import FusMAE, Modality
from fusmae.cross_scale import CrossScaleFusMAE, inner_weights
from fusmae.cross_scale_config import CrossScaleConfig
from fusmae.patch import sincos_positions
from fusmae.scale_view import draw_windows, resample, scaled_positions
from tests.unit.fusmae.two_scales import VARIANTS


def test_gsd_positions_are_the_formula_and_the_usual_ones_at_full_size():
    side_B, ids_BV = torch.tensor([1.0, 0.5, 0.7], dtype=torch.float64), torch.arange(16).expand(3, -1)
    scaled = scaled_positions(ids_BV, side_B, 4, 16, torch.float64)
    torch.testing.assert_close(scaled[0], sincos_positions(4, 4, 16, torch.float64), rtol=0, atol=1e-15)
    for sample, patch, i in ((1, 6, 0), (2, 13, 3), (2, 3, 2)):
        for half, index in enumerate(divmod(patch, 4)):
            angle = index * side_B[sample] / 10000 ** (i / 4)
            expected = torch.stack([angle.sin(), angle.cos()])
            torch.testing.assert_close(scaled[sample, patch, [8 * half + i, 8 * half + 4 + i]], expected)


def test_gsd_positions_are_those_of_the_second_view_alone_and_off_by_default(two_scales, images, draw):
    plain, scaled = two_scales(), two_scales(CrossScaleConfig(gsd_positions=True))
    scaled.load_state_dict(plain.state_dict())
    batch, seen = images(plain.config, 3, torch.float64), []
    for model in (plain, scaled):
        model.fusmae.projections["s2"].register_forward_pre_hook(lambda m, inputs: seen.append(inputs[1]))
        model(batch, draw(range(3)))
    assert torch.equal(seen[0][:3], seen[1][:3])
    assert not torch.isclose(seen[0][3:], seen[1][3:]).all(2).all(1).any()
    out, windows = plain(batch, draw(range(3))), draw_windows(0.25, 0.75, draw(range(3)))
    ids_BV = out.masks["s2"].ids_visible_BV.chunk(2)[1]
    assert torch.equal(seen[1][3:], scaled_positions(ids_BV, windows.side_B, 4, 32, torch.float64))


def test_an_output_is_a_function_of_seed_epoch_and_position(tiny, images, draw):
    model = CrossScaleFusMAE(tiny())
    batch = images(model.config)
    one, same = model(batch, draw(range(3))), model(batch, draw(range(3)))
    assert all(torch.equal(one.losses[name], same.losses[name]) for name in one.losses)
    for other in (draw(range(3), seed=8), draw(range(3), epoch=1), draw(range(1, 4))):
        changed = model(batch, other).losses
        assert not any(torch.equal(one.losses[name], changed[name]) for name in changed)
    moved = draw(range(3)).to("meta").from_stream(3)
    assert torch.equal(moved.on_cpu.words(5, 1, 2), draw(range(3)).words(5, 1, 5))


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_weight_learns(tiny, images, draw, changes):
    model = CrossScaleFusMAE(tiny(**changes))
    model(images(model.config), draw(range(3))).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []


def test_activation_checkpoints_change_nothing(tiny, images, draw):
    models = [CrossScaleFusMAE(tiny(checkpoint_activations=on)) for on in (False, True)]
    models[1].load_state_dict(models[0].state_dict())
    batch = images(models[0].config)
    for model in models:
        model(batch, draw(range(3))).loss.backward()
    for plain, saving in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(plain.grad, saving.grad)


def test_nothing_waits_for_the_device(tiny, images, draw):
    """On the meta device tensors have no content: whoever read one would fail."""
    config = tiny(attention_backend="sdpa")
    batch = {name: image.to("meta") for name, image in images(config).items()}
    valid = {"s1": torch.ones(3, 2, dtype=torch.bool, device="meta")}
    model = CrossScaleFusMAE(config, CrossScaleConfig(gsd_positions=True)).to("meta")
    out = model(batch, draw(range(3)).to("meta"), valid, gather=lambda pair: torch.cat([pair, pair]), rank=1)
    out.loss.backward()
    assert out.loss.device.type == "meta" and out.predictions["s1"].shape == (6, 12, 32)


def test_bfloat16_is_finite_and_close(tiny, images, draw):
    model = CrossScaleFusMAE(tiny(), CrossScaleConfig(gsd_positions=True))
    batch = images(model.config, 6)
    exact = model(batch, draw(range(6)))
    rounded = model.bfloat16()(batch, draw(range(6)))
    rounded.loss.backward()
    assert all(loss.dtype == torch.float32 for loss in (rounded.loss, *rounded.losses.values()))
    for name, loss in exact.losses.items():
        assert rounded.losses[name].item() == pytest.approx(loss.item(), rel=0.03)
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("name", ["s1", "s2"])
def test_a_missing_modality_is_no_obstacle(two_scales, images, draw, name):
    model = two_scales()
    out = model({name: images(model.config, 3, torch.float64)[name]}, draw(range(3)))
    out.loss.backward()
    assert out.loss.isfinite() and list(out.losses) == [name, "contrast", "prediction"]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("hidden", [0, 24])
def test_flops_equal_torch_s_counter(tiny, images, draw, changes, hidden):
    model = CrossScaleFusMAE(tiny(attention_backend="math", **changes), CrossScaleConfig(predictor_hidden=hidden))
    with FlopCounterMode(display=False) as counting:
        model(images(model.config, 4), draw(range(4)))
    assert model.flops(4) == counting.get_total_flops()
    assert model.train_flops(4) == 3 * model.flops(4)
    with FlopCounterMode(display=False) as counting:
        model(images(model.config, 2), draw(range(2)), gather=lambda pair: torch.cat([pair] * 5))
    assert model.flops(2, world_size=5) == counting.get_total_flops()


def test_evaluation_uses_the_inner_model_alone(tiny, images, draw):
    config = tiny(positions="learned", decoder_fusion="multimae")
    model = CrossScaleFusMAE(config)
    torch.manual_seed(0)
    same = FusMAE(config)
    inner = FusMAE(config)
    inner.load_state_dict(inner_weights(model.state_dict()))
    torch.manual_seed(0)
    fresh = CrossScaleFusMAE(config).fusmae
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), fresh.parameters(), strict=True))
    batch = images(config)
    assert model.config is config and model.train_flops() > 2 * inner.train_flops()
    assert torch.equal(model.features(batch), inner.features(batch))
    assert torch.equal(model.encode(batch).tokens["s1"], inner.encode(batch).tokens["s1"])
    pictures = (m.reconstruct(batch, draw(range(3))).images["s2"] for m in (model, inner))
    assert torch.equal(*pictures)
    names = {name for name, _ in model.named_parameters()}
    assert model.no_weight_decay() < names and len(model.no_weight_decay()) == len(inner.no_weight_decay()) > 0
    with pytest.raises(ValueError, match=r"not the weights of a cross-scale model"):
        inner_weights(inner.state_dict())


def test_shuffling_moves_contents_of_both_views(two_scales, images, draw):
    model = two_scales()
    batch = images(model.config, 3, torch.float64)
    plain, shuffled = model(batch, draw(range(3))), model(batch, draw(range(3)), shuffle_visible=True)
    for name in batch:
        assert torch.equal(plain.targets[name], shuffled.targets[name])
        assert (plain.predictions[name] != shuffled.predictions[name]).flatten(1).any(1).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"masking": "union"}, "not masking 'union'; write independent, consistent, disjoint"),
        ({"masking": "dirichlet"}, "not masking 'dirichlet'"),
        ({"masking": "modality"}, "not masking 'modality'"),
        ({"modality_dropout": 0.1}, "not modality_dropout; write modality_dropout: 0"),
        ({"decoder_attention": "cross"}, "decoder_attention 'cross' decodes hidden ones only; write self"),
        ({"decoder_queries": 0.5}, r"decoder_queries 0.5 decodes some; write 1"),
        ({"positions": "learned"}, "gsd_positions needs positions: sincos"),
        (
            {"modalities": tuple(Modality(name=n, bands=("A",)) for n in ("s1", "contrast"))},
            "a modality is called contrast",
        ),
    ],
    ids=str,
)
def test_models_that_cannot_be_trained_at_two_scales_are_refused(tiny, changes, words):
    with pytest.raises(ValueError, match=words):
        CrossScaleFusMAE(tiny(**changes), CrossScaleConfig(gsd_positions=True))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"min_area": 0.0}, "min_area 0.0"),
        ({"min_area": 0.8}, "the lesser first"),
        ({"max_area": 1.5}, "max_area 1.5"),
        ({"temperature": 0.0}, "temperature 0.0"),
        ({"contrast_weight": -1.0}, "contrast_weight -1.0"),
        ({"prediction_weight": float("inf")}, "prediction_weight inf"),
        ({"predictor_hidden": -1}, "predictor_hidden -1"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        CrossScaleConfig(**changes)


def test_what_does_not_fit_is_refused(tiny, images, draw):
    model = CrossScaleFusMAE(tiny())
    batch = images(model.config)
    with pytest.raises(ValueError, match=r"random numbers for 2 samples"):
        model(batch, draw(range(2)))
    with pytest.raises(ValueError, match=r"validity of s2 has shape \(2, 3\)"):
        model(batch, draw(range(3)), {"s2": torch.ones(2, 3)})
    with pytest.raises(ValueError, match=r"3 square windows do not fit images"):
        resample(torch.zeros(2, 1, 4, 4), draw_windows(0.5, 0.5, draw(range(3))))
