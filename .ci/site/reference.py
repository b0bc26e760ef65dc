"""The reference pages of the documentation, made from the code: a page for each command, and the keys of the settings.

    .venv/bin/python .ci/site/reference.py        # {path of a page: Markdown} as JSON on stdout

Commands are run up to the moment in which they would read their arguments, so a page shows the very parser that answers
`--help`. Settings are read from the dataclasses, with the docstring line under each field. `.ci/site/hooks.py` puts the
pages into the site; nothing of it is committed.
"""

import argparse
import contextlib
import io
import json
import os
import runpy
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from settings_tables import settings_pages  # noqa: E402 (beside this file, which is no package)
from tables import code, prose, table  # noqa: E402

PACKAGES = ("sharding", "pipeline", "slurm", "benchmarks", "tests/cluster/slurmlab")
_STARTED_BY_OTHERS = {
    "slurm.snapshot": "Started by `slurm.submit` and `slurm/pretrain.sh`, not by you.",
    "slurm.task": "Started by `srun` in the batch script, not by you.",
}


class _Parsing(BaseException):
    """Raised by a command where it would parse its arguments; no error handler of ours catches it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


class _Ended(BaseException):
    """Raised in place of `os._exit`."""


def commands() -> list[str]:
    """Every module that `python -m` runs as a command with arguments, by name."""
    found = set()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            text = path.read_text()
            is_program = path.name == "__main__.py" or 'if __name__ == "__main__"' in text
            # Of the benchmarks, the processes that they start run without a parser.
            if is_program and (package != "benchmarks" or "ArgumentParser(" in text):
                parts = path.relative_to(ROOT).with_suffix("").parts
                found.add(".".join(parts[:-1] if parts[-1] == "__main__" else parts))
    return sorted(found)


@contextlib.contextmanager
def _intercepted(module: str) -> Iterator[None]:
    """Parsers raise instead of parsing, processes do not end, and the command line is `module --help`."""

    def stop(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise _Parsing(parser)

    def end(_: int) -> None:
        raise _Ended

    names = ("parse_args", "parse_known_args", "parse_intermixed_args", "parse_known_intermixed_args")
    before = {name: getattr(argparse.ArgumentParser, name) for name in names}
    argv, leave = sys.argv, os._exit
    for name in names:
        setattr(argparse.ArgumentParser, name, stop)
    sys.argv, os._exit = [module, "--help"], end  # type: ignore[assignment]
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(argparse.ArgumentParser, name, method)
        sys.argv, os._exit = argv, leave


def parser_of(module: str) -> argparse.ArgumentParser | str:
    """The parser of `python -m module`, or what it prints for `--help` where it has none."""
    printed = io.StringIO()
    with _intercepted(module), contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # runpy, of a module that was imported before
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except _Parsing as parsing:
            return parsing.parser
        except (_Ended, SystemExit):
            pass
    return printed.getvalue()


def command_page(module: str) -> str:
    """The page of a command."""
    parser = parser_of(module)
    lines = [f"# {module}", "", *_lines_if(_STARTED_BY_OTHERS.get(module, ""))]
    if isinstance(parser, str):
        return "\n".join([*lines, "```text", parser.strip(), "```", ""])
    return "\n".join(lines + _described(parser, level=2))


def _described(parser: argparse.ArgumentParser, level: int) -> list[str]:
    lines = _lines_if(prose(parser.description or ""))
    lines += ["```text", parser.format_usage().strip(), "```", ""]
    nested: list[tuple[str, argparse.ArgumentParser]] = []
    for group in parser._action_groups:
        rows = []
        for action in group._group_actions:
            if isinstance(action, argparse._SubParsersAction):
                nested += action.choices.items()
            elif action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction):
                rows.append([_invocation(parser, action), _meaning(parser, action)])
        if rows:
            title = {"positional arguments": "Arguments", "options": "Options"}.get(group.title or "", group.title)
            lines += [f"{'#' * level} {str(title).capitalize()}", "", *table(["", "what it does"], rows), ""]
    for name, of_command in nested:
        lines += [f"{'#' * level} {name}", "", *_described(of_command, level + 1)]
    if parser.epilog:
        # Written for a terminal, line by line: shown as it is.
        lines += [f"{'#' * level} More", "", "```text", (parser.epilog % {"prog": parser.prog}).strip(), "```", ""]
    return lines


def _invocation(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    formatter = parser._get_formatter()
    if action.option_strings:
        value = "" if action.nargs == 0 else formatter._format_args(action, (action.dest or "").upper())
        return code(" ".join([", ".join(action.option_strings), value]).strip())
    return code(formatter._format_args(action, str(action.metavar or action.dest)))


def _meaning(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = prose(parser._get_formatter()._expand_help(action)) if action.help else ""
    if action.choices is not None and action.metavar is not None:
        text += " " + ", ".join(code(str(choice)) for choice in action.choices)
    return ("**required.** " if action.required and action.option_strings else "") + text


def _lines_if(text: str) -> list[str]:
    return [text, ""] if text else []


def pages() -> dict[str, str]:
    """All pages of the reference by their path in the site."""
    os.environ["COLUMNS"] = "84"  # argparse folds usage lines by it
    modules = commands()
    made = {f"reference/{module}.md": command_page(module) for module in modules}
    made |= settings_pages()
    rows = [[f"[{code(f'python -m {module}')}]({module}.md)", prose(_summary(module))] for module in modules]
    made["reference/index.md"] = "\n".join(
        [
            "# Reference",
            "",
            "Made from the code, at each build of these pages: what `--help` answers, and the keys of a run.",
            "",
            "| keys | |",
            "|---|---|",
            "| [of a run](settings.md) | `data`, `train`, `optim`, `engine`, `checkpoint` and the others |",
            "| [of the model](model-settings.md) | what stands under `model` |",
            "| [of an evaluation](evaluation-settings.md) | `key.sub=value` of `pipeline.evaluate` |",
            "",
            *table(["command", "what it does"], rows),
            "",
        ]
    )
    return made


def _summary(module: str) -> str:
    parser = parser_of(module)
    said = parser if isinstance(parser, str) else parser.description or ""
    if module in _STARTED_BY_OTHERS:
        return _STARTED_BY_OTHERS[module]
    said = " ".join(said.split())
    # A module's docstring as a description begins with the command's own name.
    return said.split("`: ", 1)[-1].split(". ")[0].rstrip(".")


if __name__ == "__main__":
    json.dump(pages(), sys.stdout)
