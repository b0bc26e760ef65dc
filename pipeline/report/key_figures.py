"""The key figures of a run, for people who compare runs and for programs."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError
from pipeline.report.faults import faults
from pipeline.report.loss import TOTAL, loss_curves, loss_fall
from pipeline.report.probe_curve import last_probe
from pipeline.report.run_files import RunFiles
from pipeline.report.throughput import speed
from pipeline.report.wall_time import WallTime, account


def key_figures(run: RunFiles) -> dict[str, Any]:
    """The run's figures as plain JSON; what it did not record is null."""
    about = run.environment or {}
    curves = loss_curves(run.metrics)
    fall = loss_fall(curves.curves[TOTAL]) if curves else None
    median = speed(run.metrics)
    found = faults(run.events)
    return {
        "run": str(run.dir),
        "step": curves.steps[-1] if curves else 0,
        "steps": run.settings.train.steps,
        "global_batch": run.settings.train.global_batch,
        "loss": {"first": fall.first, "last": fall.last, "fall": fall.share} if fall else None,
        "samples_per_s": median.samples_per_s if median else None,
        "mfu": median.mfu if median else None,
        "waiting": median.waiting if median else None,
        "memory_gib": median.memory_gib if median else None,
        "parameters": about.get("parameters"),
        "device": about.get("device"),
        "world_size": about.get("world_size"),
        "settings_sha256": run.settings_hash,
        "data_fingerprint": run.fingerprint,
        "git": run.commit,
        "checkpoints": checkpoints(run.dir),
        "faults": {
            "all": len(found),
            "survived": sum(fault.survived for fault in found),
            "kinds": dict(Counter(fault.kind for fault in found)),
        },
        "probe": last_probe(run.dir),
        "wall_time": wall_time_as_json(account(run.dir)),
    }


def wall_time_as_json(time: WallTime) -> dict[str, Any] | None:
    """The whole account; None when the run did not record its time."""
    if not time.attempts:
        return None
    attempts = [
        asdict(attempt) | {"unattributed_s": attempt.unattributed_s, "overcounted_s": attempt.overcounted_s}
        for attempt in time.attempts
    ]
    return {
        "total_s": time.total_s,
        "parts": time.parts,
        "overcounted_s": time.overcounted_s,
        "attempts": attempts,
        "ranks": [asdict(rank) for rank in time.ranks],
        "slowest_rank": time.slowest.rank if time.slowest else None,
        "read_bytes": time.read_bytes,
        "read_bytes_per_s": time.read_bytes_per_s,
        "device": time.device,
        "skipped_steps": time.skipped,
        "clock_faults": time.clock_faults,
        "broken_lines": time.broken_lines,
    }


def checkpoints(run_dir: Path) -> list[dict[str, Any]]:
    """The committed checkpoints, oldest first: step, bytes, pinned; those without a readable manifest are left out."""
    from pipeline.checkpoint.files import num_bytes
    from pipeline.checkpoint.named import named

    found = []
    shelf = named(str(run_dir)).shelf
    for name in reversed(shelf.names()):
        try:
            manifest = shelf.manifest(name)
        except CheckpointError:
            continue
        found.append({"step": manifest["step"], "bytes": num_bytes(manifest), "pinned": shelf.is_pinned(name)})
    return found
