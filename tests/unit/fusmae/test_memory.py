import pytest
import torch

from fusmae import CrossScaleConfig, CrossScaleFusMAE, FusMAE
from fusmae.memory import KeptBytes, activation_bytes


def measured(config, images, draw, batch, dtype):
    model = FusMAE(config).to(dtype).train()
    given = images(config, batch)
    kept = KeptBytes(*model.parameters(), *given.values())
    with kept.counting():
        out = model(given, draw(range(batch)))
    assert out.loss.requires_grad
    return model, kept.total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_backend": "sdpa"},
        {"attention_backend": "math", "encoder_fusion": "none"},
        {"decoder_fusion": "multimae", "target_norm": "per_patch"},
        {"decoder_attention": "cross", "decoder_queries": 0.25},
        {"checkpoint_activations": True},
        {"masking": "band_group", "positions": "learned"},
    ],
    ids=str,
)
def test_it_is_what_the_hooks_see(tiny, images, draw, changes, dtype):
    model, kept = measured(tiny(**changes), images, draw, 3, dtype)
    assert model.activation_bytes(3) == kept > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("changes", [{}, {"gsd_positions": True}], ids=str)
def test_at_two_scales_it_is_what_the_hooks_see(tiny, images, draw, changes, dtype):
    model = CrossScaleFusMAE(tiny(), CrossScaleConfig(**changes)).to(dtype).train()
    given = images(tiny(), 3)
    kept = KeptBytes(*model.parameters(), *given.values())
    with kept.counting():
        model(given, draw(range(3)))
    assert model.activation_bytes(3) == kept.total > 1.8 * activation_bytes(tiny(), 3, dtype)


def test_it_grows_with_the_batch_and_falls_with_checkpointing(tiny):
    config, saving = tiny(), tiny(checkpoint_activations=True)
    assert 1.9 < activation_bytes(config, 8) / activation_bytes(config, 4) < 2.1
    assert activation_bytes(saving, 4) < 0.6 * activation_bytes(config, 4)


def test_it_takes_no_memory_and_no_time_at_full_size():
    from fusmae import FusMAEConfig

    gib = activation_bytes(FusMAEConfig.vit_l(), 512, torch.bfloat16) / 2**30
    assert 30 < gib < 100  # 48.7: a gigabyte for ten samples


def test_where_it_varies_there_is_no_number(tiny):
    with pytest.raises(ValueError, match="under masking 'dirichlet' the memory varies"):
        activation_bytes(tiny(masking="dirichlet"), 2)


def test_dropout_is_named(tiny):
    with pytest.raises(ValueError, match="under modality_dropout the memory varies"):
        activation_bytes(tiny(modality_dropout=0.1), 2)


def test_views_count_once_and_what_was_there_does_not():
    weight = torch.randn(10, 10, requires_grad=True)
    x = torch.randn(4, 10)
    kept = KeptBytes(weight, x)
    with kept.counting():
        y = x @ weight  # keeps both operands, which were there
        z = y.exp()  # keeps its result
        _ = (z[:2] * z[2:]).sum()  # keeps two views of it
    assert kept.total == 4 * 10 * 4
