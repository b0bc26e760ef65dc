"""The online probe's scores over the steps of a run."""

import math
from pathlib import Path
from typing import Any, Final

from pipeline.report.appended import read_appended

_TITLES: Final = {"knn": "kNN", "ridge": "ridge"}
_MEANS: Final = ("macro", "micro")
Points = tuple[list[int], list[float]]
"""Steps, and the scores there."""


def probe_curves(run_dir: Path) -> dict[str, dict[str, Points]]:
    """Mean average precision by macro and micro, and by probe; empty when the run was not probed."""
    # A step that was done again after a kill was probed again: the last time counts.
    lines = {line["step"]: line for line in _lines(run_dir)}
    curves: dict[str, dict[str, Points]] = {}
    for mean in _MEANS:
        ending = f"_map_{mean}"
        for key in dict.fromkeys(key for line in lines.values() for key in line if key.endswith(ending)):
            found = [(step, value) for step in sorted(lines) if _is_score(value := lines[step].get(key))]
            name = key.removesuffix(ending)
            if found:
                steps, values = zip(*found, strict=True)
                curves.setdefault(mean, {})[_TITLES.get(name, name)] = (list(steps), list(values))
    return curves


def describe_probe(run_dir: Path) -> dict[str, Any] | None:
    """The figure of a run's probe and its last scores; None when the run was not probed."""
    from pipeline.report.figures.panels import panels_figure

    curves = probe_curves(run_dir)
    if not curves:
        return None
    panels = {f"{mean} mAP": of_mean for mean, of_mean in curves.items()}
    probes = list(dict.fromkeys(probe for of_mean in curves.values() for probe in of_mean))
    return {"figure": panels_figure("probe", panels, "optimiser step", probes), "last": last_probe(run_dir)}


def last_probe(run_dir: Path) -> dict[str, Any] | None:
    """What the last probe said; None when the run was not probed."""
    return next(reversed(_lines(run_dir)), None)


def _lines(run_dir: Path) -> list[dict[str, Any]]:
    return read_appended(run_dir / "probe.jsonl", ("step",)).lines


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
