"""The stream from a real S3 server when the node fails: credentials, cache disk, a slow network, a killed rank."""

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import s3fs

from pipeline.stream import obstore_ranges
from sharding.errors import StorageError
from tests.cluster.remote_pairs import BATCH, BATCHES, SHARDS, digest, flipped, opened, streamed
from tests.s3server import Fault, S3Server
from tests.unit.pipeline.small_shards import assert_equal, join

pytestmark = [pytest.mark.s3, pytest.mark.chaos, pytest.mark.timeout(120)]
ROOT = Path(__file__).parents[2]


# Credentials that expire


class Credentials:
    """The file that a session of temporary credentials is written to."""

    def __init__(self, path: Path, server: S3Server) -> None:
        self.path = path
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        self.key, self.secret = (server.environment[name] for name in names)

    def write(self, token: str) -> None:
        partial = self.path.with_suffix(".partial")
        lines = ("[default]", f"aws_access_key_id={self.key}", f"aws_secret_access_key={self.secret}")
        partial.write_text("\n".join((*lines, f"aws_session_token={token}", "")))
        partial.replace(self.path)

    @contextlib.contextmanager
    def renewed_when_refused(self, server: S3Server):
        """New ones are written only when the old ones have been refused."""
        ended = threading.Event()

        def write() -> None:
            while not server.faults.seen():
                if ended.wait(0.02):
                    return
            self.write("new")

        thread = threading.Thread(target=write)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@pytest.fixture
def credentials(url, server, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    found = Credentials(tmp_path / "credentials", server)
    found.write("old")
    s3fs.S3FileSystem.clear_instance_cache()
    yield found
    s3fs.S3FileSystem.clear_instance_cache()


def expired(answer: str) -> list[Fault]:
    """From the third shard on the old ones are refused, for HEAD as well."""
    refused = {"do": answer, "path": SHARDS, "token": "^old$", "times": 10**6}
    return [Fault(skip=2, **refused), Fault(method="HEAD", **refused)]


@pytest.mark.parametrize("answer", ["expired", "expired400", "denied"])
def test_credentials_that_expire_are_read_again(url, client, expected, server, credentials, answer):
    server.faults.set(expired(answer))
    with credentials.renewed_when_refused(server):
        told = streamed(url, client, expected)
    assert server.faults.seen()
    assert 1 <= told.retries <= len(server.faults.seen())
    assert told.requests == 6


def test_credentials_that_are_not_read_again_end_the_stream(url, client, expected, server, credentials, monkeypatch):
    monkeypatch.setattr("sharding.credentials.WAITS_S", ())
    server.faults.set(expired("expired"))
    with credentials.renewed_when_refused(server), pytest.raises(StorageError, match="renew the credentials"):
        streamed(url, client, expected)


def test_credentials_that_stay_bad_are_told_within_seconds(url, client, expected, server, credentials):
    server.faults.set(expired("denied"))
    began = time.monotonic()
    with pytest.raises(StorageError, match=rf"cannot read {url}/shards/.*; renew the credentials") as raised:
        streamed(url, client, expected)
    assert time.monotonic() - began < 20
    assert len(str(raised.value).splitlines()) == 1
    assert len(server.faults.seen()) < 100


def test_obstore_is_given_credentials_once_and_not_for_each_range(url, expected, monkeypatch):
    asked, real = [], obstore_ranges._credentials
    monkeypatch.setattr(obstore_ranges, "_credentials", lambda *a: asked.append(a) or real(*a))
    assert streamed(url, "obstore", expected).requests == 6
    assert len(asked) == 1


def test_without_credentials_it_is_told_within_seconds(url, credentials, monkeypatch):
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    credentials.path.unlink()
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"redentials.*; renew the credentials"):
        opened(url, "fsspec")
    assert time.monotonic() - began < 20


# The node around the stream


def test_a_full_cache_disk_costs_fetches_and_nothing_else(url, client, expected, tmp_path, monkeypatch, capsys):
    pwrite = os.pwrite

    def refuse(descriptor, data, place):
        if len(data) > 1000:  # a range; less is the account
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data, place)

    monkeypatch.setattr(os, "pwrite", refuse)
    told = streamed(url, client, expected, cache_dir=str(tmp_path / "cache"))
    assert told.retries == told.corrupt == 0
    assert told.requests >= 6
    assert "No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.range*"))


def test_a_damaged_cache_is_fetched_again(url, expected, tmp_path):
    cache = tmp_path / "cache"
    streamed(url, "fsspec", expected, cache_dir=str(cache))
    ranges = sorted(cache.rglob("*.range"))
    assert len(ranges) > 3
    ranges[0].write_bytes(ranges[0].read_bytes()[:-100])
    ranges[1].write_bytes(flipped(ranges[1].read_bytes(), 500))
    ranges[2].unlink()
    told = streamed(url, "fsspec", expected, cache_dir=str(cache))
    assert told.requests == 3
    assert (told.corrupt, told.replaced) == (1, 0)
    told = streamed(url, "fsspec", expected, cache_dir=str(cache))
    assert (told.requests, told.corrupt) == (0, 0)


