"""The plan of the house: who may import whom, and how long a module may be."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("sharding", "fusmae", "pipeline", "slurm")

# Packages of ours that each may import, itself apart.
MAY_IMPORT = {"sharding": set(), "fusmae": set(), "pipeline": {"fusmae", "sharding"}, "slurm": {"pipeline"}}
# Third parties, where they are limited.
ONLY_THIRD_PARTIES = {"fusmae": {"torch", "xformers"}, "slurm": {"submitit"}}
# Third parties that one module alone imports.
ONLY_MODULE = {"xformers": "fusmae/attention.py"}
NAMELESS = {"utils", "helpers", "common", "misc"}
MAX_LINES = 400


def imported(path: Path) -> set[str]:
    """Top-level names of all that a module imports, in functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(str(node.module).split(".")[0])
    return names


def violations(root: Path) -> list[str]:
    """Every breach of the plan in the four packages under `root`."""
    found = []
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            names = imported(path) - {package}
            allowed = ONLY_THIRD_PARTIES.get(package)
            third_parties = names - set(PACKAGES) - sys.stdlib_module_names
            found += [f"{name} imports {other}" for other in sorted(names & set(PACKAGES) - MAY_IMPORT[package])]
            if allowed is not None:
                found += [f"{name} imports {other}" for other in sorted(third_parties - allowed)]
            found += [f"{name} imports {o}" for o in sorted(names & ONLY_MODULE.keys()) if ONLY_MODULE[o] != name]
            if path.stem in NAMELESS or NAMELESS & set(path.relative_to(root).parts[:-1]):
                found.append(f"{name} says nothing by its name")
            if (lines := len(path.read_text().splitlines())) > MAX_LINES:
                found.append(f"{name} has {lines} lines")
    return found


def tree(root: Path, **modules: str) -> Path:
    """A tree of modules; `pipeline__loop='import torch'` is pipeline/loop.py."""
    for name, text in modules.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_house_follows_its_plan():
    assert violations(ROOT) == []


def test_no_package_is_left_out():
    assert all(any((ROOT / package).rglob("*.py")) for package in PACKAGES)


@pytest.mark.parametrize(
    ("module", "text", "breach"),
    [
        ("sharding__build", "import fusmae.model", "sharding/build.py imports fusmae"),
        ("sharding__build", "from pipeline import stream", "sharding/build.py imports pipeline"),
        (
            "fusmae__model",
            "def f():\n    from sharding.bands import BANDS",
            "fusmae/model.py imports sharding",
        ),
        ("fusmae__model", "import numpy", "fusmae/model.py imports numpy"),
        ("fusmae__model", "import xformers.ops", "fusmae/model.py imports xformers"),
        ("pipeline__engine", "if True:\n    import slurm.task", "pipeline/engine.py imports slurm"),
        ("pipeline__engine", "import xformers", "pipeline/engine.py imports xformers"),
        ("slurm__task", "import torch", "slurm/task.py imports torch"),
        (
            "slurm__task",
            "class A:\n    def f(self):\n        import numpy as np",
            "slurm/task.py imports numpy",
        ),
        ("slurm__task", "from sharding.errors import DataError", "slurm/task.py imports sharding"),
        ("pipeline__utils", "", "pipeline/utils.py says nothing by its name"),
        ("sharding__common__io", "", "sharding/common/io.py says nothing by its name"),
        ("fusmae__model", "x = 1\n" * 401, "fusmae/model.py has 401 lines"),
    ],
)
def test_a_breach_is_found(tmp_path, module, text, breach):
    assert violations(tree(tmp_path, **{module: text})) == [breach]


def test_the_allowed_arrows_are_not_breaches(tmp_path):
    text = "import os\nimport torch\nfrom fusmae import model\nfrom sharding import bands\nfrom . import stream\n"
    tree(
        tmp_path,
        pipeline__engine=text,
        slurm__task="import submitit\nfrom pipeline.command import run_command\n",
    )
    tree(
        tmp_path,
        fusmae__attention="import torch\nimport xformers.ops",
        sharding__build="import rasterio\n" * 400,
    )
    assert violations(tmp_path) == []
