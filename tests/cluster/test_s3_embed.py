"""Embeddings of a data set in a bucket, written into a bucket, searched there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pipeline.embed.command import main
from pipeline.errors import StorageError
from pipeline.search.command import main as search
from tests.s3server import Fault
from tests.unit.pipeline.exported_runs import make_run
from tests.unit.pipeline.small_shards import Made

pytestmark = pytest.mark.s3
OPTIONS = ("--device", "cpu", "--batch-size", "8", "--shard-samples", "16")


def test_bucket_holds_the_same_bytes_as_a_disk_and_goes_on_where_it_failed(
    url: str, made: Made, server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, made.url)
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

    local, remote = zarr.open_group(str(here), mode="r"), zarr.open_group(there, mode="r")
    assert set(local) == set(remote)
    for name in local:
        equal = local[name][:] == remote[name][:]
        if local[name].dtype.kind == "f":
            equal |= np.isnan(local[name][:]) & np.isnan(remote[name][:])
        assert np.all(equal)
    answers = []
    for store in (str(here), there):
        capsys.readouterr()
        assert search([store, "--key", "pair-0003", "--neighbours", "5", "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out)["neighbours"])
    assert answers[0] == answers[1] and len(answers[0]) == 5


def test_xarray_opens_it_in_a_bucket(made: Made, server: Any, tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray", reason="xarray of requirements-dev.txt is not installed")
    run, there = make_run(tmp_path, made.url), f"{server.bucket('embeddings-xarray')}/a.zarr"
    assert main([str(run), "--out", there, *OPTIONS]) == 0
    with xarray.open_zarr(there) as data:
        stored = zarr.open_group(there, mode="r")["embedding"][:]
        assert data["embedding"].shape == (48, 16) and (data["embedding"].values == stored).all()
