"""Markdown tables of texts that were not written as Markdown."""

import html
import re

_MEANT_BY_MARKDOWN = "\\|*_`[]{}#~^"


def plain(text: str) -> str:
    """The text as it is, whatever signs are in it."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"&#{ord(sign)};" if sign in _MEANT_BY_MARKDOWN and sign != "#" else sign for sign in escaped)


def code(text: str) -> str:
    """The text as code."""
    return f"<code>{plain(text)}</code>"


def prose(text: str) -> str:
    """The text with what stands in backticks as code."""
    parts = re.split(r"`([^`]+)`", text)
    return "".join(code(part) if number % 2 else plain_words(part) for number, part in enumerate(parts))


def plain_words(text: str) -> str:
    """As `plain`, with the spaces at both ends kept, one each."""
    before, after = (" " if text[:1].isspace() else ""), (" " if text[-1:].isspace() else "")
    inner = plain(text)
    return f"{before}{inner}{after}" if inner else before


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a table whose cells are Markdown already."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
