"""A paper's table, run: for each row with a run or a file of weights, our figures beside the published."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

from pipeline.baselines.registry import NAMES, PREFIX
from pipeline.command import run_command
from pipeline.errors import ConfigError
from pipeline.evaluate import evaluate
from pipeline.evaluation.registry import EVALUATIONS
from pipeline.evaluation.settings import known_keys

FOLDER: Final = Path(__file__).resolve().parent.parent / "configs" / "paper"
_FORBID: Final[dict[str, Any]] = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True)
class RowSpec:
    """One model of the table."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    title: str
    """As the paper calls it."""
    baseline: str = ""
    """The baseline that reads its file of weights; empty: it is a run of ours."""


@dataclass(frozen=True, kw_only=True)
class PartSpec:
    """One protocol of the table."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    title: str
    evaluation: str
    """Of `pipeline.evaluate`."""
    settings: tuple[str, ...]
    """Its `key.sub=value`, by which it is the paper's."""
    published: dict[str, dict[str, float | tuple[float, ...]]]
    """By row, then by input: the figure, or one for each of the table's figures."""


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """A table of a paper, as `configs/paper/*.yaml` has it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    title: str
    figures: tuple[str, ...]
    """Names of the figures of an evaluation's results."""
    parts: tuple[PartSpec, ...]
    rows: dict[str, RowSpec]
    differences: tuple[str, ...] = ()
    """What the paper leaves open or does otherwise."""
    scale: float = 1.0
    """What our figures are multiplied by to be in the paper's unit."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One model, one input."""

    row: str
    input: str
    published: tuple[float, ...] | None
    """None: the paper has no such line."""
    ours: dict[str, float | None] = field(default_factory=dict)
    """By figure; empty: not run."""
    num_train: int | None = None
    """Samples of the training split that have labels and all sensors."""
    num_test: int | None = None


@dataclass(frozen=True, kw_only=True)
class Part:
    """A protocol and what came of it."""

    title: str
    command: str
    problem: str
    """Why nothing could be run; empty: it could."""
    lines: tuple[Line, ...]


