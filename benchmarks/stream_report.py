"""What `benchmarks.stream` has measured, as one wide Markdown table or as the JSON of all benchmarks."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks.table import machine


@dataclass(kw_only=True)
class Entry:
    """A contender: by unit, its value in each round; without any, `note` says why."""

    name: str
    figures: dict[str, list[float]] = field(default_factory=dict)
    note: str = ""

    def add(self, unit: str, value: float) -> None:
        self.figures.setdefault(unit, []).append(value)

    def median(self, unit: str) -> float | None:
        values = self.figures.get(unit)
        return statistics.median(values) if values else None


def better(entries: Iterable[Entry], unit: str) -> Entry | None:
    """The entry with the highest median."""
    found = [entry for entry in entries if entry.median(unit) is not None]
    return max(found, key=lambda entry: entry.median(unit) or 0.0, default=None)


def ratio(over: float | None, under: float | None) -> float | None:
    return over / under if over is not None and under else None


def render_entries(
    entries: Sequence[Entry],
    units: Sequence[str],
    ratios: dict[str, float | None],
    as_json: bool,
    *,
    about: dict[str, str] | None = None,
) -> str:
    """`units` are the columns; the first one is shown with its spread."""
    known = {name: value for name, value in ratios.items() if value is not None}
    if as_json:
        rows = [row for entry in entries for row in _rows(entry, units)]
        return json.dumps({"machine": {**machine(), **(about or {})}, "rows": rows, "ratios": known}, indent=1)
    us = machine()
    facts = [f"{us['cpu']}, {us['cores']} cores, Python {us['python']}, load {us['load']}"]
    facts += [f"{name}: {value}" for name, value in (about or {}).items()]
    first, *others = units
    lines = [
        "; ".join(facts),
        "",
        f"| what | {first} | lowest to highest | " + "".join(f"{unit} | " for unit in others),
    ]
    lines[-1] = lines[-1].rstrip()
    lines.append("|---" * (3 + len(others)) + "|")
    for entry in entries:
        values = entry.figures.get(first)
        if not values:
            lines.append(f"| {entry.name} | {entry.note or 'not measured'} | |" + " |" * len(others))
            continue
        cells = [entry.name + (f" ({entry.note})" if entry.note else ""), shown(statistics.median(values))]
        cells.append(f"{shown(min(values))} to {shown(max(values))}")
        cells += ["" if (value := entry.median(unit)) is None else shown(value) for unit in others]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", ", ".join(f"{name}: {shown(value)}" for name, value in known.items())]
    return "\n".join(lines)


def shown(value: float) -> str:
    """Three digits at least, none too many."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 20 else f"{value:.2f}"


def _rows(entry: Entry, units: Sequence[str]) -> list[dict[str, object]]:
    note = {"note": entry.note} if entry.note else {}
    rows: list[dict[str, object]] = []
    for unit in units:
        values = entry.figures.get(unit)
        if values:
            figures = {"value": statistics.median(values), "unit": unit, "low": min(values), "high": max(values)}
            rows.append({"name": entry.name, **figures, **note})
    return rows or [{"name": entry.name, "value": None, "unit": units[0], "low": None, "high": None, **note}]
