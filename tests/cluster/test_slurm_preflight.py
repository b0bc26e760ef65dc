"""The preflight on a real cluster, with the real trainer: an unfit node is left out at once, and the run comes through.

A node is made unfit by a hook that knows its name: an `nvidia-smi` on PATH that tells of ECC errors, or a Python that
cannot import a package.
"""

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from tests.cluster.conftest import NewLab
from tests.cluster.slurm_runs import ClusterRun
from tests.dist.conftest import CONFIG

pytestmark = [pytest.mark.cluster, pytest.mark.chaos, pytest.mark.timeout(300)]

SMI = """#!/bin/sh
case "$*" in *--query-remapped-rows*) exit 2 ;; esac
[ "$SLURMD_NODENAME" = n2 ] && ecc=3 || ecc=0
for gpu in 0 1; do echo "$gpu, GPU-$SLURMD_NODENAME-$gpu, 4, 81559, 0, 31, $ecc, [N/A], Disabled"; done
"""


@pytest.fixture
def run(new_lab: NewLab, best_mode: str, dataset: str, tmp_path: Path) -> ClusterRun:
    """A short run on two of three nodes, of which n2 is unfit."""
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.replace("steps: 14", "steps: 4") + f"data: {{url: {dataset}, threads: 1}}\n")
    return ClusterRun(new_lab(nodes=3, mode=best_mode, gpus=2), tmp_path / "run", config)


def answer(run: ClusterRun, node: str, restart: int = 0) -> dict[str, str]:
    """By check, the states that a node found."""
    path = run.dir / "preflight" / f"{run.job_id}-{restart}" / f"{node}.json"
    return {check["name"]: check["state"] for check in json.loads(path.read_text())["checks"]}


def passes(run: ClusterRun) -> None:
    """Until the second attempt comes to start its ranks, which end with the lab."""
    run.lab.wait(lambda: "preflight passed" in run.said(), "it passes", timeout_s=240)
    assert [attempt["end"] for attempt in run.attempts()] == ["preflight", "interrupted"], run.said()
    assert run.attempts()[1]["nodes"] == "n[1,3]"


@pytest.mark.slow
def test_a_node_with_ecc_errors_is_left_out_at_once_and_the_run_is_done_on_others(
    run: ClusterRun, tmp_path: Path
) -> None:
    path = tmp_path / "nvidia-smi"
    path.write_text(SMI)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    run.overrides = ("engine.device=auto",)
    gpus = ("--gpus-per-node=2", "--ntasks-per-node=1")
    run.submit(*gpus, PATH=f"{tmp_path}:{os.environ['PATH']}")
    run.wait_end()
    assert run.ends() == ["preflight", "done"], run.said()
    assert [attempt["suspect"] for attempt in run.attempts()] == ["n2", "-"]
    assert [attempt["nodes"] for attempt in run.attempts()] == ["n[1-2]", "n[1,3]"]
    assert run.lab.job(run.job_id)["ExcNodeList"] == "n2"
    assert "n2: gpu ecc: GPU 0: 3 uncorrected ECC errors; GPU 1: 3 uncorrected ECC errors" in run.said()
    assert answer(run, "n2")["gpu ecc"] == "failed" and answer(run, "n1")["gpus"] == "ok"
    assert answer(run, "n3", restart=1)["gpu ecc"] == "ok"
    assert (run.dir / "preflight" / "unfit").read_text() == "n2\n"


@pytest.mark.slow
def test_a_full_preflight_leaves_out_the_node_that_cannot_import_and_reduces_on_the_others(
    run: ClusterRun, tmp_path: Path
) -> None:
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import os, sys\nif os.environ.get('SLURMD_NODENAME') == 'n2': sys.modules['xformers'] = None\n"
    )
    run.submit(FUSMAE_PREFLIGHT="full", PYTHONPATH=str(hook))
    passes(run)
    assert run.attempts()[0]["suspect"] == "n2" and answer(run, "n2")["imports"] == "failed"
    probe = json.loads((run.dir / "preflight" / f"{run.job_id}-1" / "probe.json").read_text())
    assert [rank["host"] for rank in probe["ranks"]] == ["n1", "n3"] and probe["busbw_gb_s"] > 0
    assert "2 ranks reduce 64 MiB at" in run.said()


@pytest.mark.slow
def test_a_node_whose_python_does_not_start_is_left_out(run: ClusterRun, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$SLURMD_NODENAME" = n2 ] && exit 127\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    run.submit(FUSMAE_PYTHON=str(python))
    passes(run)
    assert run.attempts()[0]["suspect"] == "n2"
    assert "n2 gave no answer" in run.said()
