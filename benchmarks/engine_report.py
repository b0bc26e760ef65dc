"""From what the parts of `benchmarks.engine` measured to rows and ratios."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from benchmarks.bootstrap import Interval, draw_resamples, interval
from benchmarks.engine_meter import is_on
from benchmarks.stream_report import shown
from benchmarks.table import Row, machine

_RESAMPLES = 4000
_PER_PAIR = 2


@dataclass(kw_only=True)
class Report:
    """Rows, ratios, and what they were taken on."""

    rows: list[Row] = field(default_factory=list)
    ratios: dict[str, float] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, values: Sequence[float], unit: str) -> float:
        """The median of `values` as a row."""
        middle = statistics.median(values)
        self.rows.append(Row(name=name, value=middle, unit=unit, low=min(values), high=max(values)))
        return middle

    def render(self, as_json: bool) -> str:
        about = machine() | self.about
        if as_json:
            return json.dumps(
                {"machine": about, "rows": [asdict(r) for r in self.rows], "ratios": self.ratios}, indent=1
            )
        facts = [
            f"{about.pop('cpu')}, {about.pop('cores')} cores, Python {about.pop('python')}, load {about.pop('load')}"
        ]
        facts += [f"{name}: {value}" for name, value in about.items()]
        lines = ["; ".join(facts), "", "| what | median | lowest to highest | unit |", "|---|---|---|---|"]
        for r in self.rows:
            lines.append(f"| {r.name} | {shown(r.value)} | {shown(r.low)} to {shown(r.high)} | {r.unit} |")
        ratios = ", ".join(f"{name}: {value:.3g}" for name, value in self.ratios.items())
        return "\n".join([*lines, "", ratios])


def add_instruments(report: Report, measured: Mapping[str, Any], empty: str) -> None:
    """Of `engine_instruments`: each instrument's processor time a step, and blocks with and without."""
    steps, size = measured["steps"], measured["block"]
    with_s = [wall / 1e9 for block, wall, _ in steps if is_on(block)]
    without_s = [wall / 1e9 for block, wall, _ in steps if not is_on(block)]
    report.add("a step with all instruments", [1000 * s for s in with_s], "ms")
    report.add("a step without", [1000 * s for s in without_s], "ms")
    num_blocks = min(len(blocks) for blocks in measured["calls"].values())
    total, total_wall = np.zeros(num_blocks), np.zeros(num_blocks)
    for name, blocks in sorted(measured["calls"].items()):
        cpu_us = [cpu / 1000 / size for cpu, _ in blocks]
        report.add(f"CPU: {name}", cpu_us, "us a step")
        if name != empty:
            total += cpu_us[:num_blocks]
            total_wall += [wall / 1000 / size for _, wall in blocks[:num_blocks]]
    mean_step_us = 1e6 * statistics.fmean(with_s)
    report.add("CPU: all instruments and their threads", total.tolist(), "us a step")
    report.add("time in the calls of instruments, waits for the other rank too", total_wall.tolist(), "us a step")
    report.ratios["instruments_overhead"] = float(total.mean()) / mean_step_us
    for name, column in (("time", 1), ("CPU", 2)):
        overhead, bounds = paired_overhead([(step[0], step[column]) for step in steps])
        row = Row(
            name=f"blocks with instruments against without, {name} (95 % interval)",
            value=100 * overhead,
            unit="% more",
            low=100 * bounds.low,
            high=100 * bounds.high,
        )
        report.rows.append(row)
        report.ratios[f"instruments_overhead_blocks_{name.lower()}"] = overhead


def paired_overhead(steps: Sequence[tuple[int, float]], seed: int = 0) -> tuple[float, Interval]:
    """Of steps as (block, time): how much more those with instruments took, and the interval by resampled pairs.

    Neighbouring blocks, one with and one without, are a pair; a block's time is the mean of its steps.
    """
    blocks: dict[int, list[float]] = {}
    for block, taken in steps:
        blocks.setdefault(block, []).append(taken)
    firsts = [block for block in sorted(blocks) if block % _PER_PAIR == 0 and block + 1 in blocks]
    pairs = [[statistics.fmean(blocks[block]) for block in (first, first + 1)] for first in firsts]
    with_P = np.array([pair[0 if is_on(first) else 1] for first, pair in zip(firsts, pairs, strict=True)])
    without_P = np.array([pair[1 if is_on(first) else 0] for first, pair in zip(firsts, pairs, strict=True)])
    counts_RP = draw_resamples(len(pairs), _RESAMPLES, seed)
    return float(with_P.sum() / without_P.sum() - 1), interval((counts_RP @ with_P) / (counts_RP @ without_P) - 1)


def add_steps(report: Report, measured: Mapping[str, Sequence[Mapping[str, Any]]], twin: Mapping[str, str]) -> None:
    """Of `engine_steps`, by engine, the launches: one value a launch. `twin` names the DDP of each engine."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for name, launches in measured.items():
        for launch in launches:
            for model, taken in launch.items():
                for kind in ("wall_s", "cpu_s"):
                    values.setdefault((name, model, kind), []).append(1000 * statistics.median(taken[kind]))
    for (name, model, kind), medians in values.items():
        what = "step" if kind == "wall_s" else "CPU of a step, one rank"
        report.add(f"{name}, {model}: {what}", medians, "ms")
    for name, ddp in twin.items():
        label = name.lower().replace("zero ", "zero").replace(" ", "_")
        for model in dict.fromkeys(model for _, model, _ in values):
            ours = statistics.median(values[name, model, "wall_s"])
            theirs = statistics.median(values[ddp, model, "wall_s"])
            report.ratios[f"vs_ddp_{label}" + ("" if model == "model" else f"_{model}")] = ours / theirs


def add_saves(report: Report, measured: Mapping[str, Any], num_ranks: int) -> None:
    """Of `engine_saves`: seconds of each contender, and what they come to."""
    from benchmarks import engine_saves as saves

    seconds, sizes = measured["seconds"], measured["bytes"]
    where = f"{num_ranks} rank{'s' if num_ranks > 1 else ''}"
    middle = {name: report.add(f"{where}: {name}", values, "s") for name, values in seconds.items()}
    report.about["parameters"] = f"{sizes['parameters'] / 1e6:.0f} M"
    report.about[f"checkpoint, {where}"] = f"{sizes['ours'] / 1e6:,.0f} MB, DeepSpeed's {sizes['theirs'] / 1e6:,.0f} MB"
    end = f"_{num_ranks}_ranks" if num_ranks > 1 else ""
    stall = middle[saves.BACKGROUND]
    report.ratios |= {
        f"stall_vs_blocking{end}": stall / middle[saves.BLOCKING],
        f"stall_vs_deepspeed{end}": stall / middle[saves.THEIRS],
        f"stall_vs_copy{end}": stall / middle[saves.COPY],
        f"stall_and_loss_vs_blocking{end}": middle[saves.EXCESS] / middle[saves.BLOCKING],
        f"blocking_vs_deepspeed_synced{end}": middle[saves.BLOCKING] / middle[saves.THEIRS_SYNCED],
        f"blocking_vs_write{end}": middle[saves.BLOCKING] / middle[saves.WRITE],
        f"step_while_saving_vs_free{end}": middle[saves.BUSY_STEP] / middle[saves.FREE_STEP],
    }


def together(reports: Sequence[Report]) -> Report:
    """All parts as one."""
    whole = Report()
    for report in reports:
        whole.rows += report.rows
        whole.ratios |= report.ratios
        whole.about |= report.about
    return whole
