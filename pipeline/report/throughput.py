"""How fast a run went."""

import statistics
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Medians over the logged steps."""

    samples_per_s: float
    waiting: float
    """Share of the steps' time spent waiting for data, by the rank that waited longest."""
    mfu: float | None
    memory_gib: float | None
    """Largest peak of a rank."""


def speed(metrics: list[dict[str, Any]]) -> Speed | None:
    """The speed of a run; None when nothing was logged."""
    timed = _timed(metrics)
    if not timed:
        return None
    mfu = [line["mfu"] for line in timed if line.get("mfu") is not None]
    return Speed(
        samples_per_s=statistics.median(line["samples_per_s"] for line in timed),
        waiting=sum(line["data_wait_s"] for line in timed) / sum(line["step_s"] for line in timed),
        mfu=statistics.median(mfu) if mfu else None,
        memory_gib=max((line["memory_gib"] for line in timed if line.get("memory_gib")), default=None),
    )


def describe_throughput(metrics: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The throughput's figure and `speed`; None when nothing was logged."""
    from pipeline.report.figures.curves import throughput_figure

    timed, median = _timed(metrics), speed(metrics)
    if median is None:
        return None
    shares = [line["data_wait_s"] / line["step_s"] for line in timed]
    steps, samples_per_s = [line["step"] for line in timed], [line["samples_per_s"] for line in timed]
    return {"figure": throughput_figure(steps, samples_per_s, shares), "speed": median}


def _timed(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in metrics if line.get("samples_per_s") and line.get("step_s")]
