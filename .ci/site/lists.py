"""Lists as GitHub reads them, for a reader of Markdown that wants four spaces and an empty line before."""

import re

_ITEM = re.compile(r"([-*]|\d+\.) ")
_FENCE = re.compile(r"(```|~~~)")


def with_wide_lists(markdown: str) -> str:
    """The text with what belongs to an item four spaces in for each two, and an empty line before each list."""
    lines: list[str] = []
    is_in_list, fence, shift = False, "", 0
    for line in markdown.split("\n"):
        text = line.lstrip(" ")
        indent = len(line) - len(text)
        is_item = not indent and not fence and bool(_ITEM.match(text))
        if is_item and not is_in_list and lines and lines[-1].strip():
            lines.append("")
        if text and not indent and not fence:
            is_in_list = is_item
        if not fence:  # what is in one is moved as a whole
            shift = 4 * ((indent + 1) // 2) - indent if is_in_list else 0
        if opened := _FENCE.match(text):
            fence = "" if fence == opened[1] else fence or opened[1]
        lines.append(" " * (shift if text else 0) + line)
    return "\n".join(lines)
