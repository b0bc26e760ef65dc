import gc
import json
import os
import resource
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.stream.exact import Stream, StreamConfig, evaluation_batches
from pipeline.stream.reader import SampleReader
from sharding.errors import ConfigError, DataError
from tests.unit.pipeline.small_shards import Made, assert_equal, damage, join, make, reader_threads, take


def open_stream(made: Made, rank=0, world_size=1, **changes) -> Stream:
    return Stream(StreamConfig(**({"url": made.url, "global_batch": 12} | changes)), rank, world_size)


@pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("s1_dtype", ["float32", "float16"])
def test_pixels_are_those_that_were_stored(tmp_path, codec, s1_dtype):
    made = make(tmp_path / "pairs", codec=codec, subset_every=3, s1_dtype=s1_dtype)
    with open_stream(made) as stream:
        for batch in take(stream, 4):
            for row, key in enumerate(batch.keys):
                for spec in made.manifest.arrays:
                    assert (batch.arrays[spec.name][row].numpy() == made.full(key, spec)).all()


def test_a_band_that_a_sample_lacks_is_zero_and_marked(tmp_path):
    made = make(tmp_path / "pairs", subset_every=2)
    with open_stream(made, slots=1) as stream:
        for batch in take(stream, 4):  # slots are used again: what was there before must be gone
            for row, key in enumerate(batch.keys):
                for spec in made.manifest.arrays:
                    has = [band in made.bands[key] for band in spec.bands]
                    assert batch.present[spec.name][row].tolist() == has
                    assert (batch.arrays[spec.name][row][~np.array(has)] == 0).all()


def test_labels_and_radiometric_offsets_come_with_the_samples(tmp_path):
    made = make(tmp_path / "pairs", offset_every=2)
    with open_stream(made) as stream:
        batch = next(iter(stream))
        for row, key in enumerate(batch.keys):
            number = int(key.removeprefix("pair-"))
            assert batch.labels[row].tolist() == [number % 3 == word for word in range(3)]
            assert batch.radiometric_offset[row].tolist() == [0.0] + [0.0 if number % 2 else -1000.0] * 3


@pytest.mark.parametrize("world_size", [2, 3, 4, 6, 12])
def test_global_batches_are_the_same_for_every_number_of_ranks(made, world_size):
    with open_stream(made) as stream:
        whole = take(stream, 4)
    parts = []
    for rank in range(world_size):
        with open_stream(made, rank, world_size, threads=1 + rank % 3) as stream:
            parts.append(take(stream, 4))
    for step, batch in enumerate(whole):
        assert_equal(batch, join([part[step] for part in parts]))


def test_each_sample_comes_once_an_epoch(made):
    with open_stream(made, global_batch=10) as stream:
        keys = [key for batch in take(stream, 4) for key in batch.keys]
    assert sorted(keys[:20]) == sorted(keys[20:]) == sorted(made.samples)
    assert keys[:20] != keys[20:]


@pytest.mark.parametrize("step", range(6))
def test_resumed_equals_uninterrupted(made, step):
    with open_stream(made) as stream:
        whole = take(stream, 7)
    with open_stream(made) as stream:
        take(stream, step)
        state = json.loads(json.dumps(stream.state_dict()))
    with open_stream(made) as stream:
        stream.load_state_dict(state)
        for expected, batch in zip(whole[step:], take(stream, 7 - step), strict=True):
            assert batch.step == expected.step
            assert_equal(batch, expected)


def test_without_the_state_the_batches_differ(made):
    with open_stream(made) as stream:
        whole = take(stream, 3)
    with open_stream(made) as stream:
        assert take(stream, 1)[0].keys != whole[2].keys
    with open_stream(made, seed=1) as stream:
        assert [b.keys for b in take(stream, 3)] != [b.keys for b in whole]


