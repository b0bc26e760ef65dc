"""Into an S3 server and out of it: the same bytes as on a disk, with spawned workers too."""

import pytest
import s3fs
from moto.server import ThreadedMotoServer

from sharding import inspect, verify
from tests.unit.sharding.conftest import contents, run, run_build

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
    s3fs.S3FileSystem().mkdir("sharding-bucket")
    yield "s3://sharding-bucket"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_from_s3_into_s3(bucket, v1, tmp_path):
    fs = s3fs.S3FileSystem()
    fs.put(str(v1.root), f"{bucket}/archive", recursive=True)
    out = f"{bucket}/built"
    arguments = ["--source", "bigearthnet-v1", "--root", f"{bucket}/archive", "--out", out]
    ended = run_build(*arguments, workers=2)
    assert ended.code == 0, ended.err
    assert run_build(*v1.arguments, "--out", tmp_path / "local").code == 0
    fs.invalidate_cache()
    prefix = out.removeprefix("s3://") + "/"
    found = {path.removeprefix(prefix): fs.cat_file(path) for path in fs.find(out) if not path.endswith("build.json")}
    assert found == contents(tmp_path / "local")
    assert run_build(*arguments).out == f"{out} is finished already; nothing to do\n"
    assert run(verify.main, out).code == 0
    assert "samples      7" in run(inspect.main, "summary", out).out
    assert run(verify.main, f"{bucket}/nothing").code == 1
    assert run_build("--source", "reben", "--root", f"{bucket}/nothing", "--out", f"{bucket}/x").code == 2
