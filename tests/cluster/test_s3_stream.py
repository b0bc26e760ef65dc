"""The stream from a real S3 server that fails: the batches of the local copy bit for bit, or an error with a name."""

import contextlib
import time

import numpy as np
import pytest
import s3fs
import torch

from sharding.errors import DataError, StorageError
from tests.cluster.remote_pairs import BATCH, BATCHES, IN_BODY, SHARDS, flipped, opened, payload, stored, streamed
from tests.s3server import Fault
from tests.unit.pipeline.small_shards import assert_equal, join, reader_threads, take

pytestmark = [pytest.mark.s3, pytest.mark.chaos, pytest.mark.timeout(120)]


def test_batches_equal_those_of_the_local_copy(url, client, expected):
    told = streamed(url, client, expected)
    assert (told.retries, told.corrupt, told.replaced, told.requests) == (0, 0, 0, 6)


# A store that fails for a while

PASSING = {
    "a storm of 503": Fault(do="503", path=SHARDS, times=20),
    "internal errors": Fault(do="500", path=SHARDS, times=6),
    "bodies that are cut": Fault(do="cut", path=SHARDS, times=6, amount=IN_BODY),
    "connections that are reset in the body": Fault(do="reset", path=SHARDS, times=6, amount=IN_BODY),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING.keys())
def test_what_passes_is_asked_again_and_each_try_is_counted(url, client, expected, server, fault):
    server.faults.set([fault])
    told = streamed(url, client, expected)
    assert told.retries == len(server.faults.seen()) == fault.times
    assert (told.corrupt, told.requests) == (0, 6)


STALLING = {
    "no answer": Fault(do="hang", path=SHARDS, times=2, amount=20),
    "a body that stalls": Fault(do="stall", path=SHARDS, times=2, amount=IN_BODY, seconds=20),
}


@pytest.mark.usefixtures("short_timeouts")
@pytest.mark.parametrize("fault", STALLING.values(), ids=STALLING.keys())
def test_a_server_that_goes_silent_is_given_up_and_asked_again(url, client, expected, server, fault):
    server.faults.set([fault])
    began = time.monotonic()
    told = streamed(url, client, expected)
    assert time.monotonic() - began < 19  # not by waiting for the server
    assert len(server.faults.seen()) == fault.times <= told.retries


def test_a_store_that_keeps_failing_is_given_up_with_the_name_of_the_shard(url, client, server, monkeypatch):
    monkeypatch.setattr("sharding.store_retry._ATTEMPTS", 3)
    server.faults.set([Fault(do="503", path=SHARDS, times=10_000)])
    with opened(url, client) as stream, pytest.raises(StorageError, match=rf"cannot read {url}/shards/.*; given up"):
        take(stream, 1)
    assert reader_threads() == []


# Bits that flip, and objects that are not the right ones


def test_bits_flipped_on_the_way_are_fetched_again(url, client, made, expected, server):
    shard, place, _ = payload(made, 11, 1)
    first = payload(made, 8, 0)[1] - 2 * 12 * 12 * 2  # where the range of the shard begins
    server.faults.set([Fault(do="flip", path=shard, amount=place - first, times=2)])
    told = streamed(url, client, expected)
    assert len(server.faults.seen()) == 2
    assert told.corrupt in (1, 2)  # the sample's reading in the next epoch, ahead, may meet the same damaged copy
    assert (told.replaced, told.retries, told.requests) == (0, 0, 6 + 2)


def test_without_checksums_a_flipped_bit_goes_into_the_batch(url, client, made, expected, server):
    shard, place, _ = payload(made, 11, 1)
    first = payload(made, 8, 0)[1] - 2 * 12 * 12 * 2
    server.faults.set([Fault(do="flip", path=shard, amount=place - first, times=2)])
    with pytest.raises(AssertionError):
        streamed(url, client, expected, verify_checksums=False)


def test_s3fs_by_itself_hands_out_what_came(url, made, server):
    shard = made.manifest.shards[1]
    fs, path, real = s3fs.S3FileSystem(), f"{url}/{shard.path}", (made.root / shard.path).read_bytes()
    server.faults.set([Fault(do="flip", path=shard.path, amount=100)])
    assert fs.cat_file(path, start=0, end=1000) == flipped(real[:1000], 100)
    assert fs.cat_file(path, start=1000, end=shard.num_bytes + 1000) == real[1000:]
    server.faults.set([Fault(do="expired", path=shard.path)])
    with pytest.raises(PermissionError):
        fs.cat_file(path, start=0, end=1000)


