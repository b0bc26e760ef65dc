"""The stream from an S3 server (moto) and from fsspec's memory store."""

import threading
from itertools import islice

import fsspec
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from pipeline import run_cache
from pipeline.stream.exact import Stream, StreamConfig, evaluation_batches
from pipeline.stream.run_cache import ByteRange, RunCache, open_store
from pipeline.stream.webdataset_reader import WebDatasetStream
from sharding.errors import ConfigError, DataError, StorageError
from sharding.store import Store
from tests.unit.pipeline.small_shards import assert_equal, make, reader_threads, take


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint, monkeypatch):
    """An empty bucket and the environment that leads there."""
    values = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    fs = s3fs.S3FileSystem()
    fs.mkdir("pairs-bucket")
    yield "s3://pairs-bucket/train"
    fs.rm("pairs-bucket", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


def upload(made, url):
    fsspec.filesystem(url.split("://")[0]).put(str(made.root), url, recursive=True)
    return url


@pytest.fixture
def memory(made):
    url = upload(made, "memory://pairs")
    yield url
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]


def test_batches_from_s3_equal_those_from_disk(bucket, tmp_path):
    made = make(tmp_path / "pairs", subset_every=3)
    url = upload(made, bucket)
    with Stream(StreamConfig(url=made.url, global_batch=12)) as local:
        expected = take(local, 5)
    with Stream(StreamConfig(url=url, global_batch=12)) as remote:
        for mine, other in zip(expected, take(remote, 5), strict=True):
            assert_equal(mine, other)
    with WebDatasetStream(StreamConfig(url=url, global_batch=12)) as oracle:
        for mine, other in zip(expected, islice(oracle, 5), strict=True):
            assert_equal(mine, other)
    assert [k for b in evaluation_batches(url, "train", 7) for k in b.keys] == sorted(made.samples)
    assert reader_threads() == []


def test_the_connection_pool_is_large_enough(bucket):
    assert open_store(bucket).fs.config_kwargs["max_pool_connections"] >= run_cache.FETCHES_IN_FLIGHT


def test_an_epoch_asks_for_runs_not_for_samples(tmp_path):
    made = make(tmp_path / "pairs", (64, 64, 64, 64))
    url = upload(made, "memory://many")
    # A cache of less than a third of the split: nearly all runs of an epoch are fetched again, but only once.
    with Stream(StreamConfig(url=url, global_batch=4, cache_gib=5e-4, window_gib=5e-4)) as stream:
        assert stream.order.settings.run_samples == 4
        take(stream, 4 * 64)
        runs = 4 * 256 / 4
        assert 0.7 * runs <= stream.num_requests <= 1.2 * runs
    fsspec.filesystem("memory").rm("many", recursive=True)


def test_a_split_that_fits_into_the_cache_is_fetched_once(memory, monkeypatch):
    ranges = []
    real = Store.read_range
    monkeypatch.setattr(Store, "read_range", lambda *a: ranges.append(a[1:]) or real(*a))
    with Stream(StreamConfig(url=memory, global_batch=4)) as stream:
        take(stream, 25)
    assert len(ranges) == 3  # a shard is less than 10 MB


def test_a_cache_that_cannot_hold_the_window_is_refused_with_what_to_write(memory):
    with pytest.raises(ConfigError, match="raise cache_gib"):
        Stream(StreamConfig(url=memory, global_batch=16, cache_gib=1e-6, window_gib=1))


def test_a_bit_flipped_on_the_way_is_fetched_again(memory, made, monkeypatch):
    with Stream(StreamConfig(url=made.url, global_batch=20)) as local:
        expected = take(local, 1)[0]
    real, flipped = Store.read_range, []

    def flaky(self, path, start, end):
        content = bytearray(real(self, path, start, end))
        if not flipped:
            flipped.append(path)
            content[3] ^= 1
        return bytes(content)

    monkeypatch.setattr(Store, "read_range", flaky)
    with Stream(StreamConfig(url=memory, global_batch=20)) as stream:
        assert_equal(take(stream, 1)[0], expected)
        assert stream.num_requests == 4