def read_table(name: str) -> TableSpec:
    """`table1`, `table2`, or the YAML file of that path; ConfigError when it cannot be read."""
    import yaml
    from pydantic import TypeAdapter, ValidationError

    path = Path(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml"
    try:
        return TypeAdapter(TableSpec).validate_python(yaml.safe_load(path.read_text()))
    except OSError as error:
        known = ", ".join(sorted(found.stem for found in FOLDER.glob("*.yaml"))) or "none"
        raise ConfigError(f"there is no table {path}; known are {known}, or give a .yaml file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{path}: key '{'.'.join(map(str, first['loc']))}': {first['msg']}") from error


def parse_runs(table: TableSpec, given: Sequence[str]) -> dict[str, str]:
    """By row, its run folder, checkpoint, file of weights or `baseline:NAME`, of `name=...` arguments.

    A name that is no row of the table is one more row. ConfigError for what names nothing, or one name twice.
    """
    runs: dict[str, str] = {}
    for argument in given:
        name, equals, path = argument.partition("=")
        if not (equals and name and path):
            raise ConfigError(f"--runs {argument}: write name=RUN_DIR, such as {next(iter(table.rows))}=runs/first")
        if "." in name:
            raise ConfigError(f"{argument} is no row of --runs; write settings of evaluations before --runs")
        if name in runs:
            raise ConfigError(f"--runs names '{name}' twice")
        runs[name] = path
    return runs


def run_table(table: TableSpec, runs: Mapping[str, str], overrides: Sequence[str]) -> list[Part]:
    """Evaluate each given row under each protocol; `overrides` are of every evaluation and win over the protocol's."""
    return [_run_part(table, part, runs, overrides) for part in table.parts]


def _run_part(table: TableSpec, part: PartSpec, runs: Mapping[str, str], overrides: Sequence[str]) -> Part:
    problem = _problem(part)
    lines: list[Line] = []
    for row in dict.fromkeys((*table.rows, *runs)):
        published = {name: _numbers(value) for name, value in part.published.get(row, {}).items()}
        if problem or row not in runs:
            lines += [Line(row=row, input=name, published=numbers) for name, numbers in published.items()]
            continue
        result, _ = evaluate(part.evaluation, *_command(table, row, runs[row], [*part.settings, *overrides]))
        lines += _lines(table, row, published, result)
    return Part(
        title=part.title, command=" ".join((part.evaluation, *part.settings)), problem=problem, lines=tuple(lines)
    )


def _problem(part: PartSpec) -> str:
    if part.evaluation not in EVALUATIONS:
        return f"pipeline.evaluate knows no '{part.evaluation}'; it has {', '.join(EVALUATIONS)}"
    unknown = [setting for setting in part.settings if setting.partition("=")[0] not in known_keys()]
    return f"pipeline.evaluate {part.evaluation} does not know {', '.join(unknown)}" if unknown else ""


def _command(table: TableSpec, row: str, path: str, settings: list[str]) -> tuple[str, list[str]]:
    """What is evaluated, and with which settings."""
    spec = table.rows.get(row)
    if path.startswith(PREFIX) or spec is None or not spec.baseline or Path(path).is_dir():
        return path, settings
    assert spec.baseline in NAMES, spec.baseline
    return f"{PREFIX}{spec.baseline}", [f"baseline.weights={path}", *settings]


def _lines(
    table: TableSpec, row: str, published: Mapping[str, tuple[float, ...]], result: Mapping[str, Any]
) -> list[Line]:
    inputs = {found["modalities"]: found["encoder"] for found in result["results"]}
    lines = [Line(row=row, input=name, published=numbers) for name, numbers in published.items() if name not in inputs]
    for name, figures in inputs.items():
        ours = {key: None if figures.get(key) is None else figures[key] * table.scale for key in table.figures}
        splits = result["splits"]
        lines.append(
            Line(
                row=row,
                input=name,
                published=published.get(name),
                ours=ours,
                num_train=splits["train"]["samples"],
                num_test=splits["test"]["samples"],
            )
        )
    return lines


def _numbers(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)


def as_text(table: TableSpec, parts: Sequence[Part]) -> list[str]:
    """The table for the terminal."""
    text = [table.title]
    for part in parts:
        text += ["", f"{part.title}: {part.command}"]
        if part.problem:
            text.append(f"not run: {part.problem}")
        text.append(
            f"{'row':<16} {'input':<11} {'published':>26} | {'ours: ' + ' '.join(table.figures):<36} | train, test"
        )
        for line in part.lines:
            spec = table.rows.get(line.row)
            published = " ".join(f"{number:.1f}" for number in line.published or ()) or "-"
            ours = " ".join("-" if value is None else f"{value:.1f}" for value in line.ours.values()) or "not run"
            counts = "" if line.num_test is None else f"{line.num_train}, {line.num_test}"
            title = spec.title if spec else line.row
            text.append(f"{title:<16} {line.input:<11} {published:>26} | {ours:<36} | {counts}".rstrip(" |"))
    text += ["", "what differs or is not known:", *(f"- {difference}" for difference in table.differences)]
    return text


def as_dict(table: TableSpec, parts: Sequence[Part]) -> dict[str, Any]:
    """The table as JSON has it."""
    from pipeline.config import to_dict

    return {
        "title": table.title,
        "figures": list(table.figures),
        "parts": [to_dict(part) for part in parts],
        "differences": list(table.differences),
    }


def main(argv: list[str] | None = None) -> int:
    """Run a table of the paper on your data, and print the published figures beside ours.

    A row is run by a run folder or checkpoint, by the published file of weights where the row is someone else's model,
    or by baseline:NAME. Rows without one are printed as not run. Each evaluation leaves its result where
    `pipeline.evaluate` does.
    """
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.paper", description=main.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", help="table1, table2, or a .yaml file such as those in configs/paper")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="of every evaluation, such as device=cpu")
    parser.add_argument("--runs", nargs="+", default=[], metavar="NAME=PATH", help="what stands for the row NAME")
    parser.add_argument("--data", metavar="URL", help="the data set; without, each run's own")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_intermixed_args(sys.argv[1:] if argv is None else argv)
    table = read_table(arguments.table)
    overrides = [*arguments.overrides, *([f"data.url={arguments.data}"] if arguments.data else [])]
    parts = run_table(table, parse_runs(table, arguments.runs), overrides)
    print(json.dumps(as_dict(table, parts), indent=1) if arguments.json else "\n".join(as_text(table, parts)))
    return 0


if __name__ == "__main__":
    run_command(main)