def test_a_bit_flipped_in_the_object_is_named(url, client, made, server):
    shard, place, key = payload(made, 11, 2)
    with (
        stored(server, shard, flipped((made.root / shard).read_bytes(), place)),
        opened(url, client) as stream,
        pytest.raises(DataError, match=f"array s2_20m of sample {key} in shard {url}/{shard} is damaged"),
    ):
        take(stream, BATCHES)
    assert reader_threads() == []


def test_on_corrupt_skip_puts_the_same_other_sample_there_each_time(url, client, made, expected, server):
    shard, place, key = payload(made, 11, 2)
    runs = []
    with stored(server, shard, flipped((made.root / shard).read_bytes(), place)):
        for world_size in (1, 1, 2):
            ranks = [opened(url, client, rank, world_size, on_corrupt="skip") for rank in range(world_size)]
            with contextlib.ExitStack() as stack:
                iterators = [iter(stack.enter_context(stream)) for stream in ranks]
                parts = [[next(iterator).copy() for iterator in iterators] for _ in range(BATCHES)]
                told = [stream.instruments() for stream in ranks]
            assert 2 <= sum(one.replaced for one in told) <= sum(one.corrupt for one in told) <= 4  # some read ahead
            runs.append([join(batches) for batches in parts])
            places = [[(p, c.keys[p]) for c in batches for p in c.replaced] for batches in parts]
            assert sum(map(len, places)) == 2  # once an epoch
    for mine, again, halves, other in zip(*runs, expected, strict=True):
        assert_equal(mine, again)
        assert_equal(mine, halves)
        bad = [row for row, name in enumerate(other.keys) if name == key]
        assert key not in mine.keys
        good = [row for row in range(BATCH) if row not in bad]
        assert [mine.keys[row] for row in good] == [other.keys[row] for row in good]
        assert torch.equal(mine.position, other.position)
        for name, array in mine.arrays.items():
            assert torch.equal(array[good], other.arrays[name][good])
            for row in bad:
                spec = next(spec for spec in made.manifest.arrays if spec.name == name)
                assert np.array_equal(array[row].numpy(), made.full(mine.keys[row], spec))


def test_a_deleted_shard_is_named(url, client, made, server):
    shard = made.manifest.shards[3].path
    with (
        stored(server, shard, None),
        opened(url, client) as stream,
        pytest.raises(DataError, match=f"there is no {url}/{shard}"),
    ):
        take(stream, BATCHES)


def test_a_shard_deleted_while_it_is_streamed_is_named(url, client, made, server):
    # Less than an epoch fits into the memory: shards are asked for all the time.
    shard = made.manifest.shards[3].path
    with opened(url, client, cache_gib=1e-4, window_gib=2e-5) as stream:
        batches = iter(stream)
        next(batches)
        with stored(server, shard, None), pytest.raises(DataError, match=f"there is no {url}/{shard}"):
            for _ in range(20 * BATCHES):
                next(batches)


def test_another_object_of_the_same_size_is_found_by_its_checksums(url, client, made, server):
    shard, other = (made.manifest.shards[number] for number in (3, 4))
    assert shard.num_bytes == other.num_bytes
    with (
        stored(server, shard.path, (made.root / other.path).read_bytes()),
        opened(url, client) as stream,
        pytest.raises(DataError, match=f"array .* of sample pair-00.. in shard {url}/{shard.path} is damaged"),
    ):
        take(stream, BATCHES)


CHANGED = {
    "cut in its middle": lambda content: content[:IN_BODY],
    "cut before its first payload": lambda content: content[:100],
    "cut at the end of a member": lambda content: content[: len(content) // 1024 * 512],
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED.keys())
def test_an_object_that_was_cut_is_named_with_both_sizes(url, client, made, server, change):
    shard = made.manifest.shards[2]
    content = change((made.root / shard.path).read_bytes())
    sizes = f"shard {url}/{shard.path} holds {len(content)} bytes, its manifest says {shard.num_bytes}"
    with stored(server, shard.path, content), opened(url, client) as stream, pytest.raises(DataError, match=sizes):
        take(stream, BATCHES)


def test_a_longer_object_with_other_content_is_named(url, client, made, server):
    shard, other = (made.manifest.shards[number] for number in (3, 4))
    with (
        stored(server, shard.path, (made.root / other.path).read_bytes() + bytes(512)),
        opened(url, client) as stream,
        pytest.raises(DataError, match=f"shard {url}/{shard.path}"),
    ):
        take(stream, BATCHES)
