"""slurm/pretrain.sh with the real trainer on a real cluster: whatever ends an attempt, the run ends as if nothing had.

A fault counts only where the run's ledger shows it. The final weights are compared with those of an undisturbed run,
bit for bit. All scenarios that are asked for run beside each other on one lab; those of a lab of their own have it so.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.metrics import read_lines
from slurm.snapshot import PACKAGES
from tests.cluster.conftest import NewLab
from tests.cluster.slurm_runs import EVERY, FAULT_AT, STEPS, ClusterRun, Recovery, recovery
from tests.cluster.slurmlab import Lab, LabConfig
from tests.dist.conftest import CONFIG, ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.chaos, pytest.mark.timeout(600)]

AT_ONCE = 3
"""Runs at a time: each start is seconds of work for each of two ranks."""


@dataclass(frozen=True)
class Place:
    """Where a scenario happens."""

    lab: Lab
    folder: Path
    config: Path

    def run(self, name: str, *overrides: str) -> ClusterRun:
        return ClusterRun(self.lab, self.folder / name, self.config, overrides)


@dataclass(frozen=True)
class Told:
    """What a scenario came to: the run, and what its fault cost where it had one."""

    run: ClusterRun
    cost: Recovery | None = None
    is_announced: bool = False
    """The fault was announced, so no step may be lost."""


def hurt(run: ClusterRun, fault: Callable[[], Any]) -> float:
    """Let the run come to a step between two saves, then do `fault`; when it was done."""
    run.wait_step(FAULT_AT)
    assert run.step() < STEPS - EVERY, f"the fault came late, at step {run.step()}"
    now = time.time()
    fault()
    return now


def ended(run: ClusterRun, ends: list[str], state: str = "COMPLETED") -> None:
    """The job ends so, and the ledger shows the fault and nothing else."""
    run.wait_end(state)
    run.is_closed = True
    assert run.ends() == ends, run.said()[-6000:]


def undisturbed(place: Place) -> Told:
    run = place.run("undisturbed")
    run.submit()
    ended(run, ["done"])
    assert run.checkpoints()[-1] == run.step() == STEPS
    return Told(run)


def warned(place: Place) -> Told:
    run = place.run("warned")
    run.submit()
    fault = hurt(run, lambda: run.lab.run("scancel", "--signal=USR1", "--batch", run.job_id))
    ended(run, ["saved", "done"])
    return Told(run, recovery(run, fault), is_announced=True)


def out_of_time(place: Place) -> Told:
    """The real warning of a real limit; the ranks are held until it comes, as the run would be done before."""
    run = place.run("out_of_time")
    run.submit("--time=2", "--signal=B:USR1@60")
    fault = hurt(run, lambda: [os.kill(run.rank_pid(rank), signal.SIGSTOP) for rank in (0, 1)])
    run.lab.wait(lambda: "got SIGUSR1" in run.said(), "the warning comes", timeout_s=150)
    fault = time.time()
    for rank in (0, 1):
        os.kill(run.rank_pid(rank), signal.SIGCONT)
    ended(run, ["saved", "done"])
    return Told(run, recovery(run, fault), is_announced=True)


def preempted(place: Place) -> Told:
    run = place.run("preempted")
    run.submit()

    def push_aside() -> None:
        nodes = ",".join(run.lab.nodes_of(run.job_id))
        run.lab.sbatch("-p", "high", "-N2", "-w", nodes, "--output=/dev/null", "--wrap", "sleep 3")

    fault = hurt(run, push_aside)
    ended(run, ["saved", "done"])
    assert int(run.lab.job(run.job_id)["Restarts"]) == 1
    return Told(run, recovery(run, fault), is_announced=True)


def rank_killed(place: Place) -> Told:
    run = place.run("rank_killed")
    run.submit()
    fault = hurt(run, lambda: os.kill(run.rank_pid(1), signal.SIGKILL))
    ended(run, ["failed", "done"])
    return Told(run, recovery(run, fault))


def tree_gone(place: Place) -> Told:
    """Whatever becomes of the tree from which a job was submitted, its next attempt runs what the first one ran."""
    tree = place.folder / "tree"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tree / package)
    run = place.run("tree_gone")
    run.submit(script=str(tree / "slurm" / "pretrain.sh"))

    def remove_and_kill() -> None:
        shutil.rmtree(tree)
        os.kill(run.rank_pid(1), signal.SIGKILL)

    fault = hurt(run, remove_and_kill)
    ended(run, ["failed", "done"])
    return Told(run, recovery(run, fault))


def killed_in_save(place: Place) -> Told:
    """What the kill leaves of the save is nobody's checkpoint, and is gone when the next one is made."""
    run = place.run("killed_in_save")
    run.submit()
    run.wait_step(FAULT_AT)
    # Every rank writes its part, so the half of a save is there for a moment.
    run.lab.wait(lambda: list((run.dir / "checkpoints").glob(".tmp-*")), "a save begins", timeout_s=60)
    os.kill(run.rank_pid(0), signal.SIGKILL)
    fault = time.time()
    left = list((run.dir / "checkpoints").glob(".tmp-*"))
    ended(run, ["failed", "done"])
    assert left, "the save was done before the kill"
    assert not list((run.dir / "checkpoints").glob(".tmp-*"))
    return Told(run, recovery(run, fault))


