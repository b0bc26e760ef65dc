"""Confidence intervals of average precision: the test samples are drawn anew, many times, and counted again.

Shape legend: R resamples, N test samples, C classes, J decisions in one ranking.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """The 95 % between the 2.5th and the 97.5th percentile of the resamples."""

    low: float
    high: float


class Resampled(NamedTuple):
    """Average precision of each resample, (R,)."""

    micro: Floats
    macro: Floats
    """Mean over the classes that have a positive in the resample."""


def draw_resamples(num_samples: int, num_resamples: int, seed: int) -> NDArray[np.int64]:
    """(R, N): how often each resample of N draws with replacement has each sample."""
    draws = np.random.default_rng(seed)
    return draws.multinomial(num_samples, np.full(num_samples, 1 / num_samples), size=num_resamples)


def resampled_precision(scores_NC: Floats, labels_NC: NDArray[np.bool_], counts_RN: NDArray[np.int64]) -> Resampled:
    """Micro and macro average precision of each resample, as `pipeline.scores.average_precision` has them."""
    num_classes = scores_NC.shape[1]
    micro = _precision(scores_NC.ravel(), labels_NC.ravel(), np.repeat(counts_RN, num_classes, axis=1))
    classes = [_precision(scores_NC[:, i], labels_NC[:, i], counts_RN) for i in range(num_classes)]
    per_class_RC = np.stack(classes, axis=1)
    num_defined = np.maximum(1, np.isfinite(per_class_RC).sum(axis=1))
    return Resampled(micro, np.nansum(per_class_RC, axis=1) / num_defined)


def interval(values_R: Floats) -> Interval:
    low, high = np.percentile(values_R, [2.5, 97.5])
    return Interval(float(low), float(high))


def mean_over(runs: Sequence[Resampled]) -> Resampled:
    """Of several seeds, resample by resample: what they share is the draw of the samples."""
    return Resampled(np.mean([run.micro for run in runs], axis=0), np.mean([run.macro for run in runs], axis=0))


def _precision(scores_J: Floats, labels_J: NDArray[np.bool_], counts_RJ: NDArray[np.int64]) -> Floats:
    """(R,): the mean, over positives, of the precision down to their score; NaN without positives."""
    order_J = np.argsort(-scores_J, kind="stable")
    # Decisions of equal score are one step of the ranking.
    ends = np.flatnonzero(np.append(np.diff(scores_J[order_J]) != 0, True))
    counts_RJ = counts_RJ[:, order_J]
    all_RT = np.cumsum(counts_RJ, axis=1)[:, ends]
    hits_RT = np.cumsum(counts_RJ * labels_J[order_J], axis=1)[:, ends]
    precision_RT = hits_RT / np.maximum(1, all_RT)
    gained_RT = np.diff(hits_RT, axis=1, prepend=0)
    positives_R = hits_RT[:, -1]
    with np.errstate(invalid="ignore"):
        found: Floats = (gained_RT * precision_RT).sum(axis=1) / positives_R
    return found
