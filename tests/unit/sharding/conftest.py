"""What the tests of sharding share: archives and data sets made once, and building as a user does."""

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sharding import build
from sharding.command import exit_code
from tests.trees import Patch, make_bigearthnet_v1, make_reben, make_reben_lmdb

ROOT = Path(__file__).resolve().parents[3]
SHARED = ROOT.parent / "shared" / "data"


@dataclass
class Archive:
    """An archive on disk and what is in it."""

    source: str
    root: Path
    patches: list[Patch]

    @property
    def arguments(self) -> list[str]:
        return ["--source", self.source, "--root", str(self.root)]


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def figures(self) -> dict[str, Any]:
        return json.loads(self.out)


def run(main: Callable[[list[str] | None], int], *arguments: object) -> Ended:
    """Run a command in this process, as `python -m` would."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = exit_code(main, [str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Ended(code=code, out=out.getvalue(), err=err.getvalue())


def run_build(*arguments: object, workers: int = 1) -> Ended:
    return run(build.main, *arguments, "--workers", workers)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a data set but `build.json`."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "build.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="session")
def v1(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    root = tmp_path_factory.mktemp("ben1")
    return Archive("bigearthnet-v1", root, make_bigearthnet_v1(root, 7))


@pytest.fixture(scope="session")
def reben(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    root = tmp_path_factory.mktemp("ben2")
    return Archive("reben", root, make_reben(root, 6, few_bands=2))


@pytest.fixture(scope="session")
def reben_lmdb(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    root = tmp_path_factory.mktemp("lmdb")
    return Archive("reben", root, make_reben_lmdb(root, 5, seed=2))


@pytest.fixture
def fresh_v1(tmp_path: Path) -> Archive:
    """An archive that the test may break."""
    root = tmp_path / "ben1"
    return Archive("bigearthnet-v1", root, make_bigearthnet_v1(root, 4))


@pytest.fixture
def fresh_reben(tmp_path: Path) -> Archive:
    root = tmp_path / "ben2"
    return Archive("reben", root, make_reben(root, 4))


@pytest.fixture(scope="session")
def dataset(v1: Archive, reben: Archive, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both versions in one data set; not to be changed."""
    out = tmp_path_factory.mktemp("built") / "set"
    ended = run_build(*v1.arguments, *reben.arguments, "--out", out)
    assert ended.code == 0, ended.err
    return out
