"""Embeddings of a data set in a bucket, written into a bucket, searched there."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.embed.command import main
from pipeline.errors import StorageError
from pipeline.search.command import main as search
from sharding.store import Store
from tests.s3server import Fault
from tests.unit.pipeline.exported_runs import make_run
from tests.unit.pipeline.small_shards import Made

pytestmark = pytest.mark.s3
OPTIONS = ("--device", "cpu", "--batch-size", "8", "--shard-samples", "16")
READ = """
import hashlib, sys, xarray, zarr
group = zarr.open_group(sys.argv[1], mode="r")
with xarray.open_zarr(sys.argv[1]) as data:
    assert list(data["embedding"]["key"].values) == list(group["key"][:])
    for values in (group["embedding"][:], data["embedding"].values):
        print(hashlib.sha256(values.tobytes()).hexdigest())
"""
"""In a process of its own: the client that zarr opens in its own loop is not ours to close."""


@pytest.fixture
def run(made: Made, tmp_path: Path) -> Path:
    return make_run(tmp_path, made.url)


def read_by_others(url: str) -> list[str]:
    ran = subprocess.run([sys.executable, "-c", READ, url], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


def test_bucket_holds_the_same_bytes_as_a_disk_and_goes_on_where_it_failed(
    run: Path, url: str, server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = tmp_path / "a.zarr", f"{server.bucket('embeddings')}/a.zarr"
    assert main([str(run), "--out", str(here), *OPTIONS]) == 0
    server.faults.set([Fault(do="denied", method="PUT", path="key/c/1", times=1000)])
    with pytest.raises(StorageError, match="key/c/1"):
        main([str(run), f"data.url={url}", "--out", there, *OPTIONS])
    server.faults.set([])
    capsys.readouterr()
    assert main([str(run), f"data.url={url}", "--out", there, *OPTIONS]) == 0
    assert "2 of 3 shards written" in capsys.readouterr().out
    assert main(["--verify", "--out", there]) == 0
    local, remote = Store(str(here)), Store(there)
    assert local.files() == remote.files()
    assert all(local.read(path) == remote.read(path) for path in local.files() if path != "zarr.json")


def test_search_in_a_bucket_under_faults_is_that_of_a_disk(
    run: Path, server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sharding.store_retry._LONGEST_WAIT_S", 0.3)
    answers = []
    for out in (str(tmp_path / "a.zarr"), f"{server.bucket('embeddings-searched')}/a.zarr"):
        assert main([str(run), "--out", out, *OPTIONS]) == 0
        server.faults.set([Fault(do="503", method="GET", path="embedding/c", times=4)])
        capsys.readouterr()
        assert search([out, "--key", "pair-0003", "--neighbours", "5", "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out)["neighbours"])
    assert server.faults.seen()
    assert answers[0] == answers[1] and len(answers[0]) == 5


def test_zarr_and_xarray_read_it_in_a_bucket(run: Path, server: Any, tmp_path: Path) -> None:
    pytest.importorskip("xarray", reason="xarray of requirements-dev.txt is not installed")
    here, there = str(tmp_path / "a.zarr"), f"{server.bucket('embeddings-read')}/a.zarr"
    for out in (here, there):
        assert main([str(run), "--out", out, *OPTIONS]) == 0
    assert len({*read_by_others(here), *read_by_others(there)}) == 1
