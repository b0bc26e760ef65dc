"""How a mixture is read: threads, files, caches, what ends them, and what is refused before."""

import gc
import time
from dataclasses import fields, replace

import fsspec
import pytest
from torch.utils.data import DataLoader

from pipeline.stream.exact import Stream, StreamConfig
from pipeline.stream.mixture import MixtureConfig, MixtureMember, MixtureStream
from pipeline.stream.torch_dataset import StreamDataset
from sharding.errors import ConfigError, DataError
from tests.unit.pipeline.mixed_sets import config, make_sets, open_stream, slots
from tests.unit.pipeline.small_shards import Made, damage, make, reader_threads, take


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Made]:
    return make_sets(tmp_path_factory.mktemp("mixture"))


def test_groups_that_cannot_cut_the_batch_are_refused(sets):
    with pytest.raises(ConfigError, match="12 samples cannot be cut into 5 equal groups"):
        open_stream(sets, groups=5)


def test_a_rank_opens_only_the_data_sets_of_which_it_can_get_a_sample(sets):
    def threads_of(rank, **changes) -> int:
        with open_stream(sets, rank, 4, weights={"ben": 1, "ssl": 1, "few": 1}, threads=1, **changes) as stream:
            batches = iter(stream)
            next(batches)
            return len(reader_threads())

    # Of 48 slots, 0-15 are ben's, 16-31 ssl's and 32-47 few's, give or take three; a rank has 12.
    assert [threads_of(rank, global_batch=48) for rank in range(4)] == [1, 2, 2, 1]


def test_threads_are_shared_by_what_is_read_of_each_data_set(sets):
    with open_stream(sets, weights={"ben": 7, "ssl": 1}, global_batch=64, threads=8) as stream:
        batches = iter(stream)
        next(batches)
        assert [source.threads for source in stream._sources._sources] == [7, 2]
        assert len(reader_threads()) == 9


def test_a_batch_stays_valid_until_the_next_is_asked_for(sets):
    with open_stream(sets, slots=1, threads=6) as stream:
        batches = iter(stream)
        for _ in range(6):
            batch = next(batches)
            kept = batch.copy()
            deadline = time.monotonic() + 20
            while not all(is_full(part._ring) for part in batches._batches.values()):
                assert time.monotonic() < deadline
                time.sleep(0.001)
            assert slots(batch) == slots(kept)  # the threads have overwritten whatever they may


def is_full(ring) -> bool:
    return len(ring._fills) == 1 and all(fill.is_ready for fill in tuple(ring._fills))


def test_one_flipped_bit_is_found_and_ends_the_threads_of_all_data_sets(tmp_path, sets):
    made = make(tmp_path / "bad", codec="none")
    with Stream(StreamConfig(url=made.url, global_batch=20)) as stream:
        record = stream._reader.table.records(take(stream, 1)[0].sample_id[:1].numpy())[0]
        path = made.root / stream._reader.table.files[int(record["file"][0])].path
    damage(path, int(record["offset"][0]) + 5)
    mixed = sets | {"bad": made}
    with open_stream(mixed, weights={"ben": 1, "bad": 1}) as stream, pytest.raises(DataError, match=path.name):
        take(stream, 5)
    assert reader_threads() == []


def test_moving_or_iterating_anew_ends_the_iterator(sets):
    with open_stream(sets) as stream:
        expected = take(stream, 2)[1]
        stream.set_epoch(0)
        old = iter(stream)
        next(old)
        assert slots(take(stream, 1)[0]) == slots(expected)
        with pytest.raises(RuntimeError, match="ended"):
            next(old)


def test_closing_ends_the_threads(sets):
    stream = open_stream(sets)
    batches = iter(stream)
    next(batches)
    assert len(reader_threads()) >= 3
    stream.close()
    assert reader_threads() == []
    with pytest.raises(RuntimeError, match="ended"):
        next(batches)
    with pytest.raises(ConfigError, match="closed"):
        iter(stream)


def test_dropping_the_iterator_ends_the_threads(sets):
    stream = open_stream(sets)
    for _ in stream:
        break
    gc.collect()
    assert reader_threads() == []
    stream.close()


def test_dropping_stream_and_iterator_together_ends_the_threads(sets):
    for _ in open_stream(sets):
        break
    gc.collect()
    assert reader_threads() == []


def test_waiting_and_reading_are_measured_over_all_data_sets(sets):
    with open_stream(sets) as stream:
        batches = take(stream, 4)
        measured = stream.instruments()
    assert all(0 <= batch.wait_s < 10 for batch in batches)
    assert measured.samples == 48 and measured.bytes_read > 0


def test_a_mixture_is_a_data_set_in_the_manners_of_torch(sets):
    mixture = config(sets)
    with open_stream(sets) as stream:
        expected = [slots(batch) for batch in take(stream, 5)]
    with StreamDataset(lambda *ranks: MixtureStream(mixture, *ranks), rank=0, world_size=1) as dataset:
        assert len(dataset) == 4
        found = [slots(batch) for batch in DataLoader(dataset, batch_size=None)]
        state = dataset.state_dict()
    with StreamDataset(lambda *ranks: MixtureStream(mixture, *ranks), rank=0, world_size=1) as dataset:
        dataset.load_state_dict(state)
        found.append(slots(next(iter(dataset))))
    assert found == expected


