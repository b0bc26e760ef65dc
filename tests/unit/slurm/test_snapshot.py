"""The copy of the code that a job runs."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, StorageError
from slurm import snapshot


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text("run: {}\n")
    return path


def test_the_copy_runs_by_itself_and_knows_its_commit(config, tmp_path):
    snapshot.take(tmp_path / "code", config)
    ask = "import slurm, pipeline.run_folder as r; print(slurm.__file__); print(r._git_commit())"
    command = [sys.executable, "-P", "-c", ask]
    environ = {"PYTHONPATH": str(tmp_path / "code"), "PATH": "/usr/bin:/bin"}
    ran = subprocess.run(command, env=environ, cwd=snapshot.ROOT, capture_output=True, text=True, check=True)
    place, commit = ran.stdout.splitlines()
    assert place == str(tmp_path / "code" / "slurm" / "__init__.py")
    assert commit == (tmp_path / "code" / "COMMIT").read_text().strip() != ""
    assert (tmp_path / "code" / "slurm" / "attempt.sh").exists()
    assert (tmp_path / "code" / "config.yaml").read_text() == "run: {}\n"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".partial")]


def test_the_setup_file_goes_along_with_its_hash(config, tmp_path):
    setup = tmp_path / "site.sh"
    setup.write_text("module load CUDA\n")
    snapshot.take(tmp_path / "code", config, setup)
    assert (tmp_path / "code" / "setup.sh").read_bytes() == setup.read_bytes()
    digest = hashlib.sha256(setup.read_bytes()).hexdigest()
    assert (tmp_path / "code" / "SETUP").read_text() == f"{digest}  {setup}\n"


def test_what_was_there_is_replaced(config, tmp_path):
    snapshot.take(tmp_path / "code", config)
    (tmp_path / "code" / "stale.py").touch()
    snapshot.take(tmp_path / "code", config)
    assert not (tmp_path / "code" / "stale.py").exists()


def test_without_a_config_nothing_is_made(tmp_path):
    with pytest.raises(ConfigError, match="no config file"):
        snapshot.take(tmp_path / "code", tmp_path / "nowhere.yaml")
    assert not (tmp_path / "code").exists()


def test_a_folder_that_cannot_be_written_is_said(config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="the code of the job cannot be copied to"):
        snapshot.take(tmp_path / "file" / "code", config)
