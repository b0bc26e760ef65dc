"""What a run says of itself: metrics, events, and a trace of what was trained on what.

Every file is JSON lines. A step that is replayed after a kill is written once: on resuming, lines behind the
checkpoint's step are dropped, and with them a line that the kill cut in half.
"""

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import google_crc32c

from pipeline.trackers import Tracker


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, up to a last line that was cut by a kill; empty when there is no file."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().split("\n"):
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def drop_after(path: Path, step: int) -> None:
    """Keep only the lines up to `step`, atomically."""
    if path.exists():
        kept = [line for line in read_lines(path) if line["step"] <= step]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        partial.replace(path)


class LineWriter:
    """Appends objects to a JSON-lines file; each line reaches the file at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a", buffering=1)

    def write(self, line: dict[str, Any]) -> None:
        """Append one object."""
        self._file.write(json.dumps(line) + "\n")

    def go_back(self, step: int) -> None:
        """Drop the lines behind `step`, as `drop_after`."""
        self._file.close()
        drop_after(self._path, step)
        self._file = self._path.open("a", buffering=1)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def event_line(name: str, step: int, **details: Any) -> dict[str, Any]:
    """A line of events-rank*.jsonl."""
    return {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": name, "step": step} | details


class RunLog:
    """The files of one rank in the run folder; metrics and trackers are rank 0's."""

    def __init__(
        self, run_dir: Path, rank: int, resumed_step: int, trace: bool, trackers: Sequence[Tracker] = ()
    ) -> None:
        names = [f"trace-rank{rank:05d}.jsonl"] if trace else []
        if rank == 0:
            names.append("metrics.jsonl")
        for name in names:
            drop_after(run_dir / name, resumed_step)
        self._events = LineWriter(run_dir / f"events-rank{rank:05d}.jsonl")
        self._metrics = LineWriter(run_dir / "metrics.jsonl") if rank == 0 else None
        self._trace = LineWriter(run_dir / f"trace-rank{rank:05d}.jsonl") if trace else None
        self._trackers = trackers

    def event(self, name: str, step: int, **details: Any) -> None:
        """Something that happened once: start, resume, checkpoint, stop, done."""
        self._events.write(event_line(name, step, **details))

    def metrics(self, line: dict[str, Any]) -> None:
        """One logged step, on rank 0."""
        if self._metrics is not None:
            self._metrics.write(line)
        figures = {key: value for key, value in line.items() if key != "step" and value is not None}
        for tracker in self._trackers:
            tracker.log(line["step"], figures)

    def figures(self, step: int, figures: dict[str, float]) -> None:
        """Figures for the trackers alone, of a step that may have been logged before."""
        for tracker in self._trackers:
            tracker.log(step, figures)

    def pictures(self, step: int, path: Path) -> None:
        """Reconstructions that were stored, for the trackers that show pictures."""
        for tracker in self._trackers:
            tracker.pictures(step, path)

    def trace_step(self, step: int, batch: Any, outputs: list[Any]) -> None:
        """Exactly what this rank trained on: sample keys, a CRC-32C of the masks, the loss of each micro-batch.

        Waits for the device; nothing happens unless a trace was asked for.
        """
        if self._trace is None:
            return
        self._trace.write(
            {
                "step": step,
                "keys": batch.keys,
                "masks": [_digest(output.masks) for output in outputs],
                "loss": [float(output.loss).hex() for output in outputs],
            }
        )

    def go_back(self, step: int) -> None:
        """Drop what was written behind `step`, but the events; trackers keep theirs."""
        for writer in (self._metrics, self._trace):
            if writer is not None:
                writer.go_back(step)

    def close(self) -> None:
        """Flush and close everything."""
        for writer in (self._events, self._metrics, self._trace):
            if writer is not None:
                writer.close()
        for tracker in self._trackers:
            tracker.close()


def write_whole(path: Path, content: str) -> None:
    """Write a small file that appears whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _digest(masks: Any) -> str:
    """CRC-32C of which patches are hidden, as hex."""
    crc = 0
    for name in sorted(masks):
        crc = google_crc32c.extend(crc, name.encode() + masks[name].mask_BN.cpu().numpy().tobytes())
    return f"{crc:08x}"
