"""The preflight of slurm/pretrain.sh with stand-ins for srun, scontrol and the nodes' looks, and the real report."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from slurm import snapshot
from tests.unit.slurm.test_pretrain_script import CRASH, PYTHON, ROOT, SRUN, Cluster
from tests.unit.slurm.test_pretrain_script import cluster as cluster  # a fixture

# A node's look: the answer that a test has put there, or none.
LOOK = """    "-m slurm.preflight_report "*) exec "$REAL_PYTHON" "$@" ;;
    "-m slurm.preflight "*|"-m slurm.probe "*)
        echo "$SLURMD_NODENAME $*" >> "$LOGS/looks"
        [ -z "$LOOK_WAITS" ] || sleep "$LOOK_WAITS"
        for word; do case $word in
            --json-file=*) to=${word#*=}; cp "$LOGS/answers/$SLURMD_NODENAME" "${to/\\%N/$SLURMD_NODENAME}" ;;
            --folder=*) [ "$SLURMD_NODENAME" = unresolvable-2 ] || cp "$LOGS/answers/probe" "${word#*=}/probe.json" ;;
        esac; done ;;
"""
# As srun: the command on both nodes.
ON_BOTH = """case "$*" in
    *"-m slurm.preflight "*|*"-m slurm.probe "*)
        for node in unresolvable-1 unresolvable-2; do SLURMD_NODENAME=$node "$@" & done; wait; exit 0 ;;
esac
exec "$@\""""
ECC = {"name": "gpu ecc", "state": "failed", "measured": "3 uncorrected ECC errors", "advice": "", "is_shared": False}
STORE = {"name": "data.url", "state": "failed", "measured": "refused", "advice": "", "is_shared": True}


@pytest.fixture
def nodes(cluster: Cluster) -> Cluster:
    """Two nodes that are fit."""
    direct = '    "-m pipeline.pretrain "*'
    (cluster.bin / "python").write_text(PYTHON.replace(direct, LOOK + direct))
    (cluster.bin / "srun").write_text(SRUN.replace('exec "$@"', ON_BOTH))
    (cluster.logs / "answers").mkdir()
    for node in ("unresolvable-1", "unresolvable-2"):
        found(cluster, node)
    cluster.environ |= {"FUSMAE_PREFLIGHT": "", "LOOK_WAITS": ""}
    return cluster


def found(cluster: Cluster, node: str, *checks: dict[str, object], is_stopped: bool = False) -> None:
    """What a node is going to find."""
    answer = {"checks": checks, "took_s": 1.0, "is_stopped": is_stopped}
    (cluster.logs / "answers" / node).write_text(json.dumps(answer))


def folder(cluster: Cluster, restart: int = 0) -> Path:
    return cluster.run_dir / "preflight" / f"42-{restart}"


def test_each_node_looks_at_itself_before_a_rank_starts(nodes):
    code, output = nodes.run()
    assert code == 0 and "preflight: 2 nodes are fit" in output, output
    first, second = nodes.noted("srun")
    for argument in ("--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--kill-on-bad-exit=0"):
        assert argument in first.split()
    assert "slurm.task" in second and nodes.attempts() == [["0", "0", "0", "done"]]
    assert sorted(path.name for path in folder(nodes).iterdir()) == [
        "suspects",
        "unresolvable-1.json",
        "unresolvable-2.json",
    ]
    looks = nodes.noted("looks")
    assert [line.split()[0] for line in sorted(looks)] == ["unresolvable-1", "unresolvable-2"]
    assert all("config.yaml a.b=c d --quick" in line for line in looks)


@pytest.mark.parametrize(
    ("wanted", "num_nodes", "looks"), [("0", "2", 0), ("", "1", 0), ("1", "1", 2), ("", "2", 2), ("full", "2", 4)]
)
def test_it_is_on_for_two_nodes_and_more_unless_told_otherwise(nodes, wanted, num_nodes, looks):
    ranks = [
        {"rank": 0, "host": "unresolvable-1", "error": "", "is_victim": False},
    ]
    came = {str(rank): f"unresolvable-{rank // 4 + 1}" for rank in range(8)}
    result = {"came": came, "ranks": ranks, "missing": [], "slow": [], "wrong": [], "world_size": 8, "num_bytes": 4}
    (nodes.logs / "answers" / "probe").write_text(json.dumps(result | {"busbw_gb_s": 1.0, "backend": "gloo"}))
    code, output = nodes.run(FUSMAE_PREFLIGHT=wanted, SLURM_JOB_NUM_NODES=num_nodes)
    assert code == 0 and len(nodes.noted("looks")) == looks, output
    assert len(nodes.noted("srun")) == {0: 1, 2: 2, 4: 3}[looks]
    if wanted == "full":
        assert all("--quick" not in line for line in nodes.noted("looks"))
        assert "--ntasks=8 --ntasks-per-node=4 --cpus-per-task=2" in nodes.noted("srun")[1]


def test_a_word_that_is_none_of_ours_ends_the_job(nodes):
    code, output = nodes.run(FUSMAE_PREFLIGHT="yes")
    assert code == 2 and "FUSMAE_PREFLIGHT is 'yes'; give 0, 1 or full" in output
    assert nodes.noted("srun") == [] and nodes.attempts()[-1][3] == "fatal"