def port_taken(place: Place) -> Told:
    """Another program listens where the ranks are to meet; the next attempt meets elsewhere."""
    run = place.run("port_taken")
    run.submit("--hold")
    port = 15000 + int(run.job_id) * 7 % 15000
    taking = [sys.executable, "-c", f"import socket, time; s = socket.create_server(('', {port})); time.sleep(600)"]
    nodes = run.lab.config.names if run.lab.network else run.lab.config.names[:1]
    takers = [subprocess.Popen([*run.lab.inside(node), *taking]) for node in nodes]
    try:
        run.lab.run("scontrol", "release", run.job_id)
        run.lab.wait(lambda: run.ends()[:1] == ["failed"], "the first attempt fails", timeout_s=120)
    finally:
        for taker in takers:
            taker.kill()
            taker.wait()
    ended(run, ["failed", "done"])
    return Told(run)


def rank_hung(place: Place) -> Told:
    run = place.run("rank_hung", "watchdog.step_s=8", "watchdog.data_s=8")
    run.submit()
    run.wait_step(1)
    node = run.lab.nodes_of(run.job_id)[1]
    fault = hurt(run, lambda: os.kill(run.rank_pid(1), signal.SIGSTOP))
    ended(run, ["failed", "done"])
    # Nodes without names of their own are not told apart.
    assert run.attempts()[0]["suspect"] == (node if run.lab.config.mode == "netns" else "-")
    (hang,) = run.events("hang") or read_lines(run.dir / "events-rank00000.jsonl")[-1:]
    assert "rank 1" in hang["reason"], hang
    return Told(run, recovery(run, fault))


def node_off(place: Place, which: int) -> Told:
    run = place.run(f"node_off_{which}")
    run.submit()
    run.wait_step(1)
    node = run.lab.nodes_of(run.job_id)[which]
    try:
        fault = hurt(run, lambda: run.lab.node_down(node))
        run.wait_end()
        run.is_closed = True
        assert run.ends() in (["interrupted", "done"], ["failed", "done"]), run.said()[-6000:]
        lost, found = (set(run.lab.run("scontrol", "show", "hostnames", a["nodes"]).split()) for a in run.attempts())
        assert node in lost and node not in found
    finally:
        run.lab.node_up(node)
    return Told(run, recovery(run, fault))


def cut_off(place: Place, which: int) -> Told:
    """The rank behind the cut lives on and holds what it holds; the attempt after it must neither fail nor be hurt."""
    run = place.run(f"cut_off_{which}", "watchdog.step_s=80", "watchdog.data_s=80")
    run.submit()
    run.wait_step(1)
    node = run.lab.nodes_of(run.job_id)[which]
    stale = run.rank_pid(which, node)
    try:
        fault = hurt(run, lambda: run.lab.net_cut(node))
        run.lab.wait(lambda: len(run.attempts()) == 2, "the next attempt begins", timeout_s=120)
        assert Path(f"/proc/{stale}").exists(), "the stale rank was to live on beside the next attempt"
        run.wait_end()
        run.is_closed = True
        assert len(run.ends()) == 2 and run.ends()[-1] == "done", run.said()[-6000:]
        assert ("to leave the run folder" in run.said()) == (which == 0)
    finally:
        run.lab.net_heal(node)
        run.lab.wait(lambda: run.lab.is_up(node), f"{node} is back")
    return Told(run, recovery(run, fault))


