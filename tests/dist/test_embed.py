"""Embeddings are the same on any number of ranks and behind any kill, byte for byte."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.embed.command import main
from sharding.dataset import open_dataset
from sharding.existing import metadata_of
from tests.dist.conftest import ROOT
from tests.unit.pipeline.exported_runs import make_run

pytestmark = pytest.mark.dist
MODEL = {"image_size": 120, "patch_size": 30}
OPTIONS = ("--device", "cpu", "--batch-size", "2", "--shard-samples", "2")
"""27 samples: 25 of the split train, 2 of test; one shard holds samples of both."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, dataset: str) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), dataset, MODEL)


@pytest.fixture(scope="module")
def straight(run: Path) -> Path:
    """On one rank, undisturbed."""
    out = run.parent / "straight.zarr"
    assert main([str(run), "--out", str(out), *OPTIONS]) == 0
    return out


def files_of(out: Path) -> dict[str, bytes]:
    """All but the root, whose attributes name the command."""
    found = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    del found["zarr.json"]
    return found


def started(launcher: list[str], run: Path, out: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, "pipeline.embed", str(run), "--out", str(out), *OPTIONS, *arguments],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_samples_have_their_places_and_dates(straight: Path, dataset: str) -> None:
    group = zarr.open_group(str(straight), mode="r")
    store, manifest = open_dataset(dataset)
    lines = [line for _, lines in metadata_of(store, manifest) for line in lines]
    assert list(group["key"][:]) == [line["key"] for line in lines]
    assert list(group["split"][:]) == ["train"] * 25 + ["test"] * 2
    assert group["lon"][:].tolist() == [line["lon"] for line in lines]
    assert group["lat"][:].tolist() == [line["lat"] for line in lines]
    assert list(group["crs"][:]) == [line["crs"] for line in lines]
    assert all(str(crs).startswith("EPSG:") for crs in group["crs"][:])
    dates = np.array([line["dates"]["s2"] for line in lines], "datetime64[s]")
    assert (group["date_s2"][:].astype("datetime64[s]") == dates).all()


def test_one_split_is_the_same_part(run: Path, straight: Path) -> None:
    out = run.parent / "test.zarr"
    assert main([str(run), "--out", str(out), "--split", "test", *OPTIONS]) == 0
    group, all_of_it = (zarr.open_group(str(path), mode="r") for path in (out, straight))
    assert list(group["key"][:]) == list(all_of_it["key"][25:])
    assert np.allclose(group["embedding"][:], all_of_it["embedding"][25:], rtol=1e-5, atol=1e-6)


def test_two_processes_write_the_same(run: Path, straight: Path) -> None:
    out = run.parent / "two.zarr"
    process = started([], run, out, "--num-processes", "2")
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and "14 of 14 shards written on 2 ranks" in said, said
    assert files_of(out) == files_of(straight)


@pytest.mark.slow
def test_torchrun_with_three_ranks_writes_the_same(run: Path, straight: Path) -> None:
    out = run.parent / "three.zarr"
    process = started(["torch.distributed.run", "--standalone", "--nproc-per-node", "3", "-m"], run, out)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and "14 of 14 shards written on 3 ranks" in said, said
    assert files_of(out) == files_of(straight)


@pytest.mark.chaos
def test_killed_at_any_moment_it_goes_on_and_writes_nothing_twice(run: Path, straight: Path) -> None:
    out = run.parent / "killed.zarr"
    process = started([], run, out, "--num-processes", "2")
    deadline = time.monotonic() + 240
    while not list((out / "commits").glob("0*.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    ranks_are_gone(out)

    finished = sorted((out / "commits").glob("0*.json"))
    assert 0 < len(finished) < 14, "the kill came too late to show anything"
    before = {path: path.stat().st_mtime_ns for path in finished}
    shards = [int(path.stem) for path in finished]
    kept = [out / name / "c" / str(shard) for shard in shards for name in ("key", "lon", "split")]
    kept += [out / "embedding" / "c" / str(shard) / "0" for shard in shards]
    before |= {path: path.stat().st_mtime_ns for path in kept}
    assert main([str(run), "--out", str(out), *OPTIONS]) == 0
    assert files_of(out) == files_of(straight)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert main(["--verify", "--out", str(out)]) == 0


def ranks_are_gone(out: Path) -> None:
    """Wait until no process has the store in its command: ranks end with their launcher."""
    deadline = time.monotonic() + 60
    while any(str(out).encode() in line for line in commands()):
        assert time.monotonic() < deadline, "the ranks outlived their launcher"
        time.sleep(0.02)


def commands() -> list[bytes]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes())
        except OSError:
            continue  # it has ended meanwhile
    return found
