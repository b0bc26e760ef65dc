"""From an archive to evaluated weights on a cluster and a bucket, with a node lost on the way.

`sharding.build --slurm` to s3://, `sbatch slurm/pretrain.sh` over two nodes that stream from there into ZeRO training
and save there, a node that goes off, the requeued job, `pipeline.evaluate`: the weights are those of a run on one
machine, from a local build, that nothing disturbed.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.checkpoint.bucket import BucketShelf
from sharding.store import Store
from tests.cluster.conftest import NewLab
from tests.cluster.slurm_runs import EVERY, FAULT_AT, STEPS, ClusterRun, recovery
from tests.cluster.slurmlab import Lab
from tests.dist.conftest import CONFIG, ROOT, Run, new_run
from tests.s3server import S3Server, why_not_here

pytestmark = [pytest.mark.cluster, pytest.mark.s3, pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(600)]
__all__ = ["new_run"]
TRAINED = ("train.steps=" + str(STEPS), "checkpoint.every=" + str(EVERY))


@pytest.fixture
def lab(new_lab: NewLab, best_mode: str) -> Lab:
    """Four nodes: two train, one may be lost."""
    return new_lab(nodes=4, mode=best_mode)


@pytest.fixture
def bucket_server(lab: Lab, tmp_path: Path) -> Iterator[S3Server]:
    """A server that the nodes can reach, which have a network of their own."""
    if reason := why_not_here():
        pytest.skip(reason)
    with S3Server(tmp_path / "swift", lab.network.controller if lab.network else "127.0.0.1") as server:
        yield server


@pytest.fixture
def undisturbed(new_run: Callable[..., Run]) -> Run:
    """On this machine, from a disk."""
    run = new_run("undisturbed", *TRAINED)
    run.finish()
    return run


def test_archive_to_evaluated_weights_with_a_node_lost(
    lab: Lab,
    bucket_server: S3Server,
    undisturbed: Run,
    dataset: str,
    shared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in bucket_server.environment.items():
        monkeypatch.setenv(name, value)
    bucket = bucket_server.bucket("centre")
    data, checkpoints = f"{bucket}/pairs", f"{bucket}/runs/first"

    # The archive becomes a data set in the bucket, by a job array.
    archive = Path(dataset).parent
    source = ["--source", "bigearthnet-v1", "--root", archive / "tree", "--splits", archive / "splits.csv"]
    array = ["--slurm", "2", "--workers", "1", "--slurm-logs", shared / "logs"]
    _run(lab, "sharding.build", *source, "--out", data, *array)
    states = lab.run("squeue", "--noheader", "--array", "--states=all", "-o", "%T").split()
    assert states == ["COMPLETED"] * 2
    built = json.loads(Store(data).read("manifest.json"))
    assert built["fingerprint"] == json.loads((Path(dataset) / "manifest.json").read_text())["fingerprint"]

    # Two nodes train from it; one of them goes off.
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG + f"data: {{url: '{data}', threads: 1}}\n")
    staging = f"checkpoint.staging={tmp_path / 'staging'}"
    run = ClusterRun(lab, tmp_path / "run", config, (*TRAINED, f"checkpoint.url={checkpoints}", staging))
    run.submit()
    run.wait_step(FAULT_AT)
    lost = lab.nodes_of(run.job_id)[1]
    fault = time.time()
    lab.node_down(lost)
    run.wait_end()
    run.is_closed = True
    assert len(run.ends()) == 2 and run.ends()[-1] == "done", run.said()[-6000:]
    cost = recovery(run, fault)
    print(f"| whole_card | {cost.to_next_step_s:.1f} s | {cost.steps_lost} |")
    assert f"from {checkpoints}/step-" in run.said() and 0 <= cost.steps_lost < 2 * EVERY
    assert lost not in lab.run("scontrol", "show", "hostnames", run.attempts()[1]["nodes"]).split()
    assert not (run.dir / "checkpoints").exists()

    # What it came to is what came of the undisturbed run, and can be evaluated from the bucket.
    shelf = BucketShelf(Store(checkpoints))
    newest = shelf.names()[0]
    assert newest == f"step-{STEPS:08d}"
    assert (shelf.fetch(newest, tmp_path / "fetched") / "model.safetensors").read_bytes() == undisturbed.weights()
    told = lab.run(
        *("srun", "-N1", "-n1", sys.executable, "-m", "pipeline.evaluate", "knn", str(run.dir)),
        *("knn.neighbours=3", "data.threads=1", "--json"),
    )
    result = json.loads(told[told.index("{") :])
    assert result["step"] == STEPS and result["data_fingerprint"] == built["fingerprint"]
    assert {row["modalities"] for row in result["results"]} == {"s1", "s2", "s1+s2"}


def _run(lab: Lab, module: str, *arguments: object) -> None:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=lab.environ, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