def test_two_ranks_resume_as_three_in_mid_epoch(made):
    with open_stream(made) as stream:
        whole = take(stream, 6)
    with open_stream(made, 1, 2) as stream:
        take(stream, 2)
        state = stream.state_dict()
    parts = []
    for rank in range(3):
        with open_stream(made, rank, 3) as stream:
            stream.load_state_dict(state)
            parts.append(take(stream, 4))
    for step in range(4):
        assert_equal(whole[step + 2], join([part[step] for part in parts]))


def test_state_is_a_handful_of_integers_and_the_same_on_every_rank(made):
    states = []
    for rank in range(3):
        with open_stream(made, rank, 3) as stream:
            take(stream, 5)
            states.append(json.dumps(stream.state_dict()))
    assert len(set(states)) == 1
    assert len(states[0]) < 300


def test_state_counts_what_was_yielded_not_what_was_read_ahead(made):
    with open_stream(made, slots=5) as stream:
        batches = iter(stream)
        assert stream.state_dict()["samples_seen"] == 0
        next(batches), next(batches)
        assert stream.state_dict()["samples_seen"] == 24
        assert stream.epoch == 1


def test_order_settings_of_the_state_win_over_the_configured_ones(made):
    with open_stream(made, window_gib=1e-5) as stream:
        take(stream, 1)
        state = stream.state_dict()
        expected = take(stream, 2)
    with open_stream(made) as stream:
        assert stream.state_dict()["window"] != state["window"]
        stream.load_state_dict(state)
        assert [b.keys for b in take(stream, 2)] == [b.keys for b in expected]


@pytest.mark.parametrize("name", ["fingerprint", "split", "seed", "global_batch"])
def test_a_state_of_another_order_is_refused(made, name):
    with open_stream(made) as stream:
        state = stream.state_dict()
        state[name] = "other" if isinstance(state[name], str) else state[name] + 1
        with pytest.raises(ConfigError, match=f"{name} was .* and is"):
            stream.load_state_dict(state)


def test_a_state_of_another_program_is_refused(made):
    with open_stream(made) as stream, pytest.raises(ConfigError, match=r"lacks .*window"):
        stream.load_state_dict({"epoch": 3})


def test_set_epoch_goes_to_its_first_sample(made):
    with open_stream(made, global_batch=20) as stream:
        third = take(stream, 3)[2]
        stream.set_epoch(2)
        assert stream.epoch == 2
        assert_equal(take(stream, 1)[0], third)


def test_moving_the_stream_ends_its_iterator(made):
    with open_stream(made) as stream:
        batches = iter(stream)
        next(batches)
        stream.set_epoch(0)
        with pytest.raises(RuntimeError, match="ended"):
            next(batches)


def is_full(ring) -> bool:
    return len(ring._fills) == 2 and all(fill.missing == 0 for fill in ring._fills)


def test_a_batch_stays_valid_until_the_next_is_asked_for(made):
    with open_stream(made, slots=2, threads=3) as stream:
        batches = iter(stream)
        for _ in range(8):
            batch = next(batches)
            kept = batch.copy()
            deadline = time.monotonic() + 20
            while not is_full(batches._ring):  # the threads have overwritten whatever they may
                assert time.monotonic() < deadline
                time.sleep(0.001)
            assert_equal(batch, kept)


def test_split_gives_micro_batches_in_order(made):
    with open_stream(made) as stream:
        batch = take(stream, 1)[0]
        parts = batch.split(3)
        assert [len(part) for part in parts] == [4, 4, 4]
        assert_equal(batch, join(parts))
        with pytest.raises(ConfigError, match=r"12 samples .* 5 equal"):
            batch.split(5)


def test_ranks_that_cannot_share_the_batch_are_refused(made):
    with pytest.raises(ConfigError, match="take 10 or 15"):
        open_stream(made, 0, 5)


def test_an_unknown_split_is_refused_with_the_known_ones(made):
    with pytest.raises(DataError, match=r"no split 'test'; it has train"):
        open_stream(made, split="test")


