"""Every broken archive of the corpus is told as the documentation says, and the good pairs beside it are built."""

import pytest

from tests.broken_inputs import CORPUS, DOCUMENT, outcome

ROWS = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| ")][1:]


def test_the_corpus_is_large_and_all_of_it_is_in_the_document():
    assert len(CORPUS) >= 30
    assert [row.split(" | ")[0].removeprefix("| ") for row in ROWS] == [broken.title for broken in CORPUS]


@pytest.mark.parametrize(("broken", "row"), list(zip(CORPUS, ROWS, strict=True)), ids=[b.title for b in CORPUS])
def test_what_is_said_is_what_the_document_says(broken, row, tmp_path):
    found = outcome(broken, tmp_path)
    message = " ".join(found.message.split()).replace("|", "\\|")
    assert row == f"| {broken.title} | {found.reason or 'none'} | {message} |"
    if found.reason:
        assert found.built == (2 if found.code == 0 else 0)
        assert (tmp_path / "out" / "bad.jsonl").read_text()
    else:
        assert found.code in (1, 2)
        assert len(found.message.splitlines()) == 1
    if found.code:
        assert not (tmp_path / "out" / "manifest.json").exists()