@pytest.mark.usefixtures("short_timeouts")
def test_a_slow_node_gets_the_same_batches_and_nobody_times_out(url, client, expected, server, monkeypatch):
    told = streamed(url, client, expected)
    bytes_per_s = min(told.bytes_fetched / told.fetch_s, 300_000) / 20
    server.faults.set([Fault(do="slow", path=SHARDS, token="^slow$", amount=bytes_per_s, times=10**6)])
    with contextlib.ExitStack() as stack:
        ranks, iterators = [], []
        for rank, token in enumerate(("fast", "slow")):
            monkeypatch.setenv("AWS_SESSION_TOKEN", token)
            s3fs.S3FileSystem.clear_instance_cache()
            ranks.append(stack.enter_context(opened(url, client, rank, 2)))
            iterators.append(iter(ranks[-1]))
            assert_equal(next(iterators[-1]), expected[0].split(2)[rank])
        for other in expected[1:]:
            assert_equal(join([next(iterator) for iterator in iterators]), other)
        fast, slow = (stream.instruments() for stream in ranks)
    assert server.faults.seen()
    assert fast.retries == slow.retries == 0
    assert slow.fetch_s >= 0.9 * slow.bytes_fetched / bytes_per_s
    assert slow.fetch_s / slow.requests > 3  # longer than the timeout: what comes slowly still comes
    s3fs.S3FileSystem.clear_instance_cache()


RANK = """
import sys
from itertools import islice
from pipeline.stream import node_cache
from tests.cluster.remote_pairs import digest, opened
url, cache, rank, seen, num = sys.argv[1:]
real = node_cache.pauses
def pauses(*limits):
    for number, _ in enumerate(real(*limits)):
        if number == 1:
            print("waits", flush=True)
        yield
node_cache.pauses = pauses
with opened(url, "fsspec", int(rank), 2, cache_dir=cache) as stream:
    stream.load_state_dict(stream.state_dict() | {"samples_seen": int(seen)})
    for batch in islice(stream, int(num)):
        print(digest(batch), flush=True)
"""
"""Says `waits` when another process is fetching what it wants, and the digest of each batch."""


@contextlib.contextmanager
def started_rank(url: str, cache: Path, rank: int, seen: int = 0):
    num = str(BATCHES - seen // BATCH)
    with subprocess.Popen(
        [sys.executable, "-c", RANK, url, str(cache), str(rank), str(seen), num],
        cwd=ROOT,
        env={**os.environ, "AWS_SESSION_TOKEN": f"rank{rank}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def batches_of(said: str) -> list[str]:
    return [line for line in said.splitlines() if re.fullmatch("[0-9a-f]{64}", line)]


def ended(process: subprocess.Popen) -> list[str]:
    said = process.stdout.read()
    assert process.wait() == 0, said
    return batches_of(said)


def test_a_rank_killed_while_another_waits_for_its_fetch_hinders_nobody(url, expected, server, tmp_path):
    in_memory = set(os.listdir("/dev/shm"))
    halves = [[digest(part) for part in batch.split(2)] for batch in expected]
    cache = tmp_path / "cache"
    # Rank 1 hangs with the locks of nearly all ranges in its hands.
    server.faults.set([Fault(do="hang", path=SHARDS, token="^rank1$", skip=1, times=10**6, amount=60)])
    with started_rank(url, cache, 1) as killed:
        while len(server.faults.seen()) < 3:
            assert killed.poll() is None, killed.stdout.read()
            time.sleep(0.02)
        with started_rank(url, cache, 0) as other:
            said = []
            while "waits\n" not in said:
                said.append(other.stdout.readline())
                assert said[-1], said
            killed.kill()
            done = batches_of(killed.stdout.read())
            assert killed.wait() == -signal.SIGKILL
            assert len(done) < BATCHES
            assert batches_of("".join(said)) + ended(other) == [half[0] for half in halves]
    server.faults.set([])
    with started_rank(url, cache, 1, seen=len(done) * BATCH) as again:
        assert done + ended(again) == [half[1] for half in halves]
    assert not list(cache.rglob("*.part"))
    left = set(os.listdir("/dev/shm")) - in_memory
    pids = [str(rank.pid) for rank in (killed, other, again)]
    # Tests beside this one leave semaphores and tensors of their own there, for a while.
    assert not [name for name in left if not name.startswith(("sem.mp-", "torch_")) or any(p in name for p in pids)]
