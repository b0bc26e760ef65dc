"""slurm/pretrain.sh with a set-up file and in a container: stand-ins for SLURM, the trainer and apptainer."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import load_settings
from pipeline.errors import ConfigError
from pipeline.local_folders import local_folders
from slurm.container import container
from tests.unit.slurm.test_pretrain_script import PYTHON, ROOT, Cluster

# `apptainer exec --nv --pwd DIR --bind LIST IMAGE COMMAND...`: notes the list and runs the command.
APPTAINER = """#!/bin/bash
echo "$*" >> "$LOGS/apptainer"
shift 7
exec "$@"
"""


@pytest.fixture
def cluster(tmp_path):
    made = Cluster(tmp_path)
    (tmp_path / "data").mkdir()
    folders = f'"-m pipeline.local_folders "*) printf \'%s\\n\' "$RUN_DIR" {tmp_path}/data /nowhere ;;\n'
    python = PYTHON.replace('    "-m slurm.snapshot', f"    {folders}    " + '"-m slurm.snapshot')
    for name, text in {"python": python, "apptainer": APPTAINER, "python3": python}.items():
        (made.bin / name).write_text(text)
        (made.bin / name).chmod(0o755)
    return made


def test_the_setup_file_is_sourced_before_python_is_looked_for(cluster, tmp_path):
    del cluster.environ["FUSMAE_PYTHON"]
    setup = tmp_path / "setup.sh"
    setup.write_text(f'[ -z "$UNSET_AND_ALLOWED" ] && export FUSMAE_PYTHON={cluster.bin}/python MARK=1\n')
    code, output = cluster.run(FUSMAE_SETUP=str(setup))
    assert code == 0, output
    copy = cluster.run_dir / "code" / "42"
    digest = hashlib.sha256(setup.read_bytes()).hexdigest()
    assert (copy / "SETUP").read_text() == f"{digest}  {setup}\n" and f"set-up file {digest}" in output
    assert (copy / "setup.sh").read_bytes() == setup.read_bytes()


def test_a_later_attempt_sources_the_copy(cluster, tmp_path):
    setup = tmp_path / "setup.sh"
    setup.write_text('echo first >> "$LOGS/sourced"\n')
    cluster.run(FUSMAE_SETUP=str(setup), OUTCOME="saved")
    setup.unlink()
    code, output = cluster.run(FUSMAE_SETUP=str(setup), SLURM_RESTART_COUNT="1")
    assert code == 0, output
    assert cluster.noted("sourced") == ["first", "first"]


@pytest.mark.parametrize(
    ("text", "code", "said"), [(None, 2, "and there is no such file"), ("false\n", 1, "the set-up file")]
)
def test_a_setup_file_that_fails_ends_the_job(cluster, tmp_path, text, code, said):
    setup = tmp_path / "setup.sh"
    if text is not None:
        setup.write_text(text)
    got, output = cluster.run(FUSMAE_SETUP=str(setup))
    assert got == code and said in output
    assert cluster.noted("srun") == []


def test_the_ranks_run_in_apptainer_and_the_script_does_not(cluster, tmp_path):
    del cluster.environ["FUSMAE_PYTHON"]
    image = tmp_path / "fusmae.sif"
    image.touch()
    more = {"FUSMAE_CONTAINER": f"apptainer:{image}", "FUSMAE_CONTAINER_MOUNTS": "/opt/x:/x:ro", "OUTCOME": "saved"}
    code, output = cluster.run(**more)
    assert code == 0, output
    assert cluster.noted("requeue") == ["requeue 42"]
    copy = cluster.run_dir / "code" / "42"
    binds = f"{tmp_path}:{tmp_path},{ROOT}:{ROOT},/opt/x:/x:ro"
    around = f"exec --nv --pwd {tmp_path} --bind {binds} {image} env PYTHONPATH="
    asked, folders, snapshot, ranks = cluster.noted("apptainer")
    for line in (asked, folders, snapshot):
        assert line.startswith(f"{around}{ROOT} PYTHONSAFEPATH=1 python3 -m ")
    assert ranks == f"{around}{copy} PYTHONSAFEPATH=1 python3 -u -m slurm.task {copy}/config.yaml a.b=c d"
    assert f"--cpus-per-task=2 {cluster.bin}/apptainer exec" in cluster.noted("srun")[0]
    assert cluster.noted("ranks") == [f"{copy}/config.yaml a.b=c d"]


def test_pyxis_gets_its_options_of_srun(cluster, tmp_path):
    more = {"FUSMAE_CONTAINER": "pyxis:nvcr.io#nvidia/pytorch:26.01-py3", "FUSMAE_PYTHON": "python3"}
    code, output = cluster.run(**more)
    assert code == 0, output
    binds = f"--container-mounts={tmp_path}:{tmp_path},{ROOT}:{ROOT}"
    image = f"--container-image=nvcr.io#nvidia/pytorch:26.01-py3 {binds} --container-workdir={tmp_path}"
    *asked, ranks = cluster.noted("srun")
    assert len(asked) == 3 and all(f" --nodes=1 --ntasks=1 {image} env PYTHONPATH=" in line for line in asked)
    assert f" {image} --kill-on-bad-exit=1 " in ranks
    copy = cluster.run_dir / "code" / "42"
    assert f"env PYTHONPATH={copy} PYTHONSAFEPATH=1 python3 -u -m slurm.task" in ranks


def test_a_prefix_stands_before_each_rank(cluster):
    code, output = cluster.run(FUSMAE_RUN_PREFIX="env MARK=1")
    assert code == 0, output
    assert f"--cpus-per-task=2 env MARK=1 {cluster.bin}/python -u -m slurm.task" in cluster.noted("srun")[0]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("docker:x", "write pyxis:IMAGE or apptainer:IMAGE"),
        ("apptainer:", "write pyxis:IMAGE or apptainer:IMAGE"),
        ("apptainer:/no/such.sif", "and there is no such file"),
    ],
)
def test_a_container_that_cannot_work_is_wrong_usage(cluster, value, said):
    code, output = cluster.run(FUSMAE_CONTAINER=value)
    assert code == 2 and said in output


def test_pyxis_needs_a_job(cluster):
    del cluster.environ["SLURM_JOB_ID"]
    code, output = cluster.run(FUSMAE_CONTAINER="pyxis:x")
    assert code == 2 and "needs a job of SLURM; write apptainer:IMAGE" in output


def test_without_apptainer_it_is_said(cluster, tmp_path):
    if any(os.access(f"{folder}/{name}", os.X_OK) for folder in ("/usr/bin", "/bin") for name in ("apptainer",)):
        pytest.skip("apptainer is installed here")
    (cluster.bin / "apptainer").unlink()
    code, output = cluster.run(FUSMAE_CONTAINER="apptainer:docker://x")
    assert code == 2 and "neither apptainer nor singularity is on PATH" in output


def test_the_batch_files_of_submitit_say_the_same():
    with pytest.raises(ConfigError, match="write pyxis:IMAGE"):
        container("docker:x", [], "")
    made = container("apptainer:/a b.sif", ["/data", "/data/ben", "/runs"], "/x:/y")
    command = made.python(Path("/code"))
    assert command.endswith(
        "--bind /data:/data,/runs:/runs,/x:/y '/a b.sif' env PYTHONPATH=/code PYTHONSAFEPATH=1 python3"
    )
    assert made.srun_args() == []


def test_the_folders_of_a_run_are_those_that_are_no_urls(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("data: {url: /data/ben@2, cache_dir: /scratch/c}\ntrain: {steps: 1}\nrun: {dir: runs/x}\n")
    folders = local_folders(load_settings(config, ["checkpoint.url=s3://b/c"]))
    assert folders == [str(Path.cwd() / "runs/x"), "/data/ben", "/scratch/c"]
    command = [sys.executable, "-m", "pipeline.local_folders", str(config)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert said.splitlines() == [f"{ROOT}/runs/x", "/data/ben", "/scratch/c"]
