"""A step of plain DDP that nobody waits for is the same step, skipped or not."""

from typing import Any

import pytest
import torch

from pipeline import engine as engines
from pipeline.dry_batch import DryBatch
from pipeline.engine import DdpEngine
from tests.dist.engine_program import ACCUMULATION, CONFIG, CPU, build_model, settings_of, train


def _engine(monkeypatch: pytest.MonkeyPatch, reads_flag: bool) -> DdpEngine:
    """With AdamW as it is on a GPU; `reads_flag`: Python decides, as it did before."""
    build = engines.build_adamw
    with monkeypatch.context() as patch:
        patch.setattr(engines, "build_adamw", lambda *about: _fused(build(*about)))
        made = DdpEngine(build_model(), settings_of("ddp", precision="fp32"), CPU, ACCUMULATION)
    assert made._is_fused
    made._is_fused = not reads_flag
    return made


def _fused(plain: Any) -> torch.optim.AdamW:
    groups = [
        {name: group[name] for name in ("params", "lr", "betas", "eps", "weight_decay")} for group in plain.param_groups
    ]
    return torch.optim.AdamW(groups, fused=True)


@pytest.mark.parametrize("spoilt", [None, 0, 2])
def test_step_that_is_not_waited_for_equals_one_that_is(
    group: Any, monkeypatch: pytest.MonkeyPatch, spoilt: int | None
) -> None:
    waits, goes_on = _engine(monkeypatch, reads_flag=True), _engine(monkeypatch, reads_flag=False)
    for made in (waits, goes_on):
        train(made, rank=1, num_steps=4, spoilt=spoilt)
        assert made.skipped_steps == (spoilt is not None)
    theirs = goes_on.module.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in waits.module.state_dict().items())
    assert not all(torch.equal(weight, build_model().state_dict()[name]) for name, weight in theirs.items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_step_on_a_gpu_waits_for_nothing_and_a_dry_batch_leaves_nothing() -> None:
    import torch.distributed as dist

    from fusmae.random import CounterRandom

    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)

    device = torch.device("cuda", 0)
    settings = settings_of("ddp")
    made = DdpEngine(build_model(), settings, device, 1)
    before = torch.cuda.memory_allocated(device)
    DryBatch(settings, CONFIG, made, lambda: build_model().to(device), 1)(2)
    assert torch.cuda.memory_allocated(device) == before
    images = {m.name: torch.randn(2, len(m.bands), 24, 24, device=device) for m in CONFIG.modalities}
    position_B = torch.arange(2)
    draws = CounterRandom(0, torch.zeros_like(position_B), position_B).to(device)
    for step in range(4):
        torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")  # the first ones allocate and choose kernels
        try:
            made.backward(made(images, draws, None).loss, is_last=True)
            made.step(1e-3)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert made.skipped_steps == 0
    dist.destroy_process_group()
