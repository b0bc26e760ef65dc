"""The batch scripts on a real cluster, with a trainer that only counts: how runs go on, and arrays of them.

With the real trainer: test_slurm_training and test_slurm_chain.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.metrics import read_lines
from slurm.ledger import read_attempts
from slurm.status import read_status
from slurm.watch import chain_of
from tests.cluster.slurmlab import Lab, LabConfig
from tests.dist.conftest import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

STEPS = 60
# Rank 0 counts a step each 0.1 s into metrics.jsonl, holds the folder's lock, and saves on SIGUSR2; the others wait.
TRAINER = """#!/bin/bash
for word; do case $word in run.dir=*) dir=${word#*=} ;; esac; done
case "$*" in
    *"--print run.dir") echo "$dir" ;;
    "-m slurm.snapshot "* | "-m pipeline.local_folders "*) exec "$REAL_PYTHON" "$@" ;;
    "-u -m slurm.task "*)
        trap 'stop=1' USR2
        if [ "$SLURM_PROCID" != 0 ]; then
            while [ -z "$stop" ] && [ ! -e "$dir/over-$FUSMAE_ATTEMPT" ]; do sleep 0.1 & wait $!; done
            exit 0
        fi
        exec 9>>"$dir/lock"
        flock -n 9 || { echo "error: the folder is in use"; exit 1; }
        cp -n "$4" "$dir/config.yaml"
        step=$(grep -c . "$dir/metrics.jsonl")
        while [ -z "$stop" ] && ((step < ${STEPS:=60})); do
            sleep 0.1 9>&- & wait $!
            step=$((step + 1))
            printf '{"step": %d, "loss": 1.5}\\n' "$step" >> "$dir/metrics.jsonl"
        done
        [ "$step" = "${STEPS:-60}" ] && word=done || word=saved
        printf '{"outcome": "%s", "step": %d, "attempt": "%s"}\\n' "$word" "$step" "$FUSMAE_ATTEMPT" > "$dir/new.json"
        mv "$dir/new.json" "$dir/outcome.json"
        touch "$dir/over-$FUSMAE_ATTEMPT" ;;
    *) echo "unexpected: $*" >&2; exit 99 ;;