def test_a_data_set_without_manifest_is_none(made):
    (made.root / "manifest.json").unlink()
    with pytest.raises(DataError, match="holds no finished data set"):
        open_stream(made)


def payload_offset(made, sample, array):
    with open_stream(made) as stream:
        table = stream._reader.table
        record = table.records(np.array([sample]))[0]
        path = made.root / table.files[record["file"][array]].path
        return path, int(record["offset"][array]) + 5, record["key"].decode()


@pytest.mark.parametrize("codec", ["none", "lz4"])
def test_one_flipped_bit_is_found_and_named(tmp_path, codec):
    made = make(tmp_path / "pairs", codec=codec)
    path, offset, key = payload_offset(made, 13, 2)
    damage(path, offset)
    with open_stream(made) as stream, pytest.raises(DataError, match=f"s2_20m of sample {key} in shard .*{path.name}"):
        take(stream, 2)
    assert reader_threads() == []


def test_without_checksums_a_flipped_bit_passes(tmp_path):
    made = make(tmp_path / "pairs", codec="none")
    path, offset, _ = payload_offset(made, 13, 2)
    damage(path, offset)
    with open_stream(made, verify_checksums=False) as stream:
        take(stream, 2)


def test_batches_before_the_damaged_one_are_yielded(made):
    with open_stream(made, global_batch=4) as stream:
        ids = [b.sample_id.tolist() for b in take(stream, 4)]
    path, offset, _ = payload_offset(made, ids[3][0], 0)
    damage(path, offset)
    with open_stream(made, global_batch=4, slots=4) as stream:
        batches = iter(stream)
        for step in range(3):
            assert next(batches).sample_id.tolist() == ids[step]
        with pytest.raises(DataError, match="damaged"):
            next(batches)
        assert stream.state_dict()["samples_seen"] == 12


def test_a_truncated_shard_is_named(made):
    path = made.root / made.manifest.shards[1].path
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(DataError, match=f"{path.name} holds .* bytes, its manifest says"):
        open_stream(made)


def test_a_shard_truncated_while_it_is_read_is_named(made):
    path = made.root / made.manifest.shards[1].path
    with open_stream(made) as stream:
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(DataError, match=f"{path.name} holds 2000 bytes"):
            take(stream, 2)


def test_a_missing_shard_is_named(made):
    path = made.root / made.manifest.shards[2].path
    path.unlink()
    with pytest.raises(DataError, match=f"{path.name} is missing"):
        open_stream(made)


def test_a_damaged_index_is_named(made):
    path = made.root / made.manifest.shards[0].index_path
    damage(path, 300)
    with open_stream(made) as stream, pytest.raises(DataError, match=f"{path.name} is damaged"):
        take(stream, 4)


def test_an_index_of_another_shard_is_named(made):
    first, second = (made.root / made.manifest.shards[n].index_path for n in (0, 1))
    first.write_bytes(second.read_bytes())
    with open_stream(made) as stream, pytest.raises(DataError, match=f"{first.name} is not the index"):
        take(stream, 4)


def test_a_changed_manifest_is_refused(made):
    path = made.root / "manifest.json"
    path.write_text(path.read_text().replace('"samples": 7', '"samples": 6'))
    with pytest.raises(DataError, match="changed after it was written"):
        open_stream(made)


