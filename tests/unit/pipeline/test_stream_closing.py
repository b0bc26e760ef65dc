"""Who closes what, in which order and thread, and what is bounded on the way."""

import gc
import threading
import time

import fsspec
import numpy as np
import pytest

from pipeline.stream import native
from pipeline.stream.byte_range import ByteRange
from pipeline.stream.closing import Finalizer
from pipeline.stream.exact import Stream, StreamConfig
from pipeline.stream.local_files import LocalFiles
from pipeline.stream.run_cache import MAX_COPIES, FetchedRuns
from pipeline.stream.table import DataFile, SampleTable
from sharding.errors import DataError
from sharding.store import Store
from tests.unit.pipeline.small_shards import reader_threads, take


@pytest.fixture
def remote(made):
    fsspec.filesystem("memory").put(str(made.root), "memory://closing", recursive=True)
    yield "memory://closing"
    fsspec.filesystem("memory").rm("closing", recursive=True)


def test_more_files_in_use_than_are_kept_open_are_no_trouble(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}").write_bytes(b"x" * 10)
    files = LocalFiles(Store(str(tmp_path)), [DataFile(f"{number}", 10) for number in range(5)])
    files._kept, files._most = None, 2
    descriptors = [files.use(number) for number in range(5)]
    assert len(set(descriptors)) == 5
    assert [bytes(files.read(n, d, 0, 1)) for n, d in enumerate(descriptors)] == [b"x"] * 5
    files.unuse(range(5))
    assert len(files._open) == 2
    files.close()
    assert not files._open


def test_a_stream_and_its_iterator_in_one_cycle_of_garbage_end_their_threads(made, remote):
    for url in (made.url, remote):
        stream = Stream(StreamConfig(url=url, global_batch=4))
        batches = iter(stream)
        next(batches)
        cycle = [stream, batches]
        cycle.append(cycle)
        del stream, batches, cycle
        gc.collect()
        assert reader_threads() == []


def test_what_is_collected_in_another_thread_is_closed_beside_it():
    class Owner:
        pass

    closed = []
    thread = threading.Thread(target=lambda: Finalizer(Owner(), lambda: closed.append(threading.current_thread())))
    thread.start()
    thread.join()
    deadline = time.monotonic() + 20
    while not closed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert closed[0] is not thread


def test_a_finalizer_closes_once():
    class Owner:
        pass

    owner, closed = Owner(), []
    finalizer = Finalizer(owner, lambda: closed.append(1))
    assert finalizer.alive
    finalizer(), finalizer()
    del owner
    assert closed == [1]
    assert not finalizer.alive


def test_a_stream_that_waits_for_a_store_is_closed_at_once(remote, monkeypatch):
    asked, answer = threading.Event(), threading.Event()

    def hang(*_):
        asked.set()
        answer.wait(60)
        raise OSError("never")

    monkeypatch.setattr(Store, "read_range", hang)
    stream = Stream(StreamConfig(url=remote, global_batch=4))
    batches = iter(stream)
    assert asked.wait(20)
    began = time.monotonic()
    batches.close()  # the readers end; the fetching threads are of the stream
    assert time.monotonic() - began < 5
    answer.set()
    stream.close()
    assert reader_threads() == []


def test_a_run_that_stays_damaged_is_fetched_again_a_few_times_only(made, remote, monkeypatch):
    ranges, real = [], Store.read_range

    def wrong(self, path, start, end, again):
        ranges.append(path)
        return bytes(byte ^ 1 for byte in real(self, path, start, end, again))

    monkeypatch.setattr(Store, "read_range", wrong)
    config = StreamConfig(url=remote, global_batch=20, on_corrupt="skip", threads=1)
    with Stream(config) as stream, pytest.raises(DataError):
        take(stream, 1)
    assert len(ranges) <= 3 * (1 + MAX_COPIES) * 2  # three shards, held for the batch and for what takes its place


def test_a_payload_that_lies_in_no_fetched_piece_is_no_address(made):
    def fetch(wanted: ByteRange) -> bytes:
        return (made.root / wanted.path).read_bytes()[wanted.start : wanted.end]

    source = FetchedRuns(SampleTable(Store(made.url), made.manifest, "train"), 1000.0, fetch, 1 << 20)
    hold = source.hold(np.array([0]))
    descriptors, _ = hold.locate(np.array([0]), np.zeros((1, 1), np.int32), np.full((1, 1), 1 << 40))
    assert descriptors.tolist() == [[native.NOWHERE]]
    source.close()
