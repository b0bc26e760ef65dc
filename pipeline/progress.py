"""How fast a run goes and how well: counted every step without waiting for the device, reduced when it is logged."""

import math
import statistics
import time
from typing import Any, Final

from pipeline.distributed import Ranks
from pipeline.errors import DataError
from pipeline.metrics import RunLog
from pipeline.settings import Settings
from pipeline.terminal import Terminal

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "GH200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
"""Dense bf16 peak of a GPU by a part of its name (vendor's data sheets); MFU is null for others and for CPUs."""

STRAGGLER: Final = 0.1
"""Share of a step by which the slowest rank may be behind the median of the others before the terminal names it."""


def _slowest(line: dict[str, Any]) -> str:
    """The slowest rank, where it holds up the others for more than a tenth of a step."""
    if line["slowest_rank"] is None or line["slowest_lag_s"] <= STRAGGLER * line["step_s"]:
        return ""
    return f"slowest rank {line['slowest_rank']} (by {line['slowest_lag_s'] / line['step_s']:.0%} of a step) "


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
        self._terminal = Terminal(ranks.is_first)
        self._peak = _peak_flops(device)
        self._began = time.perf_counter()
        self._since = self._began
        self._waited = 0.0
        self._steps = 0
        self._all_steps = 0
        self._skipped = skipped  # those before a resume are not new
        self._skipped_lately = 0
        self._busy_s = 0.0

    @property
    def skipped(self) -> int:
        """Skipped steps up to the last report."""
        return self._skipped

    @property
    def skipped_lately(self) -> int:
        """Steps skipped since a report without any."""
        return self._skipped_lately

    def say(self, words: str) -> None:
        """One line on the terminal, once for all ranks."""
        self._terminal.say(words)

    def begin(self, step: int) -> None:
        """Training goes on behind `step`: on a terminal a bar is shown from here on."""
        self._terminal.begin(step, self._settings.train.steps)

    def done(self, step: int) -> None:
        """`step` is done."""
        self._terminal.show(step)

    def close(self) -> None:
        """Nothing is drawn any more."""
        self._terminal.close()

    def count(self, waited_s: float) -> None:
        """One step begins, after `waited_s` seconds of waiting for its batch."""
        self._waited += waited_s
        self._steps += 1

    def exclude(self, seconds: float) -> None:
        """Time that belongs to no step, such as a checkpoint's."""
        self._since += seconds

    def go_back(self, skipped: int) -> None:
        """The run begins anew from a checkpoint with so many skipped steps."""
        self._since, self._waited, self._steps = time.perf_counter(), 0.0, 0
        self._skipped, self._skipped_lately = skipped, 0

    def report(
        self, step: int, outputs: list[Any], lr: float, grad_norm: float | None, skipped: int, busy_s: float = 0.0
    ) -> int:
        """Log step `step`; returns how many steps were skipped since a report without any. A collective.

        The losses are this step's means over the global batch, not over the steps in between, so that they do not
        depend on where a run was resumed. The wait is that of the rank that waited longest. `busy_s` is the time since
        the start in which this rank did not wait for others: the rank with most of it is the slowest.
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
        own_W3 = torch.zeros(self._ranks.world_size, 3, dtype=torch.float64)
        own_W3[self._ranks.rank] = torch.tensor([self._waited, now - self._since, max(0.0, busy_s - self._busy_s)])
        self._busy_s = busy_s
        dist.all_reduce(own_W3, group=self._group)
        wait_s, step_s = (own_W3[:, :2].amax(dim=0) / self._steps).tolist()
        busy_W = (own_W3[:, 2] / self._steps).tolist()
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
            "slowest_rank": busy_W.index(max(busy_W)) if any(busy_W) else None,
            "slowest_lag_s": max(busy_W) - statistics.median(sorted(busy_W)[:-1] or busy_W),
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
        minutes, seconds = divmod(int((now - self._began) / self._all_steps * (num_steps - line["step"])), 60)
        parts = " ".join(f"{key[5:]} {line[key]:.4f}" for key in line if key.startswith("loss_"))
        mfu = f" mfu {line['mfu']:.1%}" if line["mfu"] is not None else ""
        self.say(
            f"step {line['step']}/{num_steps} loss {line['loss']:.4f} ({parts}) lr {line['lr']:.2e} "
            f"{line['samples_per_s']:.0f} samples/s{mfu} waiting {line['data_wait_s'] / line['step_s']:.1%} "
            f"memory {line['memory_gib']:.1f} GiB {_slowest(line)}left "
            f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
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
