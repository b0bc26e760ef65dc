"""The stream from an S3 server (moto) and from fsspec's memory store."""

import threading
from itertools import islice

import fsspec
import numpy as np
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from pipeline.stream.byte_range import ByteRange
from pipeline.stream.exact import Stream, StreamConfig, evaluation_batches
from pipeline.stream.fetching import Fetcher, open_store
from pipeline.stream.instruments import Meter
from pipeline.stream.run_cache import FETCHES_IN_FLIGHT, FetchedRuns
from pipeline.stream.table import SampleTable
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


@pytest.mark.parametrize("client", ["fsspec", "obstore"])
def test_batches_from_s3_equal_those_from_disk(bucket, tmp_path, client):
    made = make(tmp_path / "pairs", subset_every=3)
    url = upload(made, bucket)
    with Stream(StreamConfig(url=made.url, global_batch=12)) as local:
        expected = take(local, 5)
    with Stream(StreamConfig(url=url, global_batch=12, client=client)) as remote:
        for mine, other in zip(expected, take(remote, 5), strict=True):
            assert_equal(mine, other)
    with WebDatasetStream(StreamConfig(url=url, global_batch=12)) as oracle:
        for mine, other in zip(expected, islice(oracle, 5), strict=True):
            assert_equal(mine, other)
    assert [k for b in evaluation_batches(url, "train", 7) for k in b.keys] == sorted(made.samples)
    assert reader_threads() == []


def test_the_connection_pool_is_large_enough(bucket):
    assert open_store(bucket).fs.config_kwargs["max_pool_connections"] >= FETCHES_IN_FLIGHT


def test_an_epoch_asks_for_runs_not_for_samples(tmp_path):
    made = make(tmp_path / "pairs", (512, 512, 512, 512))
    url = upload(made, "memory://many")
    # A cache of less than a third of the split: nearly all runs of an epoch are fetched again, but only once.
    with Stream(StreamConfig(url=url, global_batch=4, cache_gib=5e-3, window_gib=5e-3)) as stream:
        assert stream.order.settings.run_samples == 3
        take(stream, 2 * 512)
        runs = 2 * 2048 / 3
        assert 0.7 * runs <= stream.instruments().requests <= 1.2 * runs
    fsspec.filesystem("memory").rm("many", recursive=True)


def test_a_split_that_fits_into_the_cache_is_fetched_once(memory, monkeypatch):
    ranges = []
    real = Store.read_range
    monkeypatch.setattr(Store, "read_range", lambda *a: ranges.append(a[1:4]) or real(*a))
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

    def flaky(self, path, start, end, again):
        content = bytearray(real(self, path, start, end, again))
        if not flipped:
            flipped.append(path)
            content[3] ^= 1
        return bytes(content)

    monkeypatch.setattr(Store, "read_range", flaky)
    with Stream(StreamConfig(url=memory, global_batch=20)) as stream:
        assert_equal(take(stream, 1)[0], expected)
        assert stream.instruments().requests == 4
        assert stream.instruments().corrupt >= 1


def test_a_bit_flipped_in_the_store_is_named(memory, made):
    fs = fsspec.filesystem("memory")
    path = f"/pairs/{made.manifest.shards[1].path}"
    content = bytearray(fs.cat_file(path))
    with Stream(StreamConfig(url=memory, global_batch=20)) as stream:
        offset = int(stream._reader.table.records(np.array([9]))["offset"][0, 1])
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
    """In place of a file system: some calls fail first."""

    def __init__(self, store: Store, failures: int) -> None:
        self.real, self.failures, self.calls = store.fs, failures, 0
        self.protocol, self.storage_options = "memory", {}

    def cat_file(self, path, start=None, end=None):
        self.calls += 1
        if self.calls <= self.failures:
            raise TimeoutError("SlowDown")
        return self.real.cat_file(path, start=start, end=end)

    def size(self, path):
        return self.real.size(path)


def flaky_store(url: str, failures: int) -> Store:
    store = Store(url)
    store.fs = Flaky(store, failures)
    return store


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)


def test_a_failing_store_is_asked_again_and_the_tries_are_counted(memory, made, no_waiting):
    shard, meter = made.manifest.shards[0], Meter()
    store = flaky_store(memory, 3)
    content = Fetcher(store, meter)(ByteRange(shard.path, 2, 5, shard.num_bytes))
    assert content == (made.root / shard.path).read_bytes()[2:5]
    assert store.fs.calls == 4
    assert (meter.read().retries, meter.read().requests, meter.read().bytes_fetched) == (3, 1, 3)


def test_a_store_that_keeps_failing_is_given_up(memory, made, no_waiting):
    shard = made.manifest.shards[0]
    store = flaky_store(memory, 1000)
    with pytest.raises(StorageError, match=f"{shard.path}: SlowDown; given up"):
        Fetcher(store, Meter())(ByteRange(shard.path, 2, 5, shard.num_bytes))
    assert store.fs.calls < 20


class Fetched:
    """Counts what is asked for."""

    def __init__(self, root, before=lambda: None) -> None:
        self.root, self.before, self.asked = root, before, []

    def __call__(self, wanted: ByteRange) -> bytes:
        self.before()
        self.asked.append(wanted)
        return (self.root / wanted.path).read_bytes()[wanted.start : wanted.end]


def runs_of(made, fetch, max_bytes) -> FetchedRuns:
    source = FetchedRuns(SampleTable(Store(made.url), made.manifest, "train"), 1000.0, fetch, max_bytes)
    return source