def test_a_bit_flipped_in_the_store_is_named(memory, made):
    fs = fsspec.filesystem("memory")
    path = f"/pairs/{made.manifest.shards[1].path}"
    content = bytearray(fs.cat_file(path))
    with Stream(StreamConfig(url=memory, global_batch=20)) as stream:
        offset = int(stream._reader.table.offset[9, 1])
    content[offset + 20] ^= 4
    fs.pipe_file(path, bytes(content))
    with (
        Stream(StreamConfig(url=memory, global_batch=20)) as stream,
        pytest.raises(DataError, match=f"s2_10m of sample pair-0009 in shard .*{made.manifest.shards[1].path}"),
    ):
        take(stream, 1)


def test_a_missing_shard_is_named(memory, made):
    fsspec.filesystem("memory").rm_file(f"/pairs/{made.manifest.shards[1].path}")
    with (
        Stream(StreamConfig(url=memory, global_batch=20)) as stream,
        pytest.raises(DataError, match=f"no {memory}/{made.manifest.shards[1].path}"),
    ):
        take(stream, 1)
    assert reader_threads() == []


def test_a_cut_shard_is_named(memory, made):
    fs = fsspec.filesystem("memory")
    path = f"/pairs/{made.manifest.shards[1].path}"
    fs.pipe_file(path, fs.cat_file(path)[:1000])
    with (
        Stream(StreamConfig(url=memory, global_batch=20)) as stream,
        pytest.raises(DataError, match=f"{made.manifest.shards[1].path} holds 1000 bytes"),
    ):
        take(stream, 1)


class Flaky:
    """A store that fails some times, and says where it was called."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls = 0

    def name(self, path):
        return f"flaky/{path}"

    def size(self, path):
        return 10

    def read_range(self, path, start, end):
        self.calls += 1
        if self.calls <= self.failures:
            raise StorageError(f"cannot read flaky/{path}: SlowDown")
        return bytes(range(start, end))


def test_a_failing_store_is_asked_again():
    store = Flaky(3)
    assert run_cache.fetch(store, ByteRange("a", 2, 5, 10), max_wait_s=0) == b"\x02\x03\x04"
    assert store.calls == 4


def test_a_store_that_keeps_failing_is_given_up():
    store = Flaky(1000)
    with pytest.raises(StorageError, match="flaky/a: SlowDown; gave up after 6 tries"):
        run_cache.fetch(store, ByteRange("a", 2, 5, 10), max_wait_s=0)
    assert store.calls == run_cache.ATTEMPTS


def test_cache_fetches_a_range_once_while_it_is_used_and_forgets_the_oldest():
    store = Flaky(0)
    cache = RunCache(store, 6)
    wanted = {key: ByteRange("a", key, key + 3, 10) for key in (0, 3, 6)}
    for key in (0, 0, 3):
        cache.acquire(key, wanted[key])
        assert cache.get(key) == bytes(range(key, key + 3))
    cache.acquire(6, wanted[6])  # more than fits, but all are in use
    assert [cache.get(key)[0] for key in (0, 3, 6)] == [0, 3, 6]
    assert cache.num_requests == store.calls == 3
    for key in (0, 0, 3):
        cache.release(key)
    cache.acquire(3, wanted[3])  # the oldest free range was 0
    assert cache.num_requests == 3
    cache.acquire(0, wanted[0])
    cache.get(0)
    assert cache.num_requests == 4
    cache.close()


def test_cache_fetches_many_ranges_at_a_time():
    barrier = threading.Barrier(run_cache.FETCHES_IN_FLIGHT, timeout=20)

    class Together(Flaky):
        def read_range(self, path, start, end):
            barrier.wait()
            return super().read_range(path, start, end)

    cache = RunCache(Together(0), 1 << 20)
    for key in range(run_cache.FETCHES_IN_FLIGHT):
        cache.acquire(key, ByteRange("a", key, key + 1, 100))
    assert [cache.get(key)[0] for key in range(run_cache.FETCHES_IN_FLIGHT)] == list(range(16))
    cache.close()
