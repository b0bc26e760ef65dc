import tarfile
from dataclasses import replace
from itertools import islice

import pytest

from pipeline.stream.exact import Stream, StreamConfig
from pipeline.stream.webdataset_reader import WebDatasetStream
from sharding.errors import ConfigError, DataError
from sharding.manifest import dump_manifest
from tests.unit.pipeline.small_shards import assert_equal, damage, make, take
from tests.unit.sharding.terramesh_archive import write_tar
from tests.unit.sharding.test_index_command_webdataset import members, run


@pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
def test_batches_equal_those_of_the_stream(tmp_path, codec):
    made = make(tmp_path / "pairs", codec=codec, subset_every=3, offset_every=4)
    config = StreamConfig(url=made.url, global_batch=12)
    with Stream(config, 1, 2) as ours, WebDatasetStream(config, 1, 2) as theirs:
        for mine, other in zip(take(ours, 5), islice(theirs, 5), strict=False):
            assert mine.step == other.step
            assert_equal(mine, other)
        assert ours.state_dict() == theirs.state_dict()


def test_each_reader_resumes_from_the_state_of_the_other(made):
    config = StreamConfig(url=made.url, global_batch=6)
    with Stream(config) as ours, WebDatasetStream(config) as theirs:
        take(ours, 2)
        theirs.load_state_dict(ours.state_dict())
        assert_equal(take(ours, 1)[0], next(iter(theirs)))
        ours.load_state_dict(theirs.state_dict())
        assert_equal(take(ours, 1)[0], take(theirs, 1)[0])


def test_a_cache_smaller_than_a_shard_still_gives_the_same(made):
    with Stream(StreamConfig(url=made.url, global_batch=6)) as ours:
        expected = take(ours, 3)
    with WebDatasetStream(StreamConfig(url=made.url, global_batch=6, cache_gib=1e-9)) as theirs:
        for mine, other in zip(expected, islice(theirs, 3), strict=True):
            assert_equal(mine, other)
        assert len(theirs._cache) == 1


def test_moving_the_stream_ends_its_iterator(made):
    with WebDatasetStream(StreamConfig(url=made.url, global_batch=6)) as stream:
        batches = iter(stream)
        next(batches)
        stream.set_epoch(1)
        with pytest.raises(RuntimeError, match="ended"):
            next(batches)


def boundaries(path):
    with tarfile.open(path) as tar:
        return [info.offset for info in tar.getmembers()]


@pytest.mark.parametrize("cut", [0, 100, 512, 1000])
def test_a_cut_shard_is_named(made, cut):
    path = made.root / made.manifest.shards[0].path
    path.write_bytes(path.read_bytes()[: boundaries(path)[3] + cut])
    with (
        WebDatasetStream(StreamConfig(url=made.url, global_batch=20)) as stream,
        pytest.raises(DataError, match=path.name),
    ):
        next(iter(stream))


def test_a_missing_shard_is_named(made):
    path = made.root / made.manifest.shards[1].path
    path.unlink()
    with (
        WebDatasetStream(StreamConfig(url=made.url, global_batch=20)) as stream,
        pytest.raises(DataError, match=path.name),
    ):
        next(iter(stream))


@pytest.mark.parametrize("place", [10, 3000])
def test_a_flipped_bit_in_a_header_or_a_payload_is_found(tmp_path, place):
    made = make(tmp_path / "pairs", codec="none")
    path = made.root / made.manifest.shards[0].path
    damage(path, boundaries(path)[2] + place)
    with (
        WebDatasetStream(StreamConfig(url=made.url, global_batch=20)) as stream,
        pytest.raises(DataError, match=path.name),
    ):
        next(iter(stream))


def test_what_webdataset_cannot_read_is_told_to_be_read_by_the_stream(made, tmp_path):
    subset = replace(made.manifest, subset="few")
    (made.root / "versions").mkdir()
    (made.root / "versions" / "few.json").write_bytes(dump_manifest(subset))
    write_tar(tmp_path / "archive" / "train" / "000.tar", members())
    assert run(tmp_path / "archive", tmp_path / "index").code == 0
    for url, said in ((f"{made.url}@few", "is a subset"), (str(tmp_path / "index"), "was indexed as it lies")):
        with pytest.raises(ConfigError, match=f"{said}.* read it with data.reader=exact"):
            WebDatasetStream(StreamConfig(url=url, global_batch=2))
        with Stream(StreamConfig(url=url, global_batch=2)) as stream:
            assert len(take(stream, 1)[0]) == 2
