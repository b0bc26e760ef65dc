"""torch.compile sees one graph, and training with it gives the same losses."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from fusmae import CrossScaleFusMAE, FusMAE

# Dynamo itself makes an instance of an autograd function.
pytestmark = pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*:DeprecationWarning")

VARIANTS = [
    {},
    {"decoder_fusion": "multimae", "target_norm": "per_band_group", "positions": "learned", "masking": "band_group"},
]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def trained(model, batches, forward):
    """Losses of some steps."""
    optimiser, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for images, draws in batches:
        loss = forward(images, draws).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_it_is_one_graph_whatever_the_batch_with_the_same_losses(tiny, images, draw, changes):
    config = tiny(**changes)
    batches = [(images(config, 4), draw(range(4 * step, 4 * step + 4))) for step in range(5)]
    plain, compiled = FusMAE(config), FusMAE(config)
    compiled.load_state_dict(plain.state_dict())
    counter = CompileCounterWithBackend("aot_eager")
    forward = torch.compile(compiled, backend=counter, fullgraph=True, dynamic=False)
    expected, found = trained(plain, batches, plain), trained(compiled, batches, forward)
    assert counter.frame_count == 1
    assert expected[-1] < expected[0]
    assert found == pytest.approx(expected, rel=1e-6)


def test_two_scales_are_one_graph_too(tiny, images, draw):
    config = tiny()
    plain, compiled = CrossScaleFusMAE(config), CrossScaleFusMAE(config)
    compiled.load_state_dict(plain.state_dict())
    counter = CompileCounterWithBackend("aot_eager")
    forward = torch.compile(compiled, backend=counter, fullgraph=True, dynamic=False)
    batches = [(images(config, 4), draw(range(4 * step, 4 * step + 4))) for step in range(3)]
    assert trained(compiled, batches, forward) == pytest.approx(trained(plain, batches, plain), rel=1e-6)
    assert counter.frame_count == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_inductor_trains_the_same_curve(tiny, images, draw):
    config = tiny(width=64, heads=4)
    plain, compiled = FusMAE(config).cuda().bfloat16(), FusMAE(config).cuda().bfloat16()
    compiled.load_state_dict(plain.state_dict())
    batches = [
        ({name: image.cuda() for name, image in images(config, 8).items()}, draw(range(8)).to("cuda"))
        for _ in range(30)
    ]
    expected, found = trained(plain, batches, plain), trained(compiled, batches, torch.compile(compiled, dynamic=False))
    assert found == pytest.approx(expected, rel=2e-2)