def test_any_exception_of_a_thread_reaches_the_consumer(made, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("in a thread")

    monkeypatch.setattr(SampleReader, "read", fail)
    with open_stream(made) as stream, pytest.raises(ZeroDivisionError, match="in a thread"):
        next(iter(stream))
    assert reader_threads() == []


def test_an_exception_in_the_order_reaches_the_consumer(made, monkeypatch):
    with open_stream(made) as stream:
        monkeypatch.setattr(stream.order, "_positions", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            next(iter(stream))
    assert reader_threads() == []


def test_closing_ends_the_threads(made):
    stream = open_stream(made, threads=4)
    next(iter_ := iter(stream))
    assert len(reader_threads()) == 4
    stream.close()
    assert reader_threads() == []
    with pytest.raises(RuntimeError, match="ended"):
        next(iter_)
    with pytest.raises(ConfigError, match="closed"):
        iter(stream)


def test_dropping_the_iterator_ends_the_threads(made):
    stream = open_stream(made, threads=4)
    for _ in stream:
        break
    gc.collect()
    assert reader_threads() == []
    stream.close()


def test_a_new_iterator_continues_and_ends_the_old_one(made):
    with open_stream(made) as stream:
        expected = take(stream, 3)
    with open_stream(made) as stream:
        old = iter(stream)
        next(old)
        assert [b.keys for b in take(stream, 2)] == [b.keys for b in expected[1:]]
        with pytest.raises(RuntimeError, match="ended"):
            next(old)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_gives_each_sample_once_in_order(made, world_size):
    keys, sizes = [], []
    for rank in range(world_size):
        with evaluation_batches(made.url, "train", 6, rank, world_size) as batches:
            for batch in batches:
                keys += batch.keys
                sizes.append(len(batch))
                for row, key in enumerate(batch.keys):
                    for spec in made.manifest.arrays:
                        assert (batch.arrays[spec.name][row].numpy() == made.full(key, spec)).all()
    assert keys == sorted(made.samples)
    assert max(sizes) == 6 and min(sizes) < 6
    assert reader_threads() == []


def test_evaluation_with_more_ranks_than_samples_leaves_some_without(made):
    counts = [sum(len(b) for b in evaluation_batches(made.url, "train", 4, rank, 32)) for rank in range(32)]
    assert sum(counts) == 20 and set(counts) == {0, 1}


def test_settings_that_cannot_work_are_refused(made):
    with open_stream(made) as stream:
        config = stream.config
    for change in ({"threads": 0}, {"slots": 0}, {"global_batch": 0}, {"window_gib": 0}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            replace(config, **change)


def test_waiting_is_measured(made):
    with open_stream(made) as stream:
        assert all(0 <= batch.wait_s < 10 for batch in take(stream, 3))


def test_more_shards_than_files_may_be_open_raise_the_limit(tmp_path):
    made = make(tmp_path / "pairs", (1,) * 40)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
    try:
        with open_stream(made) as stream:
            assert len(take(stream, 1)[0]) == 12
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_closing_leaves_no_file_open(made):
    before = set(os.listdir("/proc/self/fd"))
    with open_stream(made) as stream:
        take(stream, 2)
        assert len(os.listdir("/proc/self/fd")) >= len(before) + 3
    assert set(os.listdir("/proc/self/fd")) <= before


def test_batches_stay_valid_while_as_many_are_held_as_asked_for(made):
    with open_stream(made, global_batch=4) as stream:
        expected = take(stream, 6)
    with open_stream(made, global_batch=4, hold=3, slots=1) as stream:
        batches = iter(stream)
        held = [next(batches) for _ in range(3)]
        for mine, other in zip(expected[:3], held, strict=True):
            assert_equal(mine, other)
        held = [next(batches) for _ in range(3)]
        for mine, other in zip(expected[3:], held, strict=True):
            assert_equal(mine, other)


def test_a_batch_that_is_not_held_is_written_again(made):
    with open_stream(made, global_batch=4, slots=1) as stream:
        batches = iter(stream)
        first = next(batches)
        before = first.copy()
        for _ in range(4):
            next(batches)
        assert any(not torch.equal(first.arrays[name], before.arrays[name]) for name in first.arrays)


def test_threads_take_turns_more_often_only_while_batches_are_read(made):
    before = sys.getswitchinterval()
    with open_stream(made) as stream, open_stream(made) as other:
        batches, others = iter(stream), iter(other)
        next(batches), next(others)
        assert sys.getswitchinterval() < before
        others.close()
        assert sys.getswitchinterval() < before
    assert sys.getswitchinterval() == before
