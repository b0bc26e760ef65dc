"""Losses that are not finite or leap, seen by all ranks together, with the keys of the samples.

Losses stay on the device until a step is logged, so that no step waits for them: then each rank reads its own of the
steps since, and one reduction gives all ranks the same means and so the same findings.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipeline.settings import GuardSettings

_MIN_SEEN: Final = 20
"""Steps from which on a leap can be told from the beginning of a run."""
_MAD: Final = 1.4826
"""Times the median absolute deviation of a normal distribution is its standard deviation."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A step whose loss is not as the others'."""

    step: int
    is_finite: bool
    loss: float
    """Mean over the global batch."""
    expected: float | None
    """Median of the steps before; None without any."""
    limit: float | None
    """From which on a loss leaps."""
    keys: tuple[str, ...]
    """Samples of this rank's micro-batches whose own loss is not finite or above the limit."""


class LossWatch:
    """Collects the losses of one rank's micro-batches; `check` is a collective of `group`."""

    def __init__(self, settings: GuardSettings, world_size: int, group: Any) -> None:
        self._factor = settings.spike
        self._world_size = world_size
        self._group = group
        self._noted: list[tuple[int, list[list[str]], Any]] = []
        self._seen: deque[float] = deque(maxlen=settings.window)

    def note(self, step: int, keys: Sequence[list[str]], losses: Sequence[Any]) -> None:
        """Keep the keys and the loss of each micro-batch of a step; waits for nothing."""
        import torch

        self._noted.append((step, list(keys), torch.stack(list(losses))))

    def check(self) -> list[Finding]:
        """What is wrong with the steps noted since the last call: the same steps on every rank."""
        import torch
        import torch.distributed as dist

        if not self._noted:
            return []
        own_SM = torch.stack([losses for _, _, losses in self._noted]).double().cpu()
        means_S = own_SM.mean(dim=1)
        dist.all_reduce(means_S, group=self._group)
        means_S /= self._world_size
        findings = []
        for (step, keys, _), own_M, mean in zip(self._noted, own_SM.tolist(), means_S.tolist(), strict=True):
            expected, limit = self._expected()
            if not math.isfinite(mean) or (limit is not None and mean > limit):
                found = Finding(
                    step=step,
                    is_finite=math.isfinite(mean),
                    loss=mean,
                    expected=expected,
                    limit=limit,
                    keys=_keys_above(keys, own_M, limit if math.isfinite(mean) else None),
                )
                findings.append(found)
            else:
                self._seen.append(mean)
        self._noted.clear()
        return findings

    def _expected(self) -> tuple[float | None, float | None]:
        """Median of the steps before, and the limit of what is usual."""
        if not self._seen:
            return None, None
        median = statistics.median(self._seen)
        if not self._factor or len(self._seen) < _MIN_SEEN:
            return median, None
        spread = _MAD * statistics.median(abs(loss - median) for loss in self._seen)
        return median, median + self._factor * spread


def _keys_above(keys: list[list[str]], losses: list[float], limit: float | None) -> tuple[str, ...]:
    """Keys of the micro-batches that are not finite, or above the limit where there is one."""
    pairs = zip(keys, losses, strict=True)
    return tuple(
        key
        for of_one, loss in pairs
        if not math.isfinite(loss) or (limit is not None and loss > limit)
        for key in of_one
    )
