"""The schedule and AdamW's groups."""

import pytest
import torch

from pipeline.optimiser import build_adamw, learning_rate
from pipeline.settings import OptimSettings


def test_schedule_warms_up_peaks_and_ends_at_the_floor() -> None:
    optim = OptimSettings(lr=1.0, warmup_steps=10, warmup_lr=0.1, min_lr=0.2)
    rates = [learning_rate(step, 101, optim) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[5] == pytest.approx(0.55)
    assert rates[10] == max(rates) == 1.0
    assert rates[55] == pytest.approx(0.6)
    assert rates[100] == pytest.approx(0.2)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_biases_norms_and_single_tokens_do_not_decay() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    model.register_parameter("token", torch.nn.Parameter(torch.zeros(1, 1, 4)))
    optimiser = build_adamw(model, OptimSettings(), torch.device("cpu"))
    decay = {tuple(p.shape): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    assert decay == {(4, 4): 0.05, (4,): 0.0, (1, 1, 4): 0.0}