def test_a_batch_is_valid_for_as_long_as_was_asked_for(sets):
    with open_stream(sets, hold=3, slots=1) as stream:
        batches = iter(stream)
        held = [next(batches) for _ in range(3)]
        kept = [slots(batch) for batch in held]
        deadline = time.monotonic() + 20
        while not all(is_full(part._ring) for part in batches._batches.values()):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert [slots(batch) for batch in held] == kept


def test_the_options_of_a_stream_are_those_of_a_mixture():
    options = {field.name: field.default for field in fields(StreamConfig) if field.name not in ("url", "split")}
    mine = {field.name: field.default for field in fields(MixtureConfig)}
    assert {name: mine.get(name) for name in options} == options


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"threads": 0}, "threads is 0"),
        ({"window_gib": 0}, "window_gib"),
        ({"datasets": ()}, "no data set"),
        ({"temperature": 2.0}, "a temperature of 2.0 would change nothing"),
    ],
)
def test_settings_that_cannot_work_are_refused(sets, changes, said):
    good = config(sets)
    with pytest.raises(ConfigError, match=said):
        replace(good, **changes)


def test_a_temperature_that_cannot_work_is_refused(sets):
    with pytest.raises(ConfigError, match=r"the temperature is 0\.0"):
        open_stream(sets, weights=dict.fromkeys(sets), temperature=0.0)


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_cannot_work_is_refused(weight):
    with pytest.raises(ConfigError, match="must be above 0"):
        MixtureMember(url="a", weight=weight)


def test_weights_for_some_data_sets_only_are_refused(sets):
    with pytest.raises(ConfigError, match=r"ssl have no weight.* or none"):
        config(sets, weights={"ben": 1, "ssl": None})


def test_names_come_from_the_url_and_must_differ():
    assert MixtureMember(url="s3://bucket/ben@north/").title == "ben@north"
    assert MixtureMember(url="s3://bucket/ben", name="other").title == "other"
    with pytest.raises(ConfigError, match="two data sets of the mixture are called 'ben'"):
        MixtureConfig(datasets=(MixtureMember(url="a/ben"), MixtureMember(url="b/ben")), global_batch=4)
    with pytest.raises(ConfigError, match="set name"):
        MixtureMember(url="a", name="b/c")


def test_one_data_set_given_twice_is_refused(sets):
    members = (MixtureMember(url=sets["ben"].url), MixtureMember(url=sets["ben"].url, name="again"))
    with pytest.raises(ConfigError, match="'ben' and 'again' of the mixture are the same data set"):
        MixtureStream(MixtureConfig(datasets=members, global_batch=4))


def test_an_unknown_split_is_refused_with_the_data_set_and_its_splits(sets):
    members = (MixtureMember(url=sets["ben"].url), MixtureMember(url=sets["ssl"].url, split="test"))
    with pytest.raises(DataError, match=r"data set 'ssl' of the mixture: .* no split 'test'; it has train"):
        MixtureStream(MixtureConfig(datasets=members, global_batch=4))


def test_ranks_that_cannot_share_the_batch_are_refused(sets):
    with pytest.raises(ConfigError, match="take 10 or 15"):
        open_stream(sets, 0, 5)


@pytest.fixture
def remote(sets):
    """The same data sets in an object store."""
    memory = fsspec.filesystem("memory")
    for name, made in sets.items():
        memory.put(str(made.root), f"memory://{name}", recursive=True)
    yield {name: replace(made, url=f"memory://{name}") for name, made in sets.items()}
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def test_batches_from_an_object_store_equal_those_from_disk(sets, remote):
    with open_stream(sets) as local:
        expected = [slots(batch) for batch in take(local, 5)]
    with open_stream(remote) as stream:
        assert [slots(batch) for batch in take(stream, 5)] == expected
        assert stream.instruments().requests > 0
    assert reader_threads() == []


def test_the_ranks_of_a_node_share_what_they_fetch_of_each_data_set(sets, remote, tmp_path):
    with open_stream(sets) as local:
        expected = [slots(batch) for batch in take(local, 5)]
    found, measured = [], []
    for rank in range(3):  # the second has samples of ben, as the first, and of ssl, as the third
        with open_stream(remote, rank, 3, cache_dir=str(tmp_path / "cache")) as stream:
            found.append(take(stream, 5))
            measured.append(stream.instruments())
    assert [slots(*(part[step] for part in found)) for step in range(5)] == expected
    assert sum(one.cache_misses for one in measured) == 6  # all shards' runs: 3 of ben, 2 of ssl, 1 of few
    assert measured[0].cache_hits == 0 and measured[1].cache_hits > 0 and measured[2].cache_hits > 0


def test_a_cache_that_cannot_hold_the_windows_is_refused_with_the_data_set(remote):
    with pytest.raises(ConfigError, match=r"data set 'ben' of the mixture: .* raise cache_gib"):
        open_stream(remote, cache_gib=1e-6, window_gib=1.0)


def test_the_data_sets_share_the_cache_by_what_their_windows_need(remote):
    with open_stream(remote, window_gib=1e-4) as stream:
        members = enumerate(stream._members)
        needed = sum(stream._sources._windows_bytes(stream.order, *member) for member in members) / 2**30
    with open_stream(remote, window_gib=1e-4, cache_gib=needed * 1.01) as stream:
        assert len(take(stream, 3)) == 3
    with pytest.raises(ConfigError, match="raise cache_gib"):
        open_stream(remote, window_gib=1e-4, cache_gib=needed * 0.9)
