"""Site profiles, and the batch files that they come to: tests/unit/slurm/golden/*.sh, compared exactly."""

import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from pipeline.command import exit_code
from slurm import batch_file, site, submit

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = Path(__file__).parent / "golden"
PYXIS = ["--container", "pyxis:nvcr.io#nvidia/pytorch:26.01-py3", "--container-mounts", "/data/ben:/data/ben:ro"]
CASES = {
    "plain": ["--nodes", "2", "--gpus-per-node", "4", "--cpus-per-gpu", "8"],
    "example": ["--site", "example", "--nodes", "2"],
    "perlmutter": ["--site", "perlmutter", "--account", "m1234", "--nodes", "4", "--qos", "debug", "--time", "30"],
    "juwels-booster": ["--site", "juwels-booster", "--account", "hai", "--nodes", "2"],
    "pyxis": ["--gpus-per-node", "8", *PYXIS],
    "apptainer": ["--gpus-per-node", "4", "--container", "apptainer:/images/fusmae 1.sif", "--chain", "none"],
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config file; the code's copy has a name that does not change."""
    monkeypatch.setattr(batch_file, "code_folder", lambda run_dir: run_dir / "code" / "submitted-NOW")
    monkeypatch.setattr(submit, "resolved_run_dir", lambda argv: Path("/runs/first"))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text("data: {url: /data/ben}\ntrain: {steps: 9}\nrun: {dir: /runs/first}\n")
    return path


def batch(config: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The batch file, without what is this machine's own."""
    assert submit.main([str(config), *options, "--dry-run"]) == 0
    text = capsys.readouterr().out
    for here, name in ((str(config.parent), "/home/user"), (sys.executable, "/usr/bin/python3"), (str(ROOT), "/repo")):
        text = text.replace(here, name)
    return text


@pytest.mark.parametrize("case", CASES)
def test_the_batch_file_of_a_site_is_the_kept_one(case, config, capsys):
    now = config.parent / f"{case}.sh"
    now.write_text(batch(config, CASES[case], capsys))
    assert now.read_text() == (GOLDEN / now.name).read_text(), f"if it is as it should be, keep {now}"


@pytest.mark.parametrize("case", CASES)
def test_the_kept_batch_files_are_such_that_bash_reads_and_shellcheck_likes(case):
    subprocess.run(["bash", "-n", str(GOLDEN / f"{case}.sh")], check=True)
    if shutil.which("shellcheck") is not None:
        # The sourced files are not there; what they read is set here; values have commas; submitit's lines are its own.
        subprocess.run(["shellcheck", "-e", "SC1091,SC2034,SC2054", str(GOLDEN / f"{case}.sh")], check=True)


def test_every_profile_that_comes_along_can_be_read():
    assert {"example", "perlmutter", "juwels-booster"} <= set(site.names())
    for name in site.names():
        assert site.load_site(name).gpus_per_node


def test_the_example_has_every_key():
    text = (site.FOLDER / "example.yaml").read_text()
    for key in fields(site.Site):
        assert f"\n{key.name}:" in text


def test_the_command_line_goes_before_the_site_and_the_user_before_its_settings(config, capsys):
    own = config.parent / "own.yaml"
    own.write_text("partition: gpu\ngpus_per_node: 4\ncache_dir: /scratch\n")
    line = ["--site", str(own), "--partition", "test", "--cluster", "local", "data.cache_dir=/mine"]
    assert submit.main([str(config), *line, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("4 ranks") and said.index("data.cache_dir=/scratch") < said.index("data.cache_dir=/mine")
    assert "#SBATCH --partition=test" in batch(config, ["--site", str(own), "--partition", "test"], capsys)


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("partitoin: gpu\n", [], "has the unknown key 'partitoin'; did you mean 'partition'?"),
        ("chain: daisy\n", [], "key 'chain': Input should be"),
        ("time: 24:00:00\n", [], "key 'time': Input should be a valid string"),
        ("partition: gpu\n", [], "give --gpus-per-node G, one rank a GPU (0: CPUs), or a --site that says it"),
        ("gpus_per_node: 4\nneeds: [account]\n", [], "needs --account"),
        ("gpus_per_node: 4\nneeds: [acount]\n", [], "needs: acount is no option"),
        ("gpus_per_node: 4\ncache_dir: $NO_SUCH_THING/x\n", [], "but NO_SUCH_THING is not set"),
        ("gpus_per_node: 4\nsetup: nowhere.sh\n", [], "nowhere.sh, and there is no such file"),
        ("gpus_per_node: 4\ncontainer: docker:x\n", [], "write pyxis:IMAGE or apptainer:IMAGE"),
        ("- a\n", [], "must be a group of keys"),
    ],
)
def test_a_profile_that_cannot_work_is_refused(text, options, said, config, capsys):
    own = config.parent / "own.yaml"
    own.write_text(text)
    assert exit_code(submit.main, [str(config), "--site", str(own), *options, "--dry-run"]) == 2
    assert said in capsys.readouterr().err


def test_an_unknown_site_is_refused_with_the_known_ones(config, capsys):
    assert exit_code(submit.main, [str(config), "--site", "atlantis", "--dry-run"]) == 2
    assert "no site 'atlantis'; write one of example, juwels-booster, perlmutter" in capsys.readouterr().err


def test_cache_dir_takes_variables_of_the_environment(config, capsys, monkeypatch):
    monkeypatch.setenv("SCRATCH", "/fast/me")
    assert site.settings_of(site.Site(cache_dir="$SCRATCH/cache")) == ["data.cache_dir=/fast/me/cache"]
