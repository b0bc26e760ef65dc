"""What happened in a run, in order of time."""

from collections import Counter
from pathlib import Path
from typing import Any, Final

from pipeline.report.appended import read_appended

BEGINNINGS: Final = ("start", "resume")
ENDINGS: Final = ("stop", "done", "kill", "hang", "oom", "out_of_memory")
"""Events behind which an attempt does not go on, as a rule."""


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """The run's events in order of time; those that several ranks report, once.

    What differs between the ranks is put together: `keys` of samples joined, `total` added up. An attempt that was
    followed by another without saying how it ended gets a `lost` event, unless a `kill` is on record; its time and step
    are those of the last line that rank 0 wrote of its time, where it did.
    """
    events: dict[tuple[str, int, int], dict[str, Any]] = {}
    for path in sorted(run_dir.glob("events-*.jsonl")):
        # A step that is done again can have the same event again: the second of one rank is the second of another.
        times: Counter[tuple[str, int]] = Counter()
        for event in read_appended(path, ("time", "event", "step")).lines:
            times[event["event"], event["step"]] += 1
            which = event["event"], event["step"], times[event["event"], event["step"]]
            events[which] = _joined(events[which], event) if which in events else event
    ordered = sorted(events.values(), key=lambda event: str(event["time"]))
    timed = read_appended(run_dir / "time-rank00000.jsonl", ("time", "attempt", "step")).lines
    told: list[dict[str, Any]] = []
    running = False
    for event in ordered:
        if event["event"] in BEGINNINGS:
            if running:
                told.append(_lost(told, event, timed))
            running = True
        elif event["event"] in ENDINGS:
            running = False
        elif event["event"] == "checkpoint":
            running = True  # a hang or want of memory need not be the end
        told.append(event)
    return told


def _lost(told: list[dict[str, Any]], begun: dict[str, Any], timed: list[dict[str, Any]]) -> dict[str, Any]:
    """The end of the attempt before `begun`, as far as it is known."""
    # The new attempt's own first line can be older than its event.
    own = next((line["attempt"] for line in timed if line["time"] >= begun["time"]), None)
    before = [line for line in timed if line["time"] < begun["time"] and line["attempt"] != own]
    if not before:
        return {"event": "lost", "time": "", "step": max(event["step"] for event in told)}
    return {"event": "lost", "time": before[-1]["time"], "step": before[-1]["step"]}


def _joined(first: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    joined = dict(first)
    if isinstance(first.get("keys"), list) and isinstance(other.get("keys"), list):
        joined["keys"] = list(dict.fromkeys([*first["keys"], *other["keys"]]))
    if isinstance(first.get("total"), int) and isinstance(other.get("total"), int):
        joined["total"] = first["total"] + other["total"]
    return joined
