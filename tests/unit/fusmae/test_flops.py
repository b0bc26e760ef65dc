import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from fusmae import FusMAE, FusMAEConfig, Modality
from fusmae.flops import forward_flops

VARIANTS = [
    {"encoder_fusion": "xae", "decoder_fusion": "none"},
    {"encoder_fusion": "none", "decoder_fusion": "xad"},
    {"encoder_fusion": "xae", "decoder_fusion": "xad", "share_cross_attention": False},
    {"encoder_fusion": "none", "decoder_fusion": "none"},
    {"masking": "consistent", "mask_ratio": 0.5, "target_norm": "per_patch", "mlp_ratio": 2.0},
    {"decoder_fusion": "multimae", "decode_global_token": True},
    {"decoder_attention": "cross", "decoder_queries": 0.25},
    {"decoder_queries": 0.5, "decode_global_token": True, "positions": "learned"},
    {"global_token": False, "masking": "band_group", "target_norm": "per_band_group"},
    {"modalities": tuple(Modality(name=f"m{i}", bands=tuple("ABC"[: i + 1])) for i in range(3))},
]


def measured(config, images, draw, batch, **counter):
    model = FusMAE(config)
    with FlopCounterMode(display=False, **counter) as counting:
        model(images(config, batch), draw(range(batch)))
    return model, counting.get_total_flops()


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_flops_equal_torch_s_counter(tiny, images, draw, changes):
    model, flops = measured(tiny(attention_backend="math", **changes), images, draw, batch=3)
    assert model.flops(batch=3) == flops
    assert model.train_flops(3) == 3 * flops


def test_flops_through_xformers_are_the_same_once_its_kernel_is_counted(tiny, images, draw):
    def attention_flops(q, k, v, *args, out_shape=None, **kwargs):
        return sdpa_flop_count(q, k, v)

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    model, flops = measured(tiny(), images, draw, batch=2, custom_mapping={kernel: attention_flops})
    assert model.flops(2) == flops
    blind, fewer = measured(tiny(), images, draw, batch=2)  # torch's counter does not know the kernel
    assert fewer < blind.flops(2)


def test_a_backward_pass_costs_twice_the_forward_pass(tiny, images, draw):
    config = tiny(attention_backend="math")
    model, batch = FusMAE(config), images(config, 2)
    with FlopCounterMode(display=False) as counting:
        model(batch, draw(range(2))).loss.backward()
    # The first map needs no gradient of its input: that half of its backward pass is not computed.
    projections = 2 * sum(2 * config.num_visible * config.patch_elements(m) * config.width for m in config.modalities)
    assert counting.get_total_flops() == model.train_flops(2) - projections


@pytest.mark.parametrize(
    ("preset", "changes", "forward_gflop"),
    [
        ("vit_b", {"decoder_fusion": "none"}, 21.48),
        ("vit_b", {"encoder_fusion": "none"}, 23.10),
        (
            "vit_b",
            {"decoder_fusion": "none", "decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16},
            44.31,
        ),
        ("vit_b", {"decoder_fusion": "none", "image_size": 224, "patch_size": 16}, 19.21),
        ("vit_b", {"decoder_fusion": "none", "image_size": 128, "patch_size": 16}, 6.27),
        ("vit_b", {"decoder_fusion": "none", "patch_size": 12}, 9.61),
        ("vit_s", {"decoder_fusion": "none"}, 20.4 / 3),
        ("vit_l", {"decoder_fusion": "none"}, 214 / 3),
        ("vit_h", {"decoder_fusion": "none"}, 438 / 3),
    ],
)
def test_flops_of_the_known_models(preset, changes, forward_gflop):
    """Within 1 % of figures for which all patches pass the decoder's last map; ours maps only masked ones."""
    config = getattr(FusMAEConfig, preset)(**changes)
    assert forward_flops(config) / 1e9 == pytest.approx(forward_gflop, rel=0.01)
    assert forward_flops(config) / 1e9 <= forward_gflop * 1.001


@pytest.mark.parametrize(
    ("changes", "millions"),
    [
        ({"decoder_fusion": "none"}, 89.53),
        ({"encoder_fusion": "none"}, 103.71),
        ({"decoder_fusion": "none", "decoder_width": 512, "decoder_depth": 1}, 93.3),
    ],
)
def test_parameters_of_the_known_models(changes, millions):
    with torch.device("meta"):
        model = FusMAE(FusMAEConfig(**changes))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    encoder = [*model.encoder.parameters(), *model.projections.parameters()]
    assert sum(parameter.numel() for parameter in encoder) / 1e6 == pytest.approx(85.7, abs=0.05)
