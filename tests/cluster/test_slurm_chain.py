"""FUSMAE_CHAIN=chain with the real trainer on a real cluster, beside a container that is none and job arrays of runs.

As in test_slurm_training: a fault counts only where the ledger shows it, and weights are compared bit for bit.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from slurm.status import read_status
from slurm.watch import chain_of
from tests.cluster.slurm_runs import STEPS, ClusterRun
from tests.cluster.test_slurm_training import ROOT, Fleet, Place, hurt
from tests.cluster.test_slurm_training import fleet as fleet  # a fixture
from tests.cluster.test_slurm_training import place as place  # a fixture

pytestmark = [pytest.mark.cluster, pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(600)]

CHAIN = {"FUSMAE_CHAIN": "chain"}


def jobs(run: ClusterRun) -> list[str]:
    """The run's chain, in order."""
    return chain_of(run.dir, run.job_id)


def states(run: ClusterRun) -> list[str]:
    """SLURM's words for the jobs of the chain."""
    return [run.lab.job(job).get("JobState", "") for job in jobs(run)]


def wait_over(run: ClusterRun) -> None:
    """Until no job of the chain runs or waits."""
    run.lab.wait(lambda: not {"PENDING", "RUNNING", "COMPLETING"} & set(states(run)), "the chain ends", timeout_s=400)
    run.is_closed = True


def warn(run: ClusterRun) -> None:
    run.lab.run("scancel", "--signal=USR1", "--batch", run.job_id)


def kill_rank(run: ClusterRun) -> None:
    os.kill(run.rank_pid(1), signal.SIGKILL)


def node_off(run: ClusterRun, which: int) -> None:
    run.lab.node_down(run.lab.nodes_of(run.job_id)[which])


def requeue_too(run: ClusterRun) -> None:
    """The controller puts the job back, although another waits to take over."""
    run.lab.run("scontrol", "update", f"JobId={run.job_id}", "Requeue=1")
    run.lab.run("scontrol", "requeue", run.job_id)