esac
"""


@dataclass
class Counting:
    """A run of the trainer that counts."""

    lab: Lab
    folder: Path
    job: str = ""

    @property
    def dir(self) -> Path:
        return self.folder / "run"

    def submit(self, *options: str, **environ: str) -> None:
        config = self.folder / "config.yaml"
        config.write_text(f"data: {{url: /nowhere}}\ntrain: {{steps: {STEPS}}}\nrun: {{dir: /nowhere}}\n")
        words = ["-N2", f"--output={self.folder}/output", *options, "slurm/pretrain.sh", str(config)]
        self.job = self.lab.sbatch(*words, f"run.dir={self.dir}", environ=environment(self.lab, self.folder) | environ)
        self.wait_step(5)

    def step(self) -> int:
        return len(read_lines(self.dir / "metrics.jsonl"))

    def wait_step(self, step: int) -> None:
        self.lab.wait(lambda: self.step() >= step, f"step {step}: {self.said()}", timeout_s=120)

    def said(self) -> str:
        path = self.folder / "output"
        return path.read_text() if path.exists() else ""

    def jobs(self) -> list[str]:
        return chain_of(self.dir, self.job)

    def states(self) -> list[str]:
        return [self.lab.job(job)["JobState"] for job in self.jobs()]

    def wait_over(self) -> None:
        ends = {"PENDING", "RUNNING", "COMPLETING"}
        self.lab.wait(lambda: not ends & set(self.states()), f"all end: {self.said()}", timeout_s=120)

    def attempts(self) -> list[tuple[str, int, str]]:
        return [(attempt.job, attempt.restart, attempt.end) for attempt in read_attempts(self.dir)]


def environment(lab: Lab, folder: Path) -> dict[str, str]:
    trainer = folder / "python"
    trainer.write_text(TRAINER)
    trainer.chmod(0o755)
    own = {"FUSMAE_PYTHON": str(trainer), "REAL_PYTHON": sys.executable, "XDG_STATE_HOME": str(lab.folder)}
    return own | {"FUSMAE_PREFLIGHT": "0"}  # tests/cluster/test_slurm_preflight.py


def rank_pid(lab: Lab, job: str, rank: int) -> int:
    for pid in lab.processes():
        try:
            environ = set(Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0"))
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if {f"SLURM_PROCID={rank}", f"SLURM_JOB_ID={job}"} <= environ and command[2:5] == ["-u", "-m", "slurm.task"]:
            return pid
    raise AssertionError(f"no process of rank {rank} of job {job}")


@pytest.fixture(scope="module")
def lab(slurm: None, best_mode: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("lab"), LabConfig(mode=best_mode, nodes=4)) as made:
        yield made


@pytest.fixture
def run(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counting:
    monkeypatch.setenv("SLURM_CONF", str(lab.conf))
    return Counting(lab, tmp_path)


def test_a_chain_survives_a_killed_rank_and_a_warning(run: Counting) -> None:
    run.submit(FUSMAE_CHAIN="chain")
    first, second = run.jobs()
    status = read_status(run.dir)
    assert (status.state, status.next_job) == ("RUNNING", second)
    os.kill(rank_pid(run.lab, first, 1), signal.SIGKILL)
    run.lab.wait(lambda: len(run.attempts()) == 2, "the second job begins", timeout_s=90)
    run.wait_step(run.step() + 5)
    run.lab.run("scancel", "--signal=USR1", "--batch", second)
    run.wait_over()
    ids = run.jobs()
    assert run.attempts() == [(ids[0], 0, "failed"), (ids[1], 1, "saved"), (ids[2], 2, "done")], run.said()
    assert run.states() == ["COMPLETED", "COMPLETED", "COMPLETED", "CANCELLED"]
    assert [line["step"] for line in read_lines(run.dir / "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert (read_status(run.dir).state, read_status(run.dir).next_job) == ("COMPLETED", None)


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_a_chain_survives_a_dead_node(run: Counting, which: int) -> None:
    run.submit(FUSMAE_CHAIN="chain", STEPS="300")  # SLURM takes a while to notice
    node = run.lab.nodes_of(run.job)[which]
    try:
        run.lab.node_down(node)
        run.wait_over()
    finally:
        run.lab.node_up(node)
    ids = run.jobs()
    assert [(job, restart) for job, restart, _ in run.attempts()] == [(ids[0], 0), (ids[1], 1)], run.said()
    assert run.lab.job(ids[0])["Requeue"] == "0" and run.lab.job(ids[0])["Restarts"] == "0"
    assert run.step() == 300 and run.attempts()[-1][2] == "done"


@pytest.mark.slow
def test_a_controller_that_requeues_beside_a_chain_does_no_harm(run: Counting) -> None:
    run.submit(FUSMAE_CHAIN="chain")
    run.lab.run("scontrol", "update", f"JobId={run.job}", "Requeue=1")
    run.lab.run("scontrol", "requeue", run.job)
    run.wait_over()
    assert [(job, restart) for job, restart, _ in run.attempts()] == [(run.job, 0), (run.job, 1)], run.said()
    assert run.step() == STEPS and run.states()[0] == "COMPLETED" and {*run.states()[1:]} == {"CANCELLED"}


@pytest.mark.slow
def test_two_jobs_of_a_chain_at_once_do_no_harm(run: Counting) -> None:
    run.submit(FUSMAE_CHAIN="chain")
    second = run.jobs()[1]
    run.lab.run("scontrol", "update", f"JobId={second}", "Dependency=")
    run.wait_over()
    assert f"nothing to do: job {run.job} is at it" in run.said()
    assert run.attempts() == [(run.job, 0, "done")] and run.step() == STEPS
    assert run.states() == ["COMPLETED", "COMPLETED"]


@pytest.mark.slow
def test_a_cancelled_job_ends_its_chain(run: Counting) -> None:
    run.submit(FUSMAE_CHAIN="chain")
    run.lab.run("scancel", run.job)
    run.wait_over()
    assert len(run.attempts()) == 1 and run.step() < STEPS, run.said()


@pytest.mark.slow
def test_a_preempted_job_does_not_end_its_chain(run: Counting) -> None:
    run.submit(FUSMAE_CHAIN="chain")
    nodes = ",".join(run.lab.nodes_of(run.job))
    run.lab.sbatch("-p", "high", "-N2", "-w", nodes, "--output=/dev/null", "--wrap", "sleep 3")
    run.wait_over()
    assert len(run.attempts()) == 2 and run.attempts()[-1][2] == "done", run.said()


@pytest.mark.slow
def test_without_a_chain_the_command_that_is_said_goes_on(run: Counting) -> None:
    run.submit(FUSMAE_CHAIN="none")
    run.lab.run("scancel", "--signal=USR1", "--batch", run.job)
    run.wait_over()
    assert run.states() == ["FAILED"] and run.attempts() == [(run.job, 0, "saved")]
    command = run.said().split("go on with: ")[1].splitlines()[0]
    environ = run.lab.environ | environment(run.lab, run.folder)
    said = subprocess.run(["bash", "-c", command], env=environ, capture_output=True, text=True, check=True).stdout
    run.job = said.split()[-1]
    run.wait_over()
    assert [end for _, _, end in run.attempts()] == ["saved", "done"], run.said()


@pytest.mark.slow
def test_a_run_in_a_container_is_requeued_from_outside_it(run: Counting) -> None:
    # As the real one: it begins in a folder, sees what it is told to see, and becomes what it starts.
    stand_in, image, setup = run.folder / "apptainer", run.folder / "image.sif", run.folder / "setup.sh"
    stand_in.write_text(f'#!/bin/bash\necho "$*" >> {run.folder}/calls\nshift 7\nexec "$@"\n')
    stand_in.chmod(0o755)
    image.touch()
    setup.write_text(f"export PATH={run.folder}:$PATH FUSMAE_CONTAINER=apptainer:{image}\n")
    run.submit(FUSMAE_SETUP=str(setup))
    os.kill(rank_pid(run.lab, run.job, 1), signal.SIGKILL)
    run.lab.wait(lambda: len(run.attempts()) == 2, "the second attempt begins", timeout_s=90)
    run.wait_over()
    assert [end for _, _, end in run.attempts()] == ["failed", "done"], run.said()
    calls = (run.folder / "calls").read_text().splitlines()
    ranks = [line for line in calls if line.startswith("exec --nv") and " -u -m slurm.task " in line]
    assert len(ranks) == 4 and all(f"{image} env PYTHONPATH={run.dir}/code/{run.job}" in line for line in ranks)


def test_an_element_of_a_sweep_that_is_killed_comes_back_alone(run: Counting) -> None:
    lab, runs = run.lab, run.folder / "runs"
    (run.folder / "small.yaml").write_text(f"data: {{url: /x}}\ntrain: {{steps: {STEPS}}}\nrun: {{dir: /x}}\n")
    given = environment(lab, run.folder)
    code = "import sys; from slurm import sweep; sys.executable = sys.argv.pop(1); sys.exit(sweep.main())"
    words = [str(run.folder / "small.yaml"), "--runs", str(runs), "--set", "train.seed=1,2,3"]
    options = ["--gpus-per-node", "0", "--time", "30", "--parallel", "3"]

    def sweep(*words: str) -> str:
        command = [sys.executable, "-c", code, given["FUSMAE_PYTHON"], *words]
        ran = subprocess.run(command, cwd=ROOT, env=lab.environ | given, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    array = sweep(*words, *options).split("job array ")[1].split(",")[0]
    assert "3 in the queue, 0 to start" in sweep(*words, *options), "again, while they run, does nothing"
    killed = runs / "small-seed=2"
    lab.wait(lambda: len(read_lines(killed / "metrics.jsonl")) >= 5, "it trains", timeout_s=90)
    os.kill(rank_pid(lab, read_attempts(killed)[0].job, 0), signal.SIGKILL)
    for number in range(3):
        lab.wait(lambda n=number: lab.job(f"{array}_{n}").get("JobState") == "COMPLETED", "all end", timeout_s=120)
    rows = {row["name"]: row for row in json.loads(sweep("status", str(runs), "--json"))}
    assert [row["differs"]["train.seed"] for row in rows.values()] == ["1", "2", "3"]
    assert {(row["state"], row["step"]) for row in rows.values()} == {("done", STEPS)}
    assert {name: row["attempts"] for name, row in rows.items()} == {
        "small-seed=1": 1,
        "small-seed=2": 2,
        "small-seed=3": 1,
    }
    assert [attempt.end for attempt in read_attempts(killed)] == ["failed", "done"]
    assert "3 over, 0 in the queue, 0 to start" in sweep(*words, *options)
