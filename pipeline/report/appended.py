"""Reading files of JSON lines to which attempt after attempt appends, whatever a kill left in their middle."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Appended:
    """The whole lines of such a file."""

    lines: list[dict[str, Any]]
    broken: int
    """Lines that could not be read, as far as they went."""


def read_appended(path: Path, keys: Sequence[str]) -> Appended:
    """The lines that are objects with all of `keys`, the first of which begins each line; none without a file.

    Other than `pipeline.metrics.read_lines`, whose files are cut back on resuming, this goes on behind a line that was
    cut in half: the next attempt's first line stands on the same line, behind it, and is found there.
    """
    if not path.exists():
        return Appended(lines=[], broken=0)
    lines, broken = [], 0
    for text in path.read_text(errors="replace").split("\n"):
        if not text:
            continue
        line = _parsed(text, keys)
        if line is None:
            broken += 1
            line = _parsed(text[max(0, text.rfind(f'{{"{keys[0]}"')) :], keys)
        if line is not None:
            lines.append(line)
    return Appended(lines=lines, broken=broken)


def _parsed(text: str, keys: Sequence[str]) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and all(key in line for key in keys) else None
