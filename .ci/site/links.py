"""Links of Markdown files that are read on GitHub and in the site alike.

On GitHub a link is relative to the file that it stands in. The site holds docs/ and, under `repository/`, a page for
each other file that is linked to; `rewritten` turns a link of the first kind into one of the second.
"""

import posixpath
import re
from collections.abc import Callable, Iterable
from pathlib import Path

START = "index.md"
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_IS_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|#|//", re.IGNORECASE)
_FENCE = re.compile(r"\s*(```|~~~)")


def each_link(markdown: str, change: Callable[[str], str]) -> str:
    """The text with every link's target changed, but those in code."""
    lines, fence = [], ""
    for line in markdown.split("\n"):
        if opened := _FENCE.match(line):
            fence = "" if fence == opened[1] else fence or opened[1]
        elif not fence:
            parts = re.split(r"(`+[^`]*`+)", line)
            parts[::2] = [_LINK.sub(lambda m: m[1] + change(m[2]) + m[3], part) for part in parts[::2]]
            line = "".join(parts)
        lines.append(line)
    return "\n".join(lines)


def targets(markdown: str, path: str) -> list[str]:
    """Files of the repository that the Markdown file at `path` links to, by their path in it."""
    found: list[str] = []

    def note(target: str) -> str:
        if not _IS_ELSEWHERE.match(target):
            found.append(_resolved(target, path)[0])
        return target

    each_link(markdown, note)
    return found


def page_of(path: str) -> str:
    """The page of the site that shows a file of the repository."""
    if path == "docs/README.md":
        return START  # the table of contents in the folder's view on GitHub; the site has its navigation
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    name = path.lower().replace("/", "-")
    return f"repository/{name if name.endswith('.md') else name + '.md'}"


def rewritten(markdown: str, path: str) -> str:
    """The Markdown of the repository's file `path` with links between pages of the site."""
    folder = posixpath.dirname(page_of(path))

    def change(target: str) -> str:
        if _IS_ELSEWHERE.match(target):
            return target
        file, anchor = _resolved(target, path)
        return posixpath.relpath(page_of(file), folder or ".") + anchor

    return each_link(markdown, change)


def linked_outside(root: Path, starts: Iterable[str]) -> tuple[list[str], list[str]]:
    """Files outside docs/ that the Markdown files `starts` link to, and those that these link to, and so on.

    Returns them sorted, and what is wrong: a sentence for each link whose file is not there.
    """
    waiting, seen, wrong = list(starts), set[str](), []
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        if not path.endswith(".md"):
            continue
        for target in targets((root / path).read_text(), path):
            if not (root / target).is_file():
                wrong.append(f"{path} links to {target}, which is no file")
            elif target not in seen:
                waiting.append(target)
    return sorted(path for path in seen if not path.startswith("docs/")), sorted(wrong)


def _resolved(target: str, path: str) -> tuple[str, str]:
    """Path in the repository, and anchor with its sign."""
    file, sign, anchor = target.partition("#")
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), file)), sign + anchor
