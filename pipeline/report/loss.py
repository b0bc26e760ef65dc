"""How the loss went."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipeline.errors import DataError
from pipeline.report.run_files import RunFiles

TOTAL: Final = "total"
_ENDS: Final = {"kill": "killed after", "lost": "lost after", "hang": "hung after"}
_MODALITY_TITLES: Final = {"s1": "S1", "s2": "S2"}


@dataclass(frozen=True, kw_only=True)
class LossFall:
    """How far a run's loss fell: means of its first and of its last tenth of logged steps."""

    first: float
    last: float

    @property
    def share(self) -> float:
        """Fall from first to last, as a share of the first; negative when the loss rose."""
        return 1 - self.last / self.first if self.first else 0.0


def loss_fall(losses: Sequence[float]) -> LossFall:
    """The fall of a loss curve; DataError when there is none."""
    if not losses:
        raise DataError("the run has logged no loss yet; train on with python -m pipeline.pretrain")
    tenth = max(1, len(losses) // 10)
    return LossFall(first=statistics.fmean(losses[:tenth]), last=statistics.fmean(losses[-tenth:]))


@dataclass(frozen=True, kw_only=True)
class LossCurves:
    """The loss at each logged step where it is finite; the total first, then those of which it is the sum."""

    steps: list[int]
    samples: list[int]
    """Samples seen so far; empty when the run did not log them."""
    curves: dict[str, list[float]]
    not_finite: int
    """Logged steps left out."""


def loss_curves(metrics: list[dict[str, Any]]) -> LossCurves | None:
    """The curves of a run; None when nothing was logged."""
    finite = [line for line in metrics if line.get("loss") is not None and math.isfinite(line["loss"])]
    if not finite:
        return None
    curves = {TOTAL: [line["loss"] for line in finite]}
    for key in finite[0]:
        if key.startswith("loss_") and all(isinstance(line.get(key), int | float) for line in finite):
            name = key.removeprefix("loss_")
            curves[_MODALITY_TITLES.get(name, name)] = [line[key] for line in finite]
    samples = [line.get("samples") for line in finite]
    return LossCurves(
        steps=[line["step"] for line in finite],
        samples=[] if None in samples else [int(count) for count in samples if count is not None],
        curves=curves,
        not_finite=len(metrics) - len(finite),
    )


def describe_loss(run: RunFiles) -> dict[str, Any] | None:
    """The loss curve's figure and its fall; None when nothing was logged."""
    from pipeline.report.figures.curves import loss_figure

    found = loss_curves(run.metrics)
    if found is None:
        return None
    baselines: dict[str, float] = {}
    measured = (run.reconstruction or {}).get("splits", {}).get(run.settings.data.split)
    if measured and _has_baselines(run):
        baselines = {"bands' means": measured["band_mean"]["total"], "shuffled": measured["shuffled"]["total"]}
    interruptions = _interruptions(run.events)
    return {
        "figure": loss_figure(found.steps, found.curves, baselines, interruptions),
        "fall": loss_fall(found.curves[TOTAL]),
        "steps": found.steps[-1],
        "resumes": len(interruptions),
        "not_finite": found.not_finite,
        "has_baselines": bool(baselines),
    }


def _has_baselines(run: RunFiles) -> bool:
    """Whether the baselines are of what the curve is of.

    The curve is that of all data sets of a mixture, or of both views of a cross-scale model; baselines are of less, or
    of another data set that the run was evaluated on.
    """
    settings = run.settings
    if settings.data.mixture or settings.model.get("cross_scale"):
        return False
    return bool((run.reconstruction or {}).get("data_url", settings.data.url) == settings.data.url)


def _interruptions(events: list[dict[str, Any]]) -> list[tuple[str, int | None, int]]:
    """For each resume how the attempt before ended, the last step known of it, and the step resumed from."""
    found: list[tuple[str, int | None, int]] = []
    how, ended = "", None
    for event in events:
        if event["event"] in _ENDS and event["time"]:
            how, ended = _ENDS[event["event"]], event["step"]
        elif event["event"] == "resume":
            found.append((how, ended, event.get("from_step", event["step"])))
            how, ended = "", None
    return found
