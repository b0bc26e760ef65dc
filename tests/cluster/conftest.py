"""What the tests against real servers share."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import slurmlab
from tests.cluster.slurmlab import Lab, LabConfig
from tests.dist.conftest import ROOT
from tests.dist.conftest import dataset as dataset  # a fixture
from tests.s3server import S3Server, why_not_here

NewLab = Callable[..., Lab]


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """OpenStack Swift with s3api; the faults are a test's own to set."""
    reason = why_not_here()
    if reason:
        pytest.skip(reason)
    with S3Server(tmp_path_factory.mktemp("swift")) as server:
        yield server


@pytest.fixture(scope="session")
def slurm() -> None:
    """A machine that has SLURM."""
    if reason := slurmlab.why_not_here():
        pytest.skip(reason)


@pytest.fixture
def new_lab(slurm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewLab]:
    """Makes SLURM clusters: `new_lab(nodes=4)`; all are down at the end of the test, and nothing of them is left."""
    labs: list[Lab] = []

    def make(**settings: Any) -> Lab:
        lab = Lab(tmp_path_factory.mktemp("lab"), LabConfig(**settings))
        labs.append(lab)
        return lab.__enter__()

    yield make
    for lab in labs:
        lab.down()
    left = [pid for lab in labs for pid in lab.processes()]
    assert not left, f"processes {left} outlived their lab"


@pytest.fixture(scope="session")
def best_mode() -> str:
    """`netns` where this machine allows it: nodes with names and addresses of their own."""
    return "netns" if slurmlab.can_make_networks() else "ports"


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder outside /tmp, which `--slurm` takes for a node's own and refuses."""
    inside = next((p for p in (ROOT, Path.home()) if not p.is_relative_to(tempfile.gettempdir())), Path("/var/lib"))
    folder = Path(tempfile.mkdtemp(prefix=".shared-", dir=inside))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def s3(s3_server, monkeypatch):
    """The server without faults, and the variables by which fsspec finds it."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    s3_server.faults.set([])
    yield s3_server
    s3_server.faults.set([])
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """48 pairs in six shards of the same size, on a disk."""
    from tests.unit.pipeline.small_shards import make

    return make(tmp_path_factory.mktemp("made") / "pairs", (8,) * 6, codec="none")


@pytest.fixture(scope="session")
def expected(made):
    """The batches of the local copy."""
    from tests.cluster.remote_pairs import BATCHES, opened
    from tests.unit.pipeline.small_shards import take

    with opened(made.url) as stream:
        return take(stream, BATCHES)


@pytest.fixture(scope="session")
def uploaded(made, s3_server) -> str:
    """The same pairs in a bucket."""
    from tests.cluster.remote_pairs import BUCKET, PREFIX

    url, client = s3_server.bucket(BUCKET), s3_server.client()
    for path in made.root.rglob("*"):
        if path.is_file():
            key = f"{PREFIX}/{path.relative_to(made.root)}"
            client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
    return f"{url}/{PREFIX}"


@pytest.fixture(scope="module")
def _kept_connections():
    """s3fs's clients are made once for a module: half a second of CPU each."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def server(s3_server, _kept_connections, monkeypatch):
    """As `s3`, but connections last as long as the module."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3_server.faults.set([])
    yield s3_server
    s3_server.faults.set([])


@pytest.fixture
def url(uploaded, server, monkeypatch) -> str:
    """The pairs in the bucket; tries follow each other soon."""
    monkeypatch.setattr("sharding.store_retry._LONGEST_WAIT_S", 0.3)
    return uploaded


@pytest.fixture(params=["fsspec", "obstore"])
def client(request) -> str:
    """What talks to the store."""
    return request.param


@pytest.fixture
def short_timeouts(monkeypatch) -> None:
    """As `FSSPEC_S3='{"config_kwargs": {"read_timeout": 3}}'` sets them."""
    import fsspec

    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 3}})
