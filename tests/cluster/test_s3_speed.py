"""The preflight's look at a real S3 server."""

import pytest

from pipeline.store_speed import checkpoint_speed, data_set_speed
from slurm.node_checks import check_store
from tests.s3server import Fault

pytestmark = [pytest.mark.s3, pytest.mark.timeout(120)]


def test_a_data_set_in_a_bucket_tells_its_speed(url):
    check = check_store("data.url", lambda: data_set_speed(url, 3), 0.001)
    assert check.state == "ok" and check.figures["read_bytes"] > 0
    assert "first byte after" in check.measured and "MB/s read" in check.measured


def test_where_checkpoints_go_is_written_read_and_cleaned(s3_server, server):
    bucket = s3_server.bucket("speed")
    check = check_store("checkpoint.url", lambda: checkpoint_speed(f"{bucket}/run", "n1"), 0.001)
    assert check.state == "ok" and check.figures["write_mb_s"] > 0
    assert s3_server.keys("speed") == []


def test_a_store_that_fails_is_not_asked_for_two_minutes(url, server):
    server.faults.set([Fault(do="500", method="HEAD", path="/manifest.json$", times=1000)])
    check = check_store("data.url", lambda: data_set_speed(url), 0.001)
    assert server.faults.seen() and check.state == "failed" and "manifest.json" in check.measured
