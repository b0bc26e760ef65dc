"""docs/cluster.md names the test that proves each row of its table."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
UNIT = "tests/unit/slurm"
TESTS = [
    "tests/cluster/test_slurm_training.py",
    "tests/cluster/test_slurm_preflight.py",
    *(f"{UNIT}/test_{name}.py" for name in ("pretrain_script", "preflight_script", "chain")),
]


def rows() -> list[list[str]]:
    page = (ROOT / "docs" / "cluster.md").read_text().split("## What happens, and what it costs")[1]
    table = page.split("| shown by |\n|---|---|---|---|\n")[1].split("\n\n")[0]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()]


def test_each_row_is_shown_by_tests_that_exist():
    text = "\n".join((ROOT / path).read_text() for path in TESTS)
    assert len(rows()) > 10
    for what, *_, shown_by in rows():
        names = re.findall(r"`(\w+)`", shown_by)
        assert names, f"nothing shows: {what}"
        for name in names:
            defined = f"def {name}(" if name.startswith("test_") else f'    "{name}": '
            assert defined in text, f"{name}, which is to show '{what}', is no test"