FAULTS: dict[str, tuple[Callable[[ClusterRun], Any], list[str]]] = {
    "warned": (warn, ["saved", "done"]),
    "rank_killed": (kill_rank, ["failed", "done"]),
    "worker_off": (lambda run: node_off(run, 1), ["interrupted or failed", "done"]),
    "batch_host_off": (lambda run: node_off(run, 0), ["interrupted", "done"]),
    "requeued_too": (requeue_too, ["interrupted or saved", "done"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_chain_of_jobs_ends_with_the_weights_of_an_undisturbed_run(
    fault: str, place: Place, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    do, ends = FAULTS[fault]
    run = place.run(f"chain_{fault}")
    run.submit(**CHAIN)
    run.wait_step(1)
    nodes = run.lab.nodes_of(run.job_id)
    try:
        hurt(run, lambda: do(run))
        wait_over(run)
    finally:
        for node in nodes:
            run.lab.node_up(node)
    assert run.lab.job(run.job_id)["Requeue"] == "0"
    assert len(run.ends()) == 2 and all(e in w.split(" or ") for e, w in zip(run.ends(), ends, strict=True)), run.said()
    assert [attempt["restart"] for attempt in run.attempts()] == ["0", "1"]
    began = [attempt["job"] for attempt in run.attempts()]
    assert began == ([run.job_id] * 2 if fault == "requeued_too" else jobs(run)[:2])
    assert states(run)[-1] == "CANCELLED", "nothing is left of a run that is done"
    assert run.step() == STEPS and run.weights() == fleet.told("undisturbed").run.weights()
    for name, value in run.lab.environ.items():
        monkeypatch.setenv(name, value)
    status = read_status(run.dir)
    assert (status.step, status.next_job, len(status.attempts)) == (STEPS, None, 2)


def test_a_cancelled_job_ends_its_chain(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = place.run("chain_cancelled")
    run.submit(**CHAIN)
    run.wait_step(3)
    monkeypatch.setenv("SLURM_CONF", str(run.lab.conf))
    status = read_status(run.dir)
    assert (status.state, status.next_job) == ("RUNNING", jobs(run)[1])
    run.lab.run("scancel", run.job_id)
    wait_over(run)
    assert len(run.attempts()) == 1 and states(run) in (["CANCELLED"] * 2, ["CANCELLED", "COMPLETED"])


def test_a_chain_that_slurm_submit_began_goes_on_with_its_own_tasks(place: Place, fleet: Fleet) -> None:
    run = place.run("chain_submitted")
    submit = run.submit_through_submitit("--chain", "chain")
    hurt(run, lambda: os.kill(run.rank_pid(1, module="submitit.core._submit"), signal.SIGKILL))
    assert submit.wait(timeout=240) == 0, run.said()
    assert run.ends() == ["failed", "done"] and [a["job"] for a in run.attempts()] == jobs(run)[:2]
    assert run.weights() == fleet.told("undisturbed").run.weights()


def test_a_run_in_apptainer_is_requeued_from_outside_it(place: Place, fleet: Fleet) -> None:
    folder = place.folder / "apptainer"
    folder.mkdir()
    stand_in = folder / "apptainer"  # as the real one: ends where it began, and becomes what it starts
    stand_in.write_text(f'#!/bin/bash\necho "$*" >> {folder}/calls\nshift 7\nexec "$@"\n')
    stand_in.chmod(0o755)
    (folder / "image.sif").touch()
    run = place.run("in_apptainer")
    path = f"{folder}:{os.environ['PATH']}"
    run.submit(FUSMAE_CONTAINER=f"apptainer:{folder}/image.sif", PATH=path)
    hurt(run, lambda: os.kill(run.rank_pid(1), signal.SIGKILL))
    run.wait_end()
    run.is_closed = True
    assert run.ends() == ["failed", "done"], run.said()[-6000:]
    ranks = [line for line in (folder / "calls").read_text().splitlines() if "slurm.task" in line]
    assert len(ranks) == 4, "two attempts of two ranks"
    assert run.weights() == fleet.told("undisturbed").run.weights()


def test_an_element_of_a_sweep_that_is_killed_comes_back_alone(place: Place) -> None:
    lab, runs = place.lab, place.folder / "sweep"
    words = [str(place.config), "--runs", str(runs), "--set", "train.seed=1,2,3", "train.steps=24"]
    options = ["--gpus-per-node", "0", "--time", "30", "--parallel", "3"]
    environ = lab.environ | {"OMP_NUM_THREADS": "1", "XDG_STATE_HOME": str(lab.folder)}

    def sweep(*words: str) -> str:
        command = [sys.executable, "-m", "slurm.sweep", *words]
        return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True).stdout

    array = sweep(*words, *options).split("job array ")[1].split(",")[0]
    assert "3 in the queue, 0 to start" in sweep(*words, *options), "again, while they run, does nothing"
    name = f"{place.config.stem}-seed=2"
    killed = ClusterRun(lab, runs / name, place.config)
    trace = killed.dir / "trace-rank00000.jsonl"
    lab.wait(lambda: trace.exists() and trace.read_bytes().count(b"\n") >= 7, "it trains", timeout_s=200)
    killed.job_id = killed.attempts()[0]["job"]
    os.kill(killed.rank_pid(0), signal.SIGKILL)
    for number in range(3):
        lab.wait(lambda n=number: lab.job(f"{array}_{n}").get("JobState") == "COMPLETED", "all end", timeout_s=240)
    rows = {row["name"]: row for row in json.loads(sweep("status", str(runs), "--json"))}
    assert [row["differs"]["train.seed"] for row in rows.values()] == ["1", "2", "3"]
    assert {row["state"] for row in rows.values()} == {"done"} and {row["step"] for row in rows.values()} == {24}
    assert {name: row["attempts"] for name, row in rows.items() if row["attempts"] > 1} == {name: 2}
    assert killed.ends() == ["failed", "done"]
    assert "3 over, 0 in the queue, 0 to start" in sweep(*words, *options)
