"""The pages of the documentation that are made: the reference from the code, and links that work in both views."""

import importlib
import json
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / ".ci" / "site"


def module(name: str):
    """A module of `.ci/site`, which is no package."""
    sys.path.insert(0, str(SITE))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(SITE))


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    command = [sys.executable, str(SITE / "reference.py")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(ran.stdout)


def test_every_command_has_a_page(pages):
    from tests.unit.test_help import commands

    assert {f"reference/{name}.md" for name in commands()} <= set(pages)
    assert all(f"]({name}.md)" in pages["reference/index.md"] for name in commands())


def test_a_page_has_every_option_and_argument_of_its_command(pages):
    ran = subprocess.run(
        [sys.executable, "-m", "sharding.build", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    options = {word.strip("[],") for word in ran.stdout.split() if word.startswith("--")} - {"--help"}
    assert len(options) > 15
    assert [option for option in sorted(options) if option not in pages["reference/sharding.build.md"]] == []


def test_commands_under_a_command_are_described(pages):
    page = pages["reference/pipeline.checkpoint.md"]
    assert all(f"## {name}\n" in page for name in ("list", "verify", "show", "pin", "unpin", "prune", "convert"))


def test_every_key_of_a_run_is_on_a_page_with_its_docstring(pages):
    from pipeline.config import _known_keys
    from pipeline.settings import Settings

    keys = [key for key in _known_keys(Settings) if key != "model"]
    assert len(keys) > 70
    page = pages["reference/settings.md"]
    assert [key for key in keys if f"<code>{key.replace('_', '&#95;')}</code>" not in page] == []
    rows = [line for line in page.splitlines() if line.startswith("| <code>")]
    assert len(rows) >= len(keys)
    assert [row for row in rows if row.endswith("|  |")] == []  # one without a docstring line
    assert "Samples of one step over all ranks and micro-batches" in page


def test_every_key_of_the_model_is_on_a_page(pages):
    from fusmae.config import FusMAEConfig

    page = pages["reference/model-settings.md"]
    keys = [f"<code>model.{field.name.replace('_', '&#95;')}</code>" for field in fields(FusMAEConfig)]
    assert [key for key in keys if key not in page] == []


def test_the_reference_is_the_same_each_time(pages):
    command = [sys.executable, str(SITE / "reference.py")]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(again.stdout) == pages


def test_a_field_without_a_docstring_has_none():
    @dataclass
    class Told:
        first: int = 0
        """What it is."""
        second: int = 0

    assert module("settings_tables").field_docs(Told) == {"first": "What it is."}


def test_signs_that_markdown_means_are_shown_as_they_are():
    tables = module("tables")
    assert tables.prose("either a|b or `--x|y`, <z>") == "either a&#124;b or <code>--x&#124;y</code>, &lt;z&gt;"


@pytest.mark.parametrize(
    ("path", "link", "in_the_site"),
    [
        ("docs/stream.md", "faults.md", "faults.md"),
        ("docs/stream.md", "../examples/README.md", "repository/examples-readme.md"),
        ("docs/design/stream.md", "../benchmarks.md#the-stream", "../benchmarks.md#the-stream"),
        ("docs/design/stream.md", "../../README.md", "../repository/readme.md"),
        ("docs/design/stream.md", "../README.md", "../index.md"),
        ("README.md", "docs/data-set.md", "../data-set.md"),
        ("README.md", "docs/design/README.md", "../design/README.md"),
        ("README.md", "configs/demo.yaml", "configs-demo.yaml.md"),
        ("README.md", "https://arxiv.org/abs/2401.02764", "https://arxiv.org/abs/2401.02764"),
        ("README.md", "#evaluation", "#evaluation"),
    ],
)
def test_a_link_is_turned_into_one_between_pages(path, link, in_the_site):
    assert module("links").rewritten(f"see [it]({link}).", path) == f"see [it]({in_the_site})."


def test_links_in_code_stay():
    text = "`[a](b.md)` and\n```\n[a](b.md)\n```\n[a](b.md)"
    changed = module("links").each_link(text, str.upper)
    assert changed == "`[a](b.md)` and\n```\n[a](b.md)\n```\n[a](B.MD)"


def test_lists_are_read_as_github_reads_them():
    text = "words:\n- one\n  more\n\n  | a |\n  - inner\n  ```\n    code\n  ```\n- two\n\nwords\n    as they are\n"
    wide = "words:\n\n- one\n    more\n\n    | a |\n    - inner\n    ```\n      code\n    ```\n- two\n\n"
    wide += "words\n    as they are\n"
    assert module("lists").with_wide_lists(text) == wide
    in_code = "```\nwords\n- no list\n  kept\n```\n"
    assert module("lists").with_wide_lists(in_code) == in_code


def test_files_that_are_linked_to_get_pages_and_so_do_those_that_they_link_to(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("[b](../B.md) [gone](../gone.md)")
    (tmp_path / "B.md").write_text("[c](c/run.py) [a](docs/a.md)")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "run.py").write_text("")
    outside, wrong = module("links").linked_outside(tmp_path, ["docs/a.md"])
    assert outside == ["B.md", "c/run.py"]
    assert wrong == ["docs/a.md links to gone.md, which is no file"]


def test_no_link_of_the_documentation_leads_nowhere():
    files = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert module("links").linked_outside(ROOT, [*files, "README.md"])[1] == []


def test_what_makes_the_site_is_pinned():
    lines = (ROOT / "requirements-docs.txt").read_text().splitlines()
    pins = [line.split(" #")[0].strip() for line in lines if line and not line.startswith("#")]
    assert pins and all("==" in pin for pin in pins)


def test_every_page_is_in_the_table_of_contents_of_the_folder():
    contents = (ROOT / "docs" / "README.md").read_text() + (ROOT / "docs" / "design" / "README.md").read_text()
    pages = [path for path in (ROOT / "docs").rglob("*.md") if path.name != "README.md"]
    assert [path.name for path in pages if f"({path.name})" not in contents] == []
