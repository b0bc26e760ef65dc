"""How fast a run goes and how well: counted every step without waiting for the device, reduced when it is logged."""

import math
import time
from typing import Any

from pipeline.distributed import Ranks
from pipeline.errors import DataError
from pipeline.metrics import RunLog
from pipeline.settings import Settings

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "GH200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
"""Dense bf16 peak of a GPU by a part of its name (vendor's data sheets); MFU is null for others and for CPUs."""


def peak_flops(name: str) -> float | None:
    """Dense bf16 operations a second of the GPU of that name; None when it is not known."""
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


class Progress:
    """Counts time and samples between two logged steps, and speaks on the terminal of rank 0."""

    def __init__(
        self, settings: Settings, ranks: Ranks, device: Any, flops: int, group: Any, log: RunLog, skipped: int
    ) -> None:
        self._settings = settings
        self._ranks = ranks
        self._device = device
        self._flops = flops
        self._group = group
        self._log = log
        self._peak = _peak_flops(device)
        self._began = time.perf_counter()
        self._since = self._began
        self._waited = 0.0
        self._steps = 0
        self._all_steps = 0
        self._skipped = skipped  # those before a resume are not new
        self._skipped_lately = 0

    @property
    def skipped(self) -> int:
        """Skipped steps up to the last report."""
        return self._skipped

    def say(self, words: str) -> None:
        """One line on the terminal, once for all ranks."""
        if self._ranks.is_first:
            print(words, flush=True)

    def count(self, waited_s: float) -> None:
        """One step begins, after `waited_s` seconds of waiting for its batch."""
        self._waited += waited_s
        self._steps += 1

    def exclude(self, seconds: float) -> None:
        """Time that belongs to no step, such as a checkpoint's."""
        self._since += seconds

    def report(self, step: int, outputs: list[Any], lr: float, grad_norm: float | None, skipped: int) -> int:
        """Log step `step`; returns how many steps were skipped since a report without any. A collective.

        The losses are this step's means over the global batch, not over the steps in between, so that they do not
        depend on where a run was resumed. The wait is that of the rank that waited longest.
        """
        import torch
        import torch.distributed as dist

        names = ["loss", *(f"loss_{name}" for name in outputs[0].losses)]
        own = [
            torch.stack(column).float().mean()
            for column in zip(*([o.loss, *o.losses.values()] for o in outputs), strict=True)
        ]
        means = torch.stack(own).cpu()
        dist.all_reduce(means, group=self._group)
        means /= self._ranks.world_size
        now = time.perf_counter()
        worst = torch.tensor([self._waited / self._steps, (now - self._since) / self._steps], dtype=torch.float64)
        dist.all_reduce(worst, op=dist.ReduceOp.MAX, group=self._group)
        wait_s, step_s = worst.tolist()
        samples_per_s = self._settings.train.global_batch / step_s
        mfu = samples_per_s * self._flops / (self._peak * self._ranks.world_size) if self._peak else None
        newly_skipped, self._skipped = skipped - self._skipped, skipped
        self._skipped_lately = self._skipped_lately + newly_skipped if newly_skipped else 0
        line: dict[str, Any] = {"step": step, "samples": step * self._settings.train.global_batch}
        line |= dict(zip(names, means.tolist(), strict=True))
        line |= {
            "lr": lr,
            "grad_norm": grad_norm,
            "skipped_steps": skipped,
            "samples_per_s": samples_per_s,
            "mfu": mfu,
            "data_wait_s": wait_s,
            "step_s": step_s,
            "memory_gib": _memory_gib(self._device),
        }
        self._log.metrics(line)
        self._all_steps += self._steps
        self._say_line(line, now)
        self._since, self._waited, self._steps = time.perf_counter(), 0.0, 0
        if not math.isfinite(line["loss"]) and not newly_skipped:
            raise DataError(
                f"the loss of step {step} is not finite: the run has diverged; lower optim.lr or set optim.clip=1 and "
                "start from an earlier checkpoint"
            )
        return self._skipped_lately

    def _say_line(self, line: dict[str, Any], now: float) -> None:
        num_steps = self._settings.train.steps
        left_s = (now - self._began) / self._all_steps * (num_steps - line["step"])
        parts = " ".join(f"{key[5:]} {line[key]:.4f}" for key in line if key.startswith("loss_"))
        mfu = f" mfu {line['mfu']:.1%}" if line["mfu"] is not None else ""
        self.say(
            f"step {line['step']}/{num_steps} loss {line['loss']:.4f} ({parts}) lr {line['lr']:.2e} "
            f"{line['samples_per_s']:.0f} samples/s{mfu} waiting {line['data_wait_s'] / line['step_s']:.1%} "
            f"left {int(left_s // 3600)}:{int(left_s // 60 % 60):02d}:{int(left_s % 60):02d}"
        )


def _peak_flops(device: Any) -> float | None:
    if device.type != "cuda":
        return None
    import torch

    return peak_flops(torch.cuda.get_device_name(device))


def _memory_gib(device: Any) -> float:
    """Peak memory of this process: the GPU's, or resident memory without one."""
    if device.type == "cuda":
        import torch

        return float(torch.cuda.max_memory_allocated(device)) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
