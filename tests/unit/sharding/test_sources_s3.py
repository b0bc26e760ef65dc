"""Cubes and tables of pairs in an S3 store, built by spawned workers: the same bytes as from a disk."""

import csv

import numpy as np
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from tests.trees import pixels_of, smooth, write_tif
from tests.unit.sharding.conftest import contents, run_build
from tests.unit.sharding.small_cubes import make_cube, write_netcdf, write_zarr, zip_folder

pytestmark = [pytest.mark.s3, pytest.mark.dist]


@pytest.fixture
def bucket(monkeypatch):
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    values = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().makedirs("archive-bucket", exist_ok=True)
    yield "s3://archive-bucket"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_cubes_of_all_forms(bucket, tmp_path):
    here = tmp_path / "cubes"
    attributes = {"s2_level": "L2A"}
    write_zarr(here / "a.zarr", make_cube(), attributes=attributes)
    write_zarr(tmp_path / "b", make_cube(), version=3, attributes=attributes)
    zip_folder(tmp_path / "b", here / "b.zarr.zip")
    write_netcdf(here / "c.nc", make_cube(), attributes=attributes)
    s3fs.S3FileSystem().put(str(here), f"{bucket}/cubes", recursive=True)
    arguments = ["--source", "cube", "--patch-pixels", 48, "--shard-mib", 1]
    for root, out in ((here, "local"), (f"{bucket}/cubes", "remote")):
        ended = run_build(*arguments, "--root", root, "--out", tmp_path / out, "--json", workers=2)
        assert ended.code == 0, ended.err
        assert ended.figures["samples_built"] == 3 * 4 * 2
    assert contents(tmp_path / "remote") == contents(tmp_path / "local")


def test_a_table_here_names_files_there(bucket, tmp_path):
    rng = np.random.default_rng(3)
    scene = smooth(rng, 120)
    for band in ("VV", "VH", "B02"):
        write_tif(tmp_path / "pairs" / f"{band}.tif", pixels_of(band, rng, scene), (500_000, 5_000_000))
    s3fs.S3FileSystem().put(str(tmp_path / "pairs"), f"{bucket}/pairs", recursive=True)
    for name, folder in (("local", "pairs"), ("remote", f"{bucket}/pairs")):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["key", "s1_path", "s2_path", "s1_bands", "s2_bands", "s1_units", "s2_level"])
            writer.writerow(["a", folder, f"{folder}/B02.tif", "VV,VH", "B02", "dB", "L2A"])
        arguments = ["--source", "folder", "--root", tmp_path / f"{name}.csv"]
        ended = run_build(*arguments, "--out", tmp_path / name)
        assert ended.code == 0, ended.err
    local, remote = (
        {n: c for n, c in contents(tmp_path / name).items() if "shards/" in n} for name in ("local", "remote")
    )
    assert len(local) == 1
    assert local == remote