def test_an_unfit_node_is_left_out_at_once_and_no_rank_starts(nodes):
    found(nodes, "unresolvable-2", ECC)
    code, output = nodes.run()
    assert code == 0, output
    assert "unresolvable-2: gpu ecc: 3 uncorrected ECC errors" in output
    assert nodes.noted("requeue") == ["requeue 42"] and nodes.noted("ranks") == []
    assert nodes.noted("update") == ["update JobId=42 ExcNodeList=unresolvable-2"]
    assert nodes.attempts() == [["0", "0", "0", "preflight"]]
    assert nodes.ledger()[0][8] == "unresolvable-2"


def test_a_node_that_does_not_answer_is_left_out(nodes):
    (nodes.logs / "answers" / "unresolvable-1").unlink()
    _, output = nodes.run()
    assert "unresolvable-1 gave no answer" in output
    assert nodes.noted("update") == ["update JobId=42 ExcNodeList=unresolvable-1"]


def test_without_enough_other_nodes_the_job_ends_with_their_number(nodes):
    found(nodes, "unresolvable-2", ECC)
    code, output = nodes.run(UP="unresolvable-1 unresolvable-2")
    assert code == 1 and nodes.noted("requeue") == []
    assert "unresolvable-2 is unfit, and without it 1 nodes are up where 2 are needed" in output
    assert nodes.ledger()[0][7:9] == ["preflight", "unresolvable-2"]


def test_what_fails_on_all_nodes_goes_back_without_blaming_one(nodes):
    for node in ("unresolvable-1", "unresolvable-2"):
        found(nodes, node, STORE)
    code, _ = nodes.run()
    assert code == 0 and nodes.noted("requeue") == ["requeue 42"] and nodes.noted("update") == []
    assert nodes.ledger()[0][7:9] == ["preflight", "-"]


def test_three_failed_preflights_end_the_job(nodes):
    found(nodes, "unresolvable-1", STORE)
    found(nodes, "unresolvable-2", STORE)
    for restart in ("0", "1"):
        assert nodes.run(SLURM_RESTART_COUNT=restart)[0] == 0
    code, output = nodes.run(SLURM_RESTART_COUNT="2")
    assert code == 1 and "no step forward in 3 attempts" in output


def test_failed_preflights_and_crashes_are_counted_apart(nodes):
    found(nodes, "unresolvable-2", ECC)
    assert nodes.run()[0] == 0
    found(nodes, "unresolvable-2")
    for restart in ("1", "2"):
        assert nodes.run(**CRASH, SLURM_RESTART_COUNT=restart)[0] == 0
    assert [row[3] for row in nodes.attempts()] == ["preflight", "failed", "failed"]
    code, output = nodes.run(**CRASH, SLURM_RESTART_COUNT="3")
    assert code == 1 and "no step forward in 3 attempts" in output


def test_a_node_that_passes_again_is_not_kept_away_from(nodes):
    found(nodes, "unresolvable-2", ECC)
    nodes.run()
    found(nodes, "unresolvable-2")
    nodes.run(**CRASH, SLURM_RESTART_COUNT="1")
    assert len(nodes.noted("update")) == 1


def test_a_job_that_is_asked_to_stop_meanwhile_goes_back_as_saved(nodes):
    found(nodes, "unresolvable-2", is_stopped=True)
    code, _ = nodes.run()
    assert code == 0 and nodes.noted("requeue") == ["requeue 42"] and nodes.noted("update") == []
    assert nodes.attempts() == [["0", "0", "0", "saved"]]


def test_a_warning_during_the_preflight_is_taken_at_once(nodes):
    (nodes.bin / "scancel").write_text('#!/bin/bash\necho "$*" >> "$LOGS/scancel"\n')
    process = nodes.start(LOOK_WAITS="3")
    deadline = time.monotonic() + 30
    while not nodes.noted("looks"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    while not nodes.noted("scancel"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert nodes.noted("scancel") == ["--signal=USR2 42"] and nodes.noted("ranks") == []
    assert nodes.attempts() == [["0", "0", "0", "saved"]]


def test_nodes_that_hang_are_ended_and_named(nodes, tmp_path):
    tree = tmp_path / "tree"
    for package in snapshot.PACKAGES:
        shutil.copytree(ROOT / package, tree / package)
    script = tree / "slurm" / "preflight.sh"
    script.write_text(script.read_text().replace("PREFLIGHT_LIMIT_S=150", "PREFLIGHT_LIMIT_S=2"))
    found(nodes, "unresolvable-2", is_stopped=True)  # it was ended by the limit, and says so in its last moment
    (nodes.bin / "srun").write_text(SRUN.replace('exec "$@"', ON_BOTH.replace("wait; exit 0", "wait; exec sleep 60")))
    _, output = nodes.run(script=tree / "slurm" / "pretrain.sh")
    assert "unresolvable-2 gave no answer in time" in output
    assert nodes.ledger()[0][7:9] == ["preflight", "unresolvable-2"]
