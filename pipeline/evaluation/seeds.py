"""Figures of several seeds: their mean, their spread, and each."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import ConfigError


def over_seeds(figures: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Mean figures under their own names; `spread` with min, max and the sample's std; `seeds` with each seed's.

    Dictionaries of figures (`per_class`) are averaged by name; a figure that some seed lacks is None.
    """
    first = next(iter(figures.values()))
    mean: dict[str, Any] = {}
    for key, value in first.items():
        if isinstance(value, Mapping):
            mean[key] = {name: _mean([own[key][name] for own in figures.values()]) for name in value}
        else:
            mean[key] = _mean([own[key] for own in figures.values()])
    plain = [key for key, value in first.items() if not isinstance(value, Mapping)]
    values = {key: [own[key] for own in figures.values()] for key in plain}
    mean["spread"] = {
        key: {"min": min(own), "max": max(own), "std": statistics.stdev(own) if len(own) > 1 else 0.0}
        for key, own in values.items()
        if None not in own
    }
    mean["seeds"] = [{"seed": seed} | {key: own[key] for key in plain} for seed, own in figures.items()]
    return mean


def _mean(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if len(there) == len(values) else None


def check_seeds(name: str, seeds: Sequence[int]) -> None:
    """ConfigError unless there is a seed, none twice, and each is one."""
    if not seeds or len(set(seeds)) < len(seeds) or any(not 0 <= seed < 1 << 63 for seed in seeds):
        raise ConfigError(f"{name} = {list(seeds)} must be different numbers, each at least 0, such as [0,1,2]")
