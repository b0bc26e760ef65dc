"""`--help` of every command answers at once: the heavy packages are imported where they are used."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("sharding", "fusmae", "pipeline", "slurm")
PROMISED = {
    "sharding.build",
    "sharding.verify",
    "sharding.inspect",
    "pipeline.pretrain",
    "pipeline.evaluate",
    "pipeline.embed",
    "pipeline.search",
    "pipeline.export",
    "pipeline.report",
    "pipeline.restore",
    "pipeline.demo",
    "pipeline.stream",
    "slurm.submit",
    "slurm.sweep",
}
HEAVY = ("torch", "deepspeed", "rasterio", "xformers", "zarr", "matplotlib", "pyarrow", "xarray")
# Runs a module as `python -m` does, then names the heavy packages that came with it.
PROBE = """
import runpy, sys
module, sys.argv[1:] = sys.argv[1], ["--help"]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit as stop:
    code = stop.code or 0
print("\\nheavy:", *[name for name in {heavy!r} if name in sys.modules])
sys.exit(code)
"""


def commands() -> list[str]:
    """The promised commands, and every other module that runs as a program."""
    found = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if 'if __name__ == "__main__"' in path.read_text():
                parts = path.relative_to(ROOT).with_suffix("").parts
                found.add(".".join(parts[:-1] if parts[-1] == "__main__" else parts))
    return sorted(PROMISED | found)


@pytest.mark.parametrize("module", commands())
def test_help_is_light(module):
    started = time.monotonic()
    command = [sys.executable, "-c", PROBE.format(heavy=HEAVY), module]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert "usage:" in ran.stdout
    assert ran.stdout.splitlines()[-1].strip() == "heavy:"
    assert time.monotonic() - started < 10  # generous: a loaded machine is no defect


def test_a_heavy_import_is_noticed(tmp_path):
    (tmp_path / "heavy_command.py").write_text("import zarr\nprint('usage:')\nraise SystemExit(0)\n")
    command = [sys.executable, "-c", PROBE.format(heavy=HEAVY), "heavy_command"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "zarr" in ran.stdout.splitlines()[-1]