def controller_lost(place: Place) -> Told:
    run = place.run("controller_lost")
    run.submit()
    hurt(run, run.lab.controller_kill)
    assert run.lab.job(run.job_id) == {}
    before = run.step()
    run.wait_step(before + 3)
    run.lab.controller_start()
    ended(run, ["done"])
    assert run.lab.job(run.job_id)["Restarts"] == "0"
    return Told(run)


def stopped_by_file(place: Place) -> Told:
    run = place.run("stopped_by_file")
    run.submit()
    hurt(run, (run.dir / "STOP").touch)
    ended(run, ["stopped"])
    fault, run.is_closed = time.time(), False
    run.submit()
    ended(run, ["stopped", "done"])
    return Told(run, recovery(run, fault), is_announced=True)


def saved_by_file(place: Place) -> Told:
    run = place.run("saved_by_file", "checkpoint.every=1000")
    run.submit()
    hurt(run, (run.dir / "SAVE").touch)
    ended(run, ["done"])
    saves = [event["step"] for event in run.events("checkpoint")]
    assert len(saves) == 2 and FAULT_AT <= saves[0] < saves[1] == STEPS
    return Told(run)


SCENARIOS: dict[str, Callable[[Place], Told]] = {
    "undisturbed": undisturbed,
    "warned": warned,
    "rank_killed": rank_killed,
    "worker_off": partial(node_off, which=1),
    "preempted": preempted,
    "out_of_time": out_of_time,
    "rank_hung": rank_hung,
    "killed_in_save": killed_in_save,
    "port_taken": port_taken,
    "tree_gone": tree_gone,
    "batch_host_off": partial(node_off, which=0),
    "worker_cut_off": partial(cut_off, which=1),
    "batch_host_cut_off": partial(cut_off, which=0),
    "stopped_by_file": stopped_by_file,
    "saved_by_file": saved_by_file,
    "preempted_by_signal": preempted,
    "controller_lost": controller_lost,
}
FAST = ("undisturbed", "warned", "rank_killed", "worker_off")
OWN_LAB = {
    "preempted_by_signal": ("SlurmctldParameters=preempt_send_user_signal",),
    "controller_lost": (),
}
"""Those of which the whole cluster takes notice, and what their slurm.conf has besides."""
NEEDS_NETWORK = ("worker_cut_off", "batch_host_cut_off")


class Fleet:
    """Runs all scenarios of this session beside each other; a test waits for its own."""

    def __init__(self, place: Place, mode: str, pool: ThreadPoolExecutor, names: list[str]) -> None:
        self._place, self._mode = place, mode
        self._told: dict[str, Future[Told]] = {name: pool.submit(self._play, name) for name in names}

    def told(self, name: str) -> Told:
        return self._told[name].result()

    def _play(self, name: str) -> Told:
        if name not in OWN_LAB:
            return SCENARIOS[name](self._place)
        folder = self._place.folder / name
        folder.mkdir()
        config = LabConfig(mode=self._mode, nodes=3, extra=OWN_LAB[name])
        with Lab(folder / "lab", config) as lab:
            return SCENARIOS[name](Place(lab, folder, self._place.config))


