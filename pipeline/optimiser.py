"""AdamW's parameter groups and the learning rate's schedule."""

import math
from typing import Any

from pipeline.settings import OptimSettings


def learning_rate(step: int, num_steps: int, optim: OptimSettings) -> float:
    """The rate of optimiser step `step` (from 0): linear warm-up, then a half cosine to `min_lr` at the last step."""
    if step < optim.warmup_steps:
        return optim.warmup_lr + (optim.lr - optim.warmup_lr) * step / optim.warmup_steps
    progress = (step - optim.warmup_steps) / max(1, num_steps - 1 - optim.warmup_steps)
    return optim.min_lr + (optim.lr - optim.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def build_adamw(model: Any, optim: OptimSettings, device: Any) -> Any:
    """`torch.optim.AdamW` over the model: matrices decay; biases, norms and tokens do not (MAE, appendix A)."""
    import torch

    decayed: list[Any] = []
    plain: list[Any] = []
    tables: set[str] = getattr(model, "no_weight_decay", set)()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_matrix = sum(size > 1 for size in _shape(parameter)) > 1 and name not in tables
            (decayed if is_matrix else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=optim.lr,
        betas=optim.betas,
        eps=optim.eps,
        fused=device.type == "cuda",
    )


def _shape(parameter: Any) -> tuple[int, ...]:
    """Full shape, also of a parameter that ZeRO-3 has taken apart."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