def test_a_run_is_fetched_once_while_it_is_used_and_the_oldest_is_forgotten(made):
    fetch = Fetched(made.root)
    source = runs_of(made, fetch, 2000)  # two runs of one sample
    holds = [source.hold(np.array([sample])) for sample in (0, 0, 3)]
    third = source.hold(np.array([6]))  # more than fits, but all are in use
    for hold, sample in zip((*holds, third), (0, 0, 3, 6), strict=True):
        offset = int(source._table.records(np.array([sample]))["offset"][0, 0])
        file = int(source._table.records(np.array([sample]))["file"][0, 0])
        path = source._table.files[file].path
        part = hold.read_range(sample, file, offset, offset + 4).tobytes()
        assert part == (made.root / path).read_bytes()[offset : offset + 4]
    assert len(fetch.asked) == 3
    for hold in holds:
        hold.release()
    source.hold(np.array([3]))  # the oldest free one was 0
    assert len(fetch.asked) == 3
    hold = source.hold(np.array([0]))
    hold.locate(np.array([0]), np.zeros((1, 1), np.int32), np.zeros((1, 1), np.int64))
    assert len(fetch.asked) == 4
    source.close()


def test_many_runs_are_fetched_at_a_time(made):
    barrier = threading.Barrier(FETCHES_IN_FLIGHT, timeout=20)
    source = runs_of(made, Fetched(made.root, barrier.wait), 1 << 20)
    samples = np.arange(FETCHES_IN_FLIGHT)
    shape = (FETCHES_IN_FLIGHT, 1)
    source.hold(samples).locate(samples, np.zeros(shape, np.int32), np.zeros(shape, np.int64))
    source.close()


@pytest.fixture
def many(tmp_path):
    made = make(tmp_path / "pairs", (64, 64, 64, 64))
    url = upload(made, "memory://many")
    yield made, url
    fsspec.filesystem("memory").rm("many", recursive=True)


def cached(url, folder, gib=1.0, **more) -> StreamConfig:
    return StreamConfig(url=url, global_batch=4, window_gib=5e-4, cache_dir=str(folder), cache_dir_gib=gib, **more)


def test_a_folder_on_disk_keeps_what_was_fetched_for_the_next_epoch_and_the_next_run(many, tmp_path):
    made, url = many
    with Stream(StreamConfig(url=made.url, global_batch=4, window_gib=5e-4)) as local:
        expected = take(local, 2 * 64)
    for turn in range(2):
        with Stream(cached(url, tmp_path / "cache")) as stream:
            for mine, other in zip(expected, take(stream, 2 * 64), strict=True):
                assert_equal(mine, other)
            found = stream.instruments()
            assert (found.cache_misses, found.requests) == ((4, 4) if turn == 0 else (0, 0))
            assert turn == 0 or found.cache_hits == 4


def test_two_ranks_fetch_each_run_once(many, tmp_path):
    _, url = many
    streams = [Stream(cached(url, tmp_path / "cache"), rank, 2) for rank in range(2)]
    for _ in zip(*(islice(stream, 64) for stream in streams), strict=True):
        pass
    assert sum(stream.instruments().requests for stream in streams) == 4  # one a shard, which is less than 10 MB
    for stream in streams:
        stream.close()


def test_what_is_needed_soonest_stays_in_a_small_folder(many, tmp_path):
    # Half of the data set fits, in blocks of 4 KiB. By age nothing would be left from one epoch to the next.
    made, url = many
    half = sum(shard.num_bytes for shard in made.manifest.shards) / 2 / 2**30
    with Stream(cached(url, tmp_path / "cache", gib=1.3 * half)) as stream:
        take(stream, 64 * 6)
        found = stream.instruments()
    assert 256 <= found.requests < 256 * 6 * 0.75


def test_a_damaged_file_of_the_folder_is_fetched_again(many, tmp_path):
    made, url = many
    with Stream(StreamConfig(url=made.url, global_batch=4, window_gib=5e-4)) as local:
        expected = take(local, 64)
    with Stream(cached(url, tmp_path / "cache")) as stream:
        take(stream, 64)
    for path in (tmp_path / "cache").rglob("*.range"):
        content = bytearray(path.read_bytes())
        content[::64] = bytes(byte ^ 1 for byte in content[::64])
        path.write_bytes(content)
    with Stream(cached(url, tmp_path / "cache")) as stream:
        for mine, other in zip(expected, take(stream, 64), strict=True):
            assert_equal(mine, other)
        assert stream.instruments().corrupt > 0
        assert stream.instruments().requests > 0


def test_a_folder_that_cannot_hold_the_windows_is_refused(many, tmp_path):
    with pytest.raises(ConfigError, match="raise cache_dir_gib"):
        Stream(cached(many[1], tmp_path / "cache", gib=1e-5))


@pytest.mark.parametrize(("rank", "changes", "is_said"), [(0, {}, True), (1, {}, False), (0, {"groups": 2}, False)])
def test_it_is_said_once_when_ranks_fetch_what_others_fetch_too(memory, capsys, rank, changes, is_said):
    with Stream(StreamConfig(url=memory, global_batch=4, **changes), rank, 2):
        assert ("2 ranks fetch each run" in capsys.readouterr().err) == is_said


def test_ranks_that_share_a_folder_or_a_disk_are_not_warned(memory, made, tmp_path, capsys):
    with Stream(StreamConfig(url=memory, global_batch=4, cache_dir=str(tmp_path / "cache")), 0, 2):
        pass
    with Stream(StreamConfig(url=made.url, global_batch=4), 0, 2):
        pass
    assert capsys.readouterr().err == ""
