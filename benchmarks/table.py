"""Rows of a benchmark, as a Markdown table or as JSON."""

import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Row:
    """The median of interleaved repetitions, and their spread."""

    name: str
    value: float
    unit: str
    low: float
    high: float


def machine() -> dict[str, str | int]:
    """What the figures were taken on."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def interleave(contenders: Mapping[str, Callable[[], float]], rounds: int, unit: str) -> list[Row]:
    """Run all contenders in turn, `rounds` times after one warm-up; each returns its rate."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            rate = run()
            if number:
                rates[name].append(rate)
    return [Row(name=name, value=statistics.median(r), unit=unit, low=min(r), high=max(r)) for name, r in rates.items()]


def render(rows: list[Row], ratios: dict[str, float], as_json: bool) -> str:
    """The result of a run."""
    if as_json:
        return json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows], "ratios": ratios}, indent=1)
    about = machine()
    lines = [f"{about['cpu']}, {about['cores']} cores, Python {about['python']}, load {about['load']}", ""]
    lines += ["| what | median | lowest to highest | unit |", "|---|---|---|---|"]
    lines += [f"| {r.name} | {r.value:,.0f} | {r.low:,.0f} to {r.high:,.0f} | {r.unit} |" for r in rows]
    lines += ["", ", ".join(f"{name}: {ratio:.2f}" for name, ratio in ratios.items())]
    return "\n".join(lines)


def write_section(path: Path, name: str, table: str) -> None:
    """Replace the text between the markers of `name` in a Markdown file."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = path.read_text()
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ConfigError(f"{path} has no section between '{begin}' and '{end}'")
    path.write_text(f"{before}{begin}\n{table}\n{end}{after}")
