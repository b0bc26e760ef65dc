"""Building into a real S3 server: killed at any moment, under faults, it ends as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sharding import verify
from tests.s3server import Fault
from tests.trees import make_reben
from tests.unit.sharding.conftest import ROOT, contents, run, run_build

pytestmark = [pytest.mark.s3, pytest.mark.chaos]
OPTIONS = ("--shard-mib", "1", "--codec", "none")
IN_CI, ALL = range(5), range(20)


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("reben")
    make_reben(root, 60)
    return root


@pytest.fixture(scope="module")
def expected(archive, tmp_path_factory) -> dict[str, bytes]:
    """Every file but build.json of the build that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert run_build("--source", "reben", "--root", archive, *OPTIONS, "--out", out).code == 0
    return contents(out)


def start(archive: Path, url: str, s3, workers: int = 2) -> subprocess.Popen:
    command = [sys.executable, "-m", "sharding.build", "--source", "reben", "--root", str(archive), *OPTIONS]
    return subprocess.Popen(
        [*command, "--out", url, "--workers", str(workers)],
        cwd=ROOT,
        env={**os.environ, **s3.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, timeout_s: float = 300) -> tuple[int, str]:
    """Exit code, and what it said on stderr."""
    _, told = process.communicate(timeout=timeout_s)
    return process.returncode, told


def stored(s3, name: str) -> dict[str, bytes]:
    objects = s3.objects(name, "set/")
    objects.pop("build.json", None)
    return objects


@pytest.fixture(scope="module")
def undisturbed_s(archive, s3_server) -> float:
    """How long a whole build takes here."""
    url = s3_server.bucket("undisturbed")
    began = time.monotonic()
    code, told = finish(start(archive, f"{url}/set", s3_server))
    assert code == 0, told
    return time.monotonic() - began


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=() if seed in IN_CI else pytest.mark.slow, id=f"seed{seed}") for seed in ALL]
)
def test_killed_at_a_random_moment_it_goes_on_to_the_same_bytes(seed, archive, expected, undisturbed_s, s3):
    """Two kills at moments drawn from the whole length of a build, then the command to its end."""
    name = f"killed-{seed}"
    url = f"{s3.bucket(name)}/set"
    moments = random.Random(seed)
    for _ in range(2):
        process = start(archive, url, s3)
        deadline = time.monotonic() + moments.uniform(0.1, 1.0) * undisturbed_s
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if "set/manifest.json" in s3.settled_keys(name, "set/"):
            break
        assert run(verify.main, url).code == 1  # no reader takes it for a data set
    code, told = finish(start(archive, url, s3))
    assert code == 0, told
    assert stored(s3, name) == expected
    assert s3.unfinished_uploads(name) == []
    assert run(verify.main, url).code == 0


FAULTS = {
    "a storm of 503 while shards are sent": [Fault(do="503", method="PUT", path=r"/shards/", times=25)],
    "a storm of 503 on everything": [Fault(do="503", method=m, times=12) for m in ("PUT", "GET", "HEAD")],
    "internal errors": [Fault(do="500", method=m, path=r"/(shards|index|\.build)/", times=6) for m in ("PUT", "HEAD")],
    "a hang": [Fault(do="hang", method="PUT", path=r"/index/", times=1, amount=45)],
    "answers that are cut": [Fault(do="cut", method="GET", path=r"\.build/", times=3, amount=100)],
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", FAULTS)
def test_under_faults_it_ends_with_the_same_bytes(name, archive, expected, s3):
    bucket = f"faults-{list(FAULTS).index(name)}"
    url = f"{s3.bucket(bucket)}/set"
    s3.faults.set(FAULTS[name])
    code, told = finish(start(archive, url, s3), timeout_s=400)
    seen = s3.faults.seen()
    s3.faults.set([])
    assert code == 0, told
    assert {(fault.do, fault.method) for fault in FAULTS[name]} == {(line["do"], line["method"]) for line in seen}
    assert stored(s3, bucket) == expected


def test_a_bit_flipped_in_the_plan_is_never_built_from(archive, expected, s3):
    """Half of the archive is built when what a worker reads of the plan is changed on its way."""
    bucket = "flipped"
    url = f"{s3.bucket(bucket)}/set"
    s3.faults.set([Fault(do="flip", method="GET", path=r"plan-.*arrow", times=1, amount=900)])
    code, told = finish(start(archive, url, s3, workers=1))
    assert s3.faults.seen()
    s3.faults.set([])
    if code:
        assert told.startswith("error: ") and len(told.splitlines()) == 1, told
        assert finish(start(archive, url, s3, workers=1))[0] == 0
    assert stored(s3, bucket) == expected


def test_a_bit_flipped_when_a_shard_is_verified_is_told(archive, s3):
    url = f"{s3.bucket('verified')}/set"
    assert finish(start(archive, url, s3, workers=1))[0] == 0
    s3.faults.set([Fault(do="flip", method="GET", path=r"/shards/train-000000\.tar", amount=5000)])
    ended = run(verify.main, url)
    assert s3.faults.seen()
    assert ended.code == 1
    assert "shards/train-000000.tar: its SHA-256 is not the manifest's" in ended.out
    s3.faults.set([])
    assert run(verify.main, url).code == 0


def test_wrong_credentials_are_one_sentence(archive, s3):
    url = f"{s3.bucket('locked')}/set"
    process = subprocess.run(
        [sys.executable, "-m", "sharding.build", "--source", "reben", "--root", str(archive), "--out", url],
        cwd=ROOT,
        env={**os.environ, **s3.environment, "AWS_SECRET_ACCESS_KEY": "wrong"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 1
    assert process.stderr.startswith(f"error: cannot look for {url}/manifest.json: "), process.stderr
    assert len(process.stderr.splitlines()) == 1


def test_a_bucket_that_is_not_there_is_one_sentence(archive, s3):
    code, told = finish(start(archive, "s3://no-such-bucket/set", s3, workers=1))
    assert code == 1
    assert told.startswith("error: ") and "no-such-bucket" in told and len(told.splitlines()) == 1, told
