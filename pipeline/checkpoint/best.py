"""How good the model of each checkpoint was, by what its run has measured of itself."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pipeline.checkpoint.retention import Retention
from pipeline.settings import CheckpointSettings

_PROBES: Final = {"knn": "knn_map_macro", "ridge": "ridge_map_macro"}
"""Of the lines of probe.jsonl."""


def retention_of(settings: CheckpointSettings, run_dir: Path) -> Retention:
    """What the run in `run_dir` keeps by its settings."""
    return Retention(
        keep=settings.keep,
        keep_every=settings.keep_every,
        keep_best=settings.keep_best,
        scores=run_scores(settings, run_dir),
    )


def run_scores(settings: CheckpointSettings, run_dir: Path) -> "Scores":
    """The scores of a run's checkpoints by `checkpoint.best_by`."""
    if settings.best_by == "loss":
        return Scores(_Lines(run_dir / "metrics.jsonl", "loss"), settings.every, sign=-1)
    return Scores(_Lines(run_dir / "probe.jsonl", _PROBES[settings.best_by]), 1, sign=1)


class Scores:
    """Called, gives a score by step, higher is better: `sign` times the mean of the last `window` steps' figures."""

    def __init__(self, lines: "_Lines", window: int, sign: int) -> None:
        self._lines, self._window, self._sign = lines, window, sign

    def __call__(self) -> Mapping[int, float]:
        """The scores as the file has them now."""
        return _Means(self._lines.read(), self._window, self._sign)


@dataclass(frozen=True)
class _Means(Mapping[int, float]):
    """Computed for the steps that are asked for: a run has few checkpoints and many logged steps."""

    figures: dict[int, float]
    window: int
    sign: int

    def __getitem__(self, step: int) -> float:
        within = range(max(step - self.window, 0) + 1, step + 1)
        found = [self.figures[logged] for logged in within if logged in self.figures]
        if not found:
            raise KeyError(step)
        return self.sign * math.fsum(found) / len(found)

    def __iter__(self) -> Iterator[int]:
        return (step for step in self.figures)

    def __len__(self) -> int:
        return len(self.figures)


@dataclass
class _Lines:
    """A figure of a file of JSON lines that grows, or is written anew when a run goes back."""

    path: Path
    key: str
    _figures: dict[int, float] = field(default_factory=dict)
    _inode: int = -1
    _offset: int = 0

    def read(self) -> dict[int, float]:
        """All finite figures by step; only what is new is read."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return {}
        with file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._inode or status.st_size < self._offset:
                self._inode, self._offset, self._figures = status.st_ino, 0, {}
            file.seek(self._offset)
            for line in file:
                parsed = _parsed(line)
                if parsed is None:  # being written, or cut by a kill
                    break
                self._offset += len(line)
                figure = parsed.get(self.key)
                if figure is not None and math.isfinite(figure):
                    self._figures[parsed["step"]] = figure
        return self._figures


def _parsed(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        parsed: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return parsed
