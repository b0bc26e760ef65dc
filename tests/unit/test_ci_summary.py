"""CI is green only when tests ran."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PASSED = '<testcase classname="a" name="ok"/>'
FAILED = '<testcase classname="a" name="bad"><failure message="no"/></testcase>'
ON_GPU = '<testcase classname="a" name="fast"><skipped message="needs a GPU"/></testcase>'
OPTIONAL = '<testcase classname="a" name="timm"><skipped message="needs the optional package timm"/></testcase>'
NO_SLURM = '<testcase classname="a" name="s"><skipped message="needs SLURM: apt-get install slurm-wlm"/></testcase>'
NO_SERVER = '<testcase classname="a" name="s3"><skipped message="no server"/></testcase>'


@pytest.mark.parametrize(
    ("cases", "code", "line"),
    [
        (PASSED * 3, 0, "3 passed, 0 failed, 0 skipped"),
        (PASSED + ON_GPU, 0, "1 passed, 0 failed, 1 skipped"),
        (PASSED + OPTIONAL, 0, "1 passed, 0 failed, 1 skipped"),
        (PASSED + OPTIONAL.replace("timm", "onnx"), 1, "1 passed, 0 failed, 1 skipped"),
        (PASSED + FAILED, 1, "1 passed, 1 failed, 0 skipped"),
        (PASSED + NO_SERVER, 1, "1 passed, 0 failed, 1 skipped"),
        (PASSED + NO_SLURM, 1, "1 passed, 0 failed, 1 skipped"),
        (ON_GPU, 1, "0 passed, 0 failed, 1 skipped"),
        ("", 1, "0 passed, 0 failed, 0 skipped"),
    ],
)
def test_the_summary_counts_and_judges(tmp_path, cases, code, line):
    results = tmp_path / "results.xml"
    results.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    command = [sys.executable, str(ROOT / ".ci" / "summary.py"), str(results)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == code
    assert ran.stdout.splitlines()[0] == line


def test_no_results_at_all_is_red(tmp_path):
    command = [sys.executable, str(ROOT / ".ci" / "summary.py"), str(tmp_path / "none.xml")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1
    assert "pytest left no results" in ran.stderr
