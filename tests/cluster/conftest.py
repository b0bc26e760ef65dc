"""What the tests against real servers share."""

import pytest

from tests.s3server import S3Server, why_not_here


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """OpenStack Swift with s3api; the faults are a test's own to set."""
    reason = why_not_here()
    if reason:
        pytest.skip(reason)
    with S3Server(tmp_path_factory.mktemp("swift")) as server:
        yield server


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