@pytest.fixture(scope="session")
def place(slurm: None, best_mode: str, dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("fleet")
    config = folder / "config.yaml"
    lasts = CONFIG.replace("steps: 14", f"steps: {STEPS}").replace("every: 4", f"every: {EVERY}")
    config.write_text(lasts + f"data: {{url: {dataset}, threads: 1}}\n")
    lab = Lab(folder / "lab", LabConfig(mode=best_mode, nodes=2 * AT_ONCE + 4))
    with lab:
        yield Place(lab, folder, config)
    assert not lab.processes(), "ranks outlived their cluster"


@pytest.fixture(scope="session")
def fleet(place: Place, best_mode: str, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    asked = [item.callspec.params.get("scenario") for item in request.session.items if hasattr(item, "callspec")]
    names = [name for name in SCENARIOS if name in asked or name == "undisturbed"]
    if best_mode != "netns":
        names = [name for name in names if name not in NEEDS_NETWORK]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield Fleet(place, best_mode, pool, names)


@pytest.mark.parametrize("scenario", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in SCENARIOS])
def test_a_run_ends_with_the_weights_of_an_undisturbed_one(scenario: str, fleet: Fleet, best_mode: str) -> None:
    if scenario in NEEDS_NETWORK and best_mode != "netns":
        pytest.skip("needs network namespaces")
    told = fleet.told(scenario)
    assert told.run.step() == STEPS
    assert told.run.weights() == fleet.told("undisturbed").run.weights()
    if told.cost is not None:
        print(f"| {scenario} | {told.cost.to_next_step_s:.1f} s | {told.cost.steps_lost} |")
        # A save goes on while the run trains: the last one may not have been whole yet.
        assert told.cost.steps_lost == 0 if told.is_announced else 0 <= told.cost.steps_lost < 2 * EVERY


def test_settings_that_cannot_work_are_tried_once(place: Place) -> None:
    run = place.run("fatal", "train.global_batch=7")
    run.submit()
    run.wait_end("FAILED")
    assert run.ends() == ["fatal"] and run.lab.job(run.job_id)["Restarts"] == "0"
    assert run.lab.job(run.job_id)["ExitCode"] == "2:0"


@pytest.mark.slow
def test_a_run_that_always_crashes_at_the_same_step_is_given_up(place: Place) -> None:
    run = place.run("crash_loop", f"data.url={place.folder / 'nowhere'}")
    run.submit()
    run.wait_end("FAILED")
    assert run.ends() == ["failed"] * 3
    assert "no step forward in 3 attempts" in run.said()


@pytest.mark.slow
def test_a_node_that_failed_twice_is_kept_away_from(
    place: Place, fleet: Fleet, new_lab: NewLab, best_mode: str
) -> None:
    lab = new_lab(nodes=3, mode=best_mode)
    run = Place(lab, place.folder, place.config).run("bad_node")
    run.submit()
    hurt(run, lambda: os.kill(run.rank_pid(1, "n2"), signal.SIGKILL))
    run.lab.wait(lambda: len(run.attempts()) == 2, "the second attempt begins", timeout_s=90)
    run.wait_step(2 * FAULT_AT)
    os.kill(run.rank_pid(1, "n2"), signal.SIGKILL)
    ended(run, ["failed", "failed", "done"])
    assert [attempt["suspect"] for attempt in run.attempts()] == ["n2", "n2", "-"]
    assert [attempt["nodes"] for attempt in run.attempts()] == ["n[1-2]", "n[1-2]", "n[1,3]"]
    assert run.lab.job(run.job_id)["ExcNodeList"] == "n2"
    assert run.weights() == fleet.told("undisturbed").run.weights()


@pytest.mark.slow
def test_a_run_that_slurm_submit_submitted_comes_through_too(place: Place, fleet: Fleet) -> None:
    run = place.run("submitted")
    submit = run.submit_through_submitit()
    hurt(run, lambda: os.kill(run.rank_pid(1, module="submitit.core._submit"), signal.SIGKILL))
    assert submit.wait(timeout=240) == 0, run.said()
    assert run.ends() == ["failed", "done"] and f"done at step {STEPS}" in run.said()
    first = run.attempts()[0]
    assert first["suspect"] == run.lab.run("scontrol", "show", "hostnames", first["nodes"]).split()[1]
    assert [path.name[:10] for path in (run.dir / "code").iterdir()] == ["submitted-"]
    assert run.weights() == fleet.told("undisturbed").run.weights()


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 4])
def test_a_run_goes_on_over_another_number_of_nodes(place: Place, fleet: Fleet, nodes: int) -> None:
    run = place.run(f"resized_{nodes}")
    run.submit()
    hurt(run, (run.dir / "STOP").touch)
    ended(run, ["stopped"])
    run.submit("-N", str(nodes))
    ended(run, ["stopped", "done"])
    stopped = run.events("stop")[0]["step"]

    def keys(run: ClusterRun, ranks: int) -> list[list[str]]:
        traces = [read_lines(run.dir / f"trace-rank{rank:05d}.jsonl") for rank in range(ranks)]
        steps = {line["step"]: [] for line in traces[0]}
        for trace in traces:
            for line in trace:
                steps[line["step"]] += line["keys"]
        return [steps[step] for step in sorted(steps) if step > stopped]

    assert keys(run, nodes) == keys(fleet.told("undisturbed").run, 2)[: STEPS - stopped]
    assert run.checkpoints()[-1] == STEPS
