"""What a study of variants found: figures with their intervals, and whether they differ from the reference's."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.bootstrap import Interval, Resampled, draw_resamples, interval, mean_over, resampled_precision
from benchmarks.table import machine

_SEED = 0
"""Of the resamples: the same for all figures, so that differences are of pairs."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """An average precision over the test split, the mean of the seeds'."""

    value: float
    interval: Interval
    """Of that mean, over resamples of the test samples."""
    lowest: float
    highest: float
    """Of the seeds."""
    difference: Interval | None
    """Of this minus the reference's in the same resamples; None for the reference itself and where it was not run."""

    @property
    def differs(self) -> bool | None:
        """Whether the interval of the difference excludes 0."""
        return None if self.difference is None else not self.difference.low <= 0 <= self.difference.high


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to read the features of one input of one variant."""

    given: str
    reader: str
    name: str
    micro: Figure
    macro: Figure


@dataclass(frozen=True, kw_only=True)
class Study:
    """Scores of the test samples, gathered run by run."""

    labels: NDArray[np.bool_]
    """(samples, classes) of the test split."""
    num_train: int
    about: dict[str, Any]
    reference: str
    num_resamples: int
    costs: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Parameters, and operations to train on one sample, by variant."""
    _scores: dict[tuple[str, str, str], list[NDArray[np.float64]]] = field(default_factory=dict)

    def add(self, name: str, given: str, reader: str, scores: NDArray[np.float64]) -> None:
        """Scores (samples, classes) of one more seed."""
        self._scores.setdefault((given, reader, name), []).append(scores)

    @cached_property
    def rows(self) -> list[Row]:
        """By input, reader and variant, in the order of coming; of what was added before the first look."""
        counts = draw_resamples(len(self.labels), self.num_resamples, _SEED)
        resampled = {
            key: mean_over([resampled_precision(scores, self.labels, counts) for scores in runs])
            for key, runs in self._scores.items()
        }
        whole = np.ones((1, len(self.labels)), dtype=np.int64)
        rows = []
        places = list(dict.fromkeys(key[:2] for key in self._scores))
        for key in sorted(self._scores, key=lambda key: places.index(key[:2])):
            given, reader, name = key
            seeds = [resampled_precision(scores, self.labels, whole) for scores in self._scores[key]]
            beside = None if name == self.reference else resampled.get((given, reader, self.reference))
            figures = {kind: _figure(kind, seeds, resampled[key], beside) for kind in Resampled._fields}
            rows.append(Row(given=given, reader=reader, name=name, **figures))
        return rows

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = []
        for row in self.rows:
            flat = asdict(row)
            for kind in Resampled._fields:
                flat[kind]["differs"] = getattr(row, kind).differs
            rows.append(flat)
        samples = {"train_samples": self.num_train, "test_samples": len(self.labels)}
        costs = {name: {"parameters": p, "train_flops_per_sample": f} for name, (p, f) in self.costs.items()}
        return {"about": self.about | samples, "costs": costs, "rows": rows}


def _figure(kind: str, seeds: Sequence[Resampled], resampled: Resampled, beside: Resampled | None) -> Figure:
    values = [float(getattr(seed, kind)[0]) for seed in seeds]
    drawn = getattr(resampled, kind)
    return Figure(
        value=float(np.mean(values)),
        interval=interval(drawn),
        lowest=min(values),
        highest=max(values),
        difference=None if beside is None else interval(drawn - getattr(beside, kind)),
    )


def as_markdown(study: Study) -> str:
    """The figures of each input and reader, then what each variant costs."""
    about, on = study.about, machine()
    lines = [
        f"{on['cpu']}, {on['cores']} cores, Python {on['python']}; {about['steps']} steps, seeds: {about['seeds']};"
        f" trained on {study.num_train} pairs, scored on {len(study.labels)}",
        "",
        "| input | read by | features | micro AP | 95 % | seeds | differs from no fusion | macro AP | 95 % | seeds "
        "| differs from no fusion |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in study.rows:
        cells = [row.given, row.reader, row.name]
        for figure in (row.micro, row.macro):
            cells += [
                f"{figure.value:.3f}",
                f"{figure.interval.low:.3f} to {figure.interval.high:.3f}",
                f"{figure.lowest:.3f} to {figure.highest:.3f}",
                _verdict(figure),
            ]
        lines.append(f"| {' | '.join(cells)} |")
    verdicts = [figure.differs for row in study.rows for figure in (row.micro, row.macro)]
    compared = [verdict for verdict in verdicts if verdict is not None]
    if compared:
        lines += [
            "",
            f"{sum(compared)} of {len(compared)} comparisons differ; if none truly did, about"
            f" {0.05 * len(compared):.0f} would by chance.",
        ]
    lines += ["", "| variant | parameters | MFLOP to train on a pair |", "|---|---|---|"]
    lines += [f"| {name} | {p:,} | {flops / 1e6:,.0f} |" for name, (p, flops) in study.costs.items()]
    return "\n".join(lines)


def _verdict(figure: Figure) -> str:
    if figure.difference is None:
        return ""
    low, high = figure.difference
    return f"{'yes' if figure.differs else 'no'} ({low:+.3f} to {high:+.3f})"
