"""What mkdocs does besides: the reference from the code, pages of linked files, navigation, diagrams, a check.

`mkdocs.yml` names this file. Whatever is wrong is logged as a warning, which `mkdocs build --strict` fails on.
"""

import json
import logging
import posixpath
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))

from links import START, linked_outside, page_of, rewritten  # noqa: E402 (beside this file, which is no package)
from lists import with_wide_lists  # noqa: E402

LOG = logging.getLogger("mkdocs.hooks.site")
STYLE = "site.css"
# Pages by their place in the navigation; a folder, or what ends with a dot, stands for all that begin so. One that is
# not there is left out, one that no section names comes under the last title.
SECTIONS: dict[str, list[str]] = {
    "Start": [START, "architecture.md"],
    "Data": ["data-set.md", "sources.md", "broken-inputs.md", "stream.md"],
    "Training": ["training.md", "model.md", "cluster.md", "preflight.md", "faults.md", "report.md"],
    "Evaluation and use": ["evaluation.md", "baselines.md", "embed.md", "restore.md", "export.md"],
    "Reference": [
        "reference/index.md",
        *(f"reference/{name}settings.md" for name in ("", "model-", "evaluation-")),
        *(f"reference/{package}." for package in ("sharding", "pipeline", "slurm")),
        "reference/",
    ],
    "Measurements": ["results.md", "benchmarks.md"],
    "Design": ["design/README.md", "design/"],
    "Repository": ["repository/"],
}
_FURTHER = "Further pages"
_DIAGRAM = re.compile(r"!\[([^\]]*)\]\(((?:[\w./-]*/)?diagrams/[\w-]+\.svg)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made, and the navigation."""
    of_docs = sorted(f"docs/{file.src_uri}" for file in files.documentation_pages(inclusion=InclusionLevel.is_included))
    outside, wrong = linked_outside(ROOT, [*of_docs, "README.md"])
    for sentence in wrong:
        LOG.warning(sentence)
    made = _reference() | {page_of(path): _page_of_file(path) for path in outside}
    made[STYLE] = (Path(__file__).parent / STYLE).read_text()
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    pages = [file.src_uri for file in files.documentation_pages(inclusion=InclusionLevel.is_included)]
    config.nav = navigation(pages)
    return files


def navigation(pages: list[str]) -> list[dict[str, Any]]:
    """The pages in the order of SECTIONS, each once."""
    left = sorted(pages)
    found = []
    for title, names in (SECTIONS | {_FURTHER: [""]}).items():
        chosen: list[str] = []
        for name in names:
            stands_for_many = not name or name.endswith(("/", "."))
            of_name = [page for page in left if (page.startswith(name) if stands_for_many else page == name)]
            chosen += of_name
            left = [page for page in left if page not in of_name]
        if chosen:
            found.append({title: chosen})
    return found


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links between pages of the site, and diagrams as a part of the page, so that they follow its colours."""
    del config, files
    if page.file.generated_by:
        return markdown
    source = f"docs/{page.file.src_uri}"
    return rewritten(_with_diagrams(with_wide_lists(markdown), source), source)


def on_post_build(config: MkDocsConfig) -> None:
    """Warn of whatever a page would fetch from somewhere else."""
    for path in sorted(Path(config.site_dir).rglob("*.html")):
        finder = _Fetched()
        finder.feed(path.read_text())
        for url in finder.urls:
            LOG.warning(
                "%s fetches %s; the site must be whole without a network", path.relative_to(config.site_dir), url
            )


def _reference() -> dict[str, str]:
    """Made with the project's own Python, which has what the commands import."""
    python = ROOT / ".venv" / "bin" / "python"
    command = [str(python), str(ROOT / ".ci" / "site" / "reference.py")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if ran.returncode:
        LOG.warning("the reference could not be made: %s", ran.stderr.strip())
        return {}
    pages: dict[str, str] = json.loads(ran.stdout)
    return pages


def _page_of_file(path: str) -> str:
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        return rewritten(with_wide_lists(text), path)
    kind = {"yaml": "yaml", "py": "python", "sh": "bash"}.get(path.rpartition(".")[2], "text")
    return f"# {path}\n\n````{kind}\n{text}\n````\n"


def _with_diagrams(markdown: str, source: str) -> str:
    def drawn(found: re.Match[str]) -> str:
        path = ROOT / posixpath.normpath(posixpath.join(posixpath.dirname(source), found[2]))
        if not path.is_file():
            LOG.warning("%s shows %s, which is no file", source, found[2])
            return found[0]
        # Without its own colours, which are for GitHub's view: site.css has them, too.
        svg = re.sub(r"<style>.*?</style>\s*", "", path.read_text(), flags=re.DOTALL)
        svg = re.sub(r"\n\s*\n", "\n", svg.replace("<svg ", f'<svg role="img" aria-label="{found[1]}" ', 1))
        return f'<div class="diagram">\n{svg.strip()}\n</div>\n'

    return _DIAGRAM.sub(drawn, markdown)


class _Fetched(HTMLParser):
    """Addresses of what a page loads by itself; links that a reader may follow are none."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Of scripts, pictures, frames and stylesheets."""
        given = dict(attrs)
        is_loaded = tag in ("script", "img", "iframe", "source", "video", "audio", "embed")
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload", "preconnect", "modulepreload"):
            is_loaded = True
        url = given.get("src") or (given.get("href") if tag == "link" else None)
        if is_loaded and url and re.match(r"(https?:)?//", url):
            self.urls.append(url)
