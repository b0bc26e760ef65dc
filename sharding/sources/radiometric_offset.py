"""Whether the numbers of a Sentinel-2 tile carry the +1000 of processing baseline 04.00, read off the pixels.

Since 2022-01-25 ESA stores reflectance * 10000 + 1000. Archives that do not say so mix both kinds: in TerraMesh level
1C and 2A of one tile may differ. The date of acquisition proves nothing, since ESA has processed older scenes again
with the offset, and publishers have added or taken off 1000 on their own. What pixels do prove:

- No reflectance is far below zero. Numbers well below 1000 in a whole part of the tile show that it has no offset.
- In B10 (1.38 um) water vapour swallows the ground: level 1C is within 0.01 of zero wherever there is no cirrus, so
  that numbers which hardly vary and lie just above 1000 show the offset. Cirrus as bright as that varies.
- Level 2A is level 1C without the atmosphere, which in B11 and B12 is nearly a straight line through zero. Where the
  line crosses zero reflectance of level 1C, level 2A stands at its own offset.

Whatever is neither way is not guessed at.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Planes = Mapping[str, npt.NDArray[Any]]
"""Digital numbers by band, integers; 0 is nodata."""

OFFSET: Final = -1000.0
"""Added to the stored numbers of baseline 04.00 and later, before they are divided by 10000."""

_DARK_SHARE: Final = 10
"""Per cent of the pixels that must be as dark: fewer may be defects or the blurred edge of nodata."""
_DARK_L1C: Final = {"B10": 900.0, "B11": 900.0, "B12": 900.0}
"""With the offset a reflectance of -0.01 at the top of the atmosphere, which does not occur."""
_DARK_L2A: Final = {"B04": 300.0, "B11": 500.0, "B12": 500.0}
"""With the offset a reflectance of -0.07 and -0.05: level 2A goes below zero where it corrects too much, but not so
far, and least in these bands. They are the darkest over plants, shade and water."""
_CLEAR: Final = (980.0, 1120.0)
"""B10 without cirrus, with the offset; five real tiles have 1005 to 1060 in their first quarter."""
_CLEAR_SPREAD: Final = 40.0
"""Between 1 % and 25 % of B10; 3 to 18 in the five real tiles."""
_LINE_BANDS: Final = ("B11", "B12")
_SLOPES: Final = (0.8, 2.0)
"""Of level 2A over level 1C, in B11 and B12: 1.05 to 1.21 in real tiles, more on slopes that face away from the sun."""
_NEAR: Final = 300.0
"""How far from 0 or 1000 the line may cross; -98 to 117 in real tiles."""
_FEWEST: Final = 1000
"""Pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the pixels prove, and by what."""

    offset: float | None
    """-1000 or 0, to be added to the stored numbers; None when neither is proven."""
    evidence: str


def judge_l1c(planes: Planes) -> Verdict:
    """Of level 1C, by B10, B11 and B12."""
    cirrus = _measured(planes["B10"])
    if cirrus.size < _FEWEST:
        return Verdict(offset=None, evidence=f"B10 has only {cirrus.size} measured pixels")
    low, quarter, median = (float(value) for value in np.percentile(cirrus, (1, 25, 50)))
    evidence = f"B10 median {median:.0f}, first quarter {low:.0f} to {quarter:.0f}"
    if _CLEAR[0] <= low and quarter <= _CLEAR[1] and quarter - low <= _CLEAR_SPREAD:
        return Verdict(offset=OFFSET, evidence=evidence)
    if dark := _darkness(planes, _DARK_L1C):
        return Verdict(offset=0.0, evidence=evidence if dark.startswith("B10") else dark)
    return Verdict(offset=None, evidence=evidence)


def judge_l2a(planes: Planes) -> Verdict:
    """Of level 2A on its own, by B04, B11 and B12: dark pixels prove that it has no offset, nothing the opposite."""
    if dark := _darkness(planes, _DARK_L2A):
        return Verdict(offset=0.0, evidence=dark)
    limits = ", ".join(f"{limit:.0f} in {band}" for band, limit in _DARK_L2A.items())
    return Verdict(offset=None, evidence=f"no band has {_DARK_SHARE} % of its pixels below {limits}")


def judge_l2a_beside(planes: Planes, l1c: Planes) -> Verdict:
    """Of level 2A, by the line of B11 and B12 over those of level 1C of the same tile."""
    base = judge_l1c(l1c)
    if base.offset is None:
        return Verdict(offset=None, evidence=f"L1C unclear: {base.evidence}")
    crossings = {band: _crossing(l1c[band], planes[band], base.offset) for band in _LINE_BANDS}
    lines = "; ".join(
        f"{band} at {low:.0f} to {high:.0f} where L1C has no reflectance" if low <= high else f"{band} on no line"
        for band, (low, high) in crossings.items()
    )
    evidence = f"{lines}; L1C {'with' if base.offset else 'without'} the offset ({base.evidence})"
    proven = {offset for low, high in crossings.values() if (offset := _offset_at(low, high)) is not None}
    return Verdict(offset=proven.pop() if len(proven) == 1 else None, evidence=evidence)


def _measured(plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return plane[plane > 0]


def _darkness(planes: Planes, limits: dict[str, float]) -> str:
    """The band that is darker than the offset allows, in words; empty when there is none."""
    for band, limit in limits.items():
        measured = _measured(planes[band])
        if measured.size >= _FEWEST and (dark := float(np.percentile(measured, _DARK_SHARE))) < limit:
            return f"{band} has {_DARK_SHARE} % of its pixels at {dark:.0f} or below"
    return ""


def _crossing(l1c: npt.NDArray[Any], l2a: npt.NDArray[Any], offset: float) -> tuple[float, float]:
    """Between what level 2A lies where level 1C has no reflectance; (inf, -inf) when no sensible line fits.

    The line through noise on both axes lies between the regressions of one on the other, so both bound the slope, and
    so does physics: a dark tile needs no slope at all, a bright one needs a good fit.
    """
    both = (l1c > 0) & (l2a > 0)
    count = int(np.count_nonzero(both))
    if count < _FEWEST:
        return np.inf, -np.inf
    # In whole numbers, so that every machine finds the same to the last digit.
    x, y = l1c[both].astype(np.int64), l2a[both].astype(np.int64)
    sum_x, sum_y = int(x.sum()), int(y.sum())
    xx, xy, yy = (
        count * int((a * b).sum()) - sum_a * sum_b
        for a, b, sum_a, sum_b in ((x, x, sum_x, sum_x), (x, y, sum_x, sum_y), (y, y, sum_y, sum_y))
    )
    low, high = _SLOPES
    if xy > 0:
        low, high = max(low, xy / xx), min(high, yy / xy)
    if low > high:
        return np.inf, -np.inf
    mean_x, mean_y = sum_x / count + offset, sum_y / count
    first, second = mean_y - high * mean_x, mean_y - low * mean_x
    return min(first, second), max(first, second)


def _offset_at(low: float, high: float) -> float | None:
    for offset in (0.0, OFFSET):
        if -offset - _NEAR <= low <= high <= -offset + _NEAR:
            return offset
    return None
