"""The lab does what it is told, several at once, and leaves nothing behind."""

import getpass
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster import slurmlab
from tests.cluster.conftest import NewLab
from tests.cluster.slurmlab import Lab, LabConfig, LabError, configuration

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
SLEEPER = ["--wrap", "srun sleep 600"]


def wait(holds, what: str, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def bridges() -> set[str]:
    return {path.name for path in Path("/sys/class/net").glob("slab*")}


def sleepers(lab: Lab, node: str | None = None) -> list[int]:
    commands = {pid: Path(f"/proc/{pid}/cmdline") for pid in lab.processes(node)}
    return [pid for pid, path in commands.items() if path.exists() and path.read_bytes().endswith(b"/sleep\x00600\x00")]


@pytest.fixture
def folder(slurm: None, tmp_path: Path) -> Path:
    """Where a lab may be started, on a machine that has SLURM."""
    return tmp_path / "lab"


def test_two_labs_at_once_run_a_job_on_two_nodes_each(new_lab: NewLab) -> None:
    labs = [new_lab(nodes=2), new_lab(nodes=2)]
    ids = [lab.sbatch("-N2", "-o", str(lab.folder / "out"), "--wrap", "srun printenv SLURMD_NODENAME") for lab in labs]
    assert ids[0] != ids[1]
    for lab, job_id in zip(labs, ids, strict=True):
        lab.wait(lambda lab=lab, j=job_id: lab.job(j)["JobState"] == "COMPLETED", "the job ends")
        assert sorted((lab.folder / "out").read_text().split()) == ["n1", "n2"]


def test_a_node_that_is_off_runs_nothing_and_its_job_goes_elsewhere(new_lab: NewLab) -> None:
    lab = new_lab(nodes=3)
    job_id = lab.sbatch("-N2", "--requeue", *SLEEPER)
    lab.wait(lambda: len(sleepers(lab)) == 2, "both tasks run")
    assert lab.nodes_of(job_id) == ["n1", "n2"]
    lab.node_down("n2")
    assert lab.processes("n2") == [] and len(sleepers(lab, "n1")) == 1
    lab.wait(lambda: not lab.is_up("n2"), "the controller misses the node")
    lab.wait(lambda: lab.job(job_id)["JobState"] == "RUNNING" and lab.nodes_of(job_id) == ["n1", "n3"], "it runs again")
    assert lab.job(job_id)["Restarts"] == "1"
    lab.node_up("n2")


def test_a_cut_node_lives_on_unseen(new_lab: NewLab, best_mode: str) -> None:
    if best_mode != "netns":
        pytest.skip("needs network namespaces")
    lab = new_lab(nodes=2, mode="netns")
    job_id = lab.sbatch("-w", "n2", "-N1", "--no-requeue", *SLEEPER)
    lab.wait(lambda: sleepers(lab, "n2"), "the task runs")
    lab.net_cut("n2")
    lab.wait(lambda: lab.job(job_id)["JobState"] == "NODE_FAIL", "the controller gives the node up")
    assert len(sleepers(lab, "n2")) == 1
    lab.net_heal("n2")
    lab.wait(lambda: lab.is_up("n2"), "the node is back")
    lab.wait(lambda: not sleepers(lab, "n2"), "SLURM ends the stale task")


def test_without_networks_a_cut_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(LabError, match="mode `ports` cannot be cut; take mode netns, as root"):
        Lab(folder, LabConfig()).net_cut("n1")


def test_a_killed_controller_comes_back_and_the_job_never_noticed(new_lab: NewLab) -> None:
    lab = new_lab(nodes=1)
    job_id = lab.sbatch("-N1", *SLEEPER)
    lab.wait(lambda: sleepers(lab), "the task runs")
    before, now = sleepers(lab), time.time()
    lab.run("scontrol", "update", f"JobId={job_id}", "Comment=changed")  # what is not saved yet would be lost
    lab.wait(lambda: (lab.folder / "state" / "job_state").stat().st_mtime > now, "the controller saves its state")
    lab.controller_kill()
    assert lab.job(job_id) == {}
    lab.controller_start()
    assert lab.job(job_id)["JobState"] == "RUNNING" and lab.job(job_id)["Restarts"] == "0"
    assert sleepers(lab) == before


def test_nothing_is_left_after_a_test_that_failed(folder: Path, best_mode: str) -> None:
    had = bridges()
    lab = Lab(folder, LabConfig(nodes=2, mode=best_mode))
    with pytest.raises(ZeroDivisionError), lab:
        lab.sbatch("-N2", *SLEEPER)
        lab.wait(lambda: len(sleepers(lab)) == 2, "both tasks run")
        assert lab.processes("n1") and lab.processes("n2")
        _ = 1 / 0
    assert lab.processes() == []
    assert bridges() == had


def test_a_lab_goes_down_when_its_owner_is_killed(folder: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tests.cluster.slurmlab import *\n"
        f"with Lab(Path({str(folder)!r}), LabConfig(nodes=2)) as lab:\n"
        "    lab.sbatch('-N2', '--wrap', 'srun sleep 600'); print('up', flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None and owner.stdout.readline() == "up\n"
    lab = Lab.open(folder)
    lab.wait(lambda: len(sleepers(lab)) == 2, "both tasks run")
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    wait(lambda: not lab.processes(), "the guard takes the lab down")


def test_a_person_has_a_cluster_in_one_command_and_is_rid_of_it_in_one(folder: Path) -> None:
    def command(*words: str) -> subprocess.CompletedProcess[str]:
        lab = [sys.executable, "-m", "tests.cluster.slurmlab", *words]
        return subprocess.run(lab, cwd=ROOT, capture_output=True, text=True, timeout=60)

    began = command("up", str(folder), "--mode", "ports", "--nodes", "2", "--cpus", "3")
    assert began.returncode == 0, began.stderr
    *nodes, export = began.stdout.splitlines()
    assert nodes == ["NODELIST STATE CPUS", "n1 idle 3", "n2 idle 3"]
    assert export == f"export SLURM_CONF={folder}/etc/slurm.conf"
    pids = Lab.open(folder).processes()
    assert command("up", str(folder)).stdout == began.stdout
    assert Lab.open(folder).processes() == pids, "a second `up` starts nothing"
    refused = command("node-down", str(folder), "n7")
    assert (refused.returncode, refused.stderr) == (1, "error: no node n7; there are n1, n2\n")
    assert command("node-down", str(folder), "n2").returncode == 0
    assert Lab.open(folder).processes("n2") == []
    assert command("down", str(folder)).returncode == 0
    assert Lab.open(folder).processes() == []


def test_a_folder_without_a_lab_is_said(tmp_path: Path) -> None:
    lab = [sys.executable, "-m", "tests.cluster.slurmlab", "down", str(tmp_path)]
    ran = subprocess.run(lab, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1
    assert (
        ran.stderr == f"error: no lab in {tmp_path}; start one with: python -m tests.cluster.slurmlab up {tmp_path}\n"
    )


def test_an_ordinary_user_needs_no_privilege(folder: Path) -> None:
    """As `nobody` where the tests run as root; elsewhere every other test here shows it."""
    if getpass.getuser() != "root":
        return
    place = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    try:
        copied = place / "tests" / "cluster"
        shutil.copytree(ROOT / "tests" / "cluster" / "slurmlab", copied / "slurmlab")
        for made in (copied.parent, copied):
            (made / "__init__.py").touch()
        shutil.chown(place, "nobody")
        python = next(p for p in ("/usr/bin/python3", sys.executable) if os.path.exists(p))
        become = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "env", "HOME=/", "USER=nobody"]
        become.append("LOGNAME=nobody")
        lab = [*become, python, "-m", "tests.cluster.slurmlab"]
        words = ["up", str(place / "lab"), "--nodes", "2"]
        began = subprocess.run([*lab, *words], cwd=place, capture_output=True, text=True, timeout=90)
        try:
            assert began.returncode == 0, began.stderr
            srun = [*become, f"SLURM_CONF={place}/lab/etc/slurm.conf", "srun", "-N2", "id", "-un"]
            ran = subprocess.run(srun, cwd="/", capture_output=True, text=True, timeout=60)
            assert (ran.returncode, ran.stdout) == (0, "nobody\nnobody\n"), ran.stderr
        finally:
            ended = subprocess.run([*lab, "down", str(place / "lab")], cwd=place, capture_output=True, text=True)
            assert ended.returncode == 0, ended.stderr
            assert Lab.open(place / "lab").processes() == []
    finally:
        shutil.rmtree(place)


def test_without_slurm_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(configuration, "SBIN", "/nowhere")
    assert slurmlab.why_not_here() == (
        "needs SLURM: apt-get install slurm-wlm munge slurm-wlm-basic-plugins "
        "(slurmctld, slurmd, munged, sbatch, srun not found)"
    )
