"""Baselines: other people's encoders, and floors, before the same data sets and evaluations as a run's own model."""

from pipeline.baselines.registry import NAMES, PREFIX, baseline_name

__all__ = ["NAMES", "PREFIX", "baseline_name"]
