import gc
import pickle
import warnings
from functools import partial
from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from pipeline.stream import Stream, StreamConfig
from pipeline.stream.mixture import MixtureConfig, MixtureMember, MixtureStream
from pipeline.stream.torch_dataset import StreamDataset
from pipeline.stream.webdataset_reader import WebDatasetStream
from sharding.errors import ConfigError, DataError
from sharding.shard_index import parse_index
from tests.unit.pipeline.small_shards import Made, assert_equal, damage, join, make, reader_threads, take

# torchdata 0.11.0 makes a call of torch that torch 2.13 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")

LENGTH = 2
"""Global batches of 12 that hold the 20 pairs of `made` once."""


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def config(made: Made, **changes) -> StreamConfig:
    return StreamConfig(**({"url": made.url, "global_batch": 12} | changes))


def open_dataset(made: Made, **options) -> StreamDataset:
    return StreamDataset(config(made), **options)


def from_stream(made: Made, num: int, rank=0, world_size=1):
    """What the stream itself yields."""
    with Stream(config(made), rank, world_size) as stream:
        return take(stream, num)


def assert_all_equal(got, expected):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.step == b.step
        assert_equal(a, b)


def first(loader, num: int) -> list:
    """The first `num` batches that a loader gives, over the epochs' ends."""
    batches = []
    while len(batches) < num:
        batches += islice(loader, num - len(batches))
    return batches


def differ(got, expected) -> bool:
    return any(a.keys != b.keys for a, b in zip(got, expected, strict=True))


# Epochs


def test_epochs_follow_each_other_without_a_gap_and_have_the_length_that_is_told(made):
    with open_dataset(made) as dataset:
        epochs = [list(dataset) for _ in range(3)]
        assert [len(epoch) for epoch in epochs] == [len(dataset)] * 3 == [LENGTH] * 3
    assert_all_equal([batch for epoch in epochs for batch in epoch], from_stream(made, 3 * LENGTH))


def test_an_epoch_may_have_another_length(made):
    with open_dataset(made, epoch_batches=5) as dataset:
        assert len(list(dataset)) == len(dataset) == 5
        assert dataset.epoch == 1
    with pytest.raises(ConfigError, match="epoch_batches is 0"):
        open_dataset(made, epoch_batches=0)


def test_the_iteration_after_a_break_goes_on_with_the_rest_of_the_epoch(made):
    with open_dataset(made, epoch_batches=5) as dataset:
        begun = list(islice(dataset, 3))
        rest = list(dataset)
    assert_all_equal(begun + rest, from_stream(made, 5))


def test_set_epoch_goes_to_the_first_batch_of_an_epoch(made):
    with open_dataset(made, epoch_batches=3) as dataset:
        dataset.set_epoch(2)
        assert_all_equal(list(dataset), from_stream(made, 9)[6:])
        dataset.set_epoch(1)
        assert_all_equal(list(dataset), from_stream(made, 6)[3:])
        with pytest.raises(ConfigError, match="epoch -1 does not exist"):
            dataset.set_epoch(-1)


def test_set_epoch_within_the_epoch_stays(made):
    with open_dataset(made, epoch_batches=5) as dataset:
        begun = []
        for batch in islice(dataset, 3):
            dataset.set_epoch(0)
            begun.append(batch)
        assert_all_equal(begun + list(dataset), from_stream(made, 5))


def test_a_loop_that_counts_from_0_after_a_resume_is_refused(made):
    with open_dataset(made) as dataset:
        list(dataset)
        state = dataset.state_dict()
    with open_dataset(made) as dataset:
        dataset.load_state_dict(state)
        with pytest.raises(ConfigError, match=r"epoch 1, and set_epoch\(0\) would go back"):
            dataset.set_epoch(0)
        list(dataset)
        dataset.set_epoch(0)  # once something was read, the way back is meant
        assert_all_equal(list(dataset), from_stream(made, LENGTH))


def test_an_iteration_that_another_one_replaced_says_so(made):
    with open_dataset(made, epoch_batches=9) as dataset:
        first = iter(dataset)
        next(first)
        second = iter(dataset)
        next(second)
        with pytest.raises(RuntimeError, match="iterated anew"):
            next(first)
        assert next(second).step == 2
        dataset.set_epoch(3)
        with pytest.raises(RuntimeError, match="moved"):
            next(second)


def test_iterators_that_nobody_advances_cost_and_move_nothing(made):
    before = len(reader_threads())
    with open_dataset(made) as dataset:
        unused = [iter(dataset) for _ in range(3)]
        assert len(reader_threads()) == before
        assert_all_equal(list(dataset), from_stream(made, LENGTH))
        del unused


# State


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: DataLoader(d, batch_size=None)], ids=["itself", "DataLoader"])
@pytest.mark.parametrize("killed_after", [0, 1, 3, 5, 6])
def test_killed_and_resumed_is_the_same_as_uninterrupted(made, killed_after, wrap):
    expected = from_stream(made, 6)
    with open_dataset(made, epoch_batches=3) as dataset:
        got = first(wrap(dataset), killed_after)
        state = dataset.state_dict()
    with open_dataset(made, epoch_batches=3) as dataset:
        dataset.load_state_dict(state)
        for _ in range(dataset.epoch, 2):
            got += wrap(dataset)
    assert_all_equal(got, expected)


def test_without_its_state_a_resumed_run_differs(made):
    expected = from_stream(made, 3)
    with open_dataset(made, epoch_batches=3) as dataset:
        got = list(islice(dataset, 1))
    with open_dataset(made, epoch_batches=3) as dataset:
        got += list(dataset)[:2]
    assert differ(got, expected)


def test_the_state_is_the_streams_own(made):
    with Stream(config(made)) as stream, open_dataset(made) as dataset:
        next(iter(stream))
        dataset.load_state_dict(stream.state_dict())
        assert dataset.state_dict() == stream.state_dict()
        assert_all_equal([next(iter(dataset))], [next(iter(stream))])


def test_the_state_of_another_seed_is_refused(made):
    with StreamDataset(config(made, seed=1)) as dataset:
        state = dataset.state_dict()
    with open_dataset(made) as dataset, pytest.raises(ConfigError, match="seed was 1 and is 0"):
        dataset.load_state_dict(state)


def test_a_state_continues_on_another_number_of_ranks(made):
    with open_dataset(made) as dataset:
        next(iter(dataset))
        state = dataset.state_dict()
    parts = []
    for rank in range(3):
        with open_dataset(made, rank=rank, world_size=3) as dataset:
            dataset.load_state_dict(state)
            parts.append(list(dataset))
    whole = [join(list(ranks)) for ranks in zip(*parts, strict=True)]
    assert_all_equal(whole, from_stream(made, LENGTH)[1:])


class OneAhead:
    """Takes a batch before the one before it is used, as many wrappers do."""

    def __init__(self, dataset):
        self._dataset = dataset

    def __iter__(self):
        batches = iter(self._dataset)
        held = next(batches)
        for batch in batches:
            yield held
            held = batch
        yield held


def test_the_state_after_a_batch_is_right_when_others_were_taken_in_advance(made):
    expected = from_stream(made, 6)
    with open_dataset(made, epoch_batches=6) as dataset:
        got = list(islice(OneAhead(dataset), 3))
        ahead, behind = dataset.state_dict(), dataset.state_after(got[-1])
    for state, is_exact in ((behind, True), (ahead, False)):
        with open_dataset(made, epoch_batches=6) as dataset:
            dataset.load_state_dict(state)
            resumed = got + list(OneAhead(dataset))
        assert (len(resumed) == 6 and not differ(resumed, expected)) == is_exact


def test_the_state_after_a_batch_is_right_for_a_stream_that_began_within_a_batch(made):
    with Stream(config(made)) as stream:
        stream.set_epoch(1)  # position 20, no multiple of 12
        state = stream.state_dict()
        expected = take(stream, 3)
    with open_dataset(made, epoch_batches=6) as dataset:
        dataset.load_state_dict(state)
        first = next(iter(dataset))
        assert dataset.state_after(first) == dataset.state_dict()
        assert_all_equal([first, *islice(dataset, 2)], expected)


# Memory


def test_batches_stay_as_they_are_while_others_are_read(made):
    with open_dataset(made, epoch_batches=9) as dataset:
        held = list(dataset)
    assert_all_equal(held, from_stream(made, 9))


def test_without_copies_only_the_last_batch_is_valid(made):
    with open_dataset(made, epoch_batches=9, copy=False) as dataset:
        read = [batch.copy() for batch in dataset]
        held = list(dataset)
    assert_all_equal(read, from_stream(made, 9))
    expected = from_stream(made, 18)[9:]
    assert any(not torch.equal(a.arrays["s1"], b.arrays["s1"]) for a, b in zip(held, expected, strict=True))


def test_the_threads_end_with_the_dataset(made):
    before = len(reader_threads())
    dataset = open_dataset(made)
    next(iter(dataset))
    assert len(reader_threads()) > before
    dataset.close()
    assert len(reader_threads()) == before
    with pytest.raises(ConfigError, match="closed"):
        list(dataset)
    dataset = open_dataset(made)
    next(iter(dataset))
    del dataset
    gc.collect()
    assert len(reader_threads()) == before


def test_a_damaged_sample_is_said_again_by_the_next_iteration(made):
    shard = made.manifest.shards[0]
    payload = parse_index((made.root / shard.index_path).read_bytes(), "index").records["arrays"][0, 0]
    damage(made.root / shard.path, int(payload["offset"]))
    with open_dataset(made) as dataset:
        for _ in range(2):
            with pytest.raises(DataError, match="train-00000"):
                list(dataset)


# Ranks


def test_the_ranks_share_each_global_batch(made):
    parts = []
    for rank in range(2):
        with open_dataset(made, rank=rank, world_size=2) as dataset:
            assert len(dataset) == LENGTH
            parts.append(list(dataset))
    assert_all_equal([join(list(ranks)) for ranks in zip(*parts, strict=True)], from_stream(made, LENGTH))


def test_the_launchers_variables_tell_the_rank(made, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with open_dataset(made) as dataset:
        assert (dataset.rank, dataset.world_size) == (1, 2)
        assert_all_equal(list(dataset), from_stream(made, LENGTH, 1, 2))


def test_a_rank_that_is_known_only_after_the_dataset_was_made_is_followed(made, monkeypatch):
    with open_dataset(made) as dataset:
        next(iter(dataset))
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert_all_equal(list(dataset), from_stream(made, LENGTH, 1, 2)[1:])


def test_a_given_rank_holds_against_the_launchers(made, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with open_dataset(made, rank=0, world_size=1) as dataset:
        assert_all_equal(list(dataset), from_stream(made, LENGTH))


def test_the_process_group_counts_for_more_than_the_variables(made, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        with open_dataset(made) as dataset:
            assert (dataset.rank, dataset.world_size) == (0, 1)
    finally:
        torch.distributed.destroy_process_group()


def test_a_world_without_ranks_is_refused_before_the_first_batch(made, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with open_dataset(made) as dataset:
        assert len(dataset) == LENGTH  # Lightning's launcher says the rank only with the process group
        with pytest.raises(ConfigError, match="init_process_group"):
            iter(dataset)
        monkeypatch.setenv("RANK", "0")
        assert_all_equal(list(dataset), from_stream(made, LENGTH, 0, 2))


def test_ranks_that_make_no_sense_are_refused(made, monkeypatch):
    with pytest.raises(ConfigError, match="belong together"):
        open_dataset(made, rank=1)
    with pytest.raises(ConfigError, match="cannot be shared equally by 5 ranks"):
        open_dataset(made, rank=0, world_size=5)
    monkeypatch.setenv("RANK", "first")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="RANK is 'first'"):
        open_dataset(made)


# Loaders


def test_a_dataloader_around_it_changes_nothing(made):
    with open_dataset(made) as dataset, warnings.catch_warnings():
        loader = DataLoader(dataset, batch_size=None)
        assert len(loader) == LENGTH
        got = [batch for _ in range(3) for batch in loader]
    assert_all_equal(got, from_stream(made, 3 * LENGTH))


def test_a_dataloader_hands_out_what_its_collate_fn_makes(made):
    with open_dataset(made) as dataset:
        loader = DataLoader(dataset, batch_size=None, collate_fn=lambda batch: {"s1": batch.arrays["s1"]})
        got = list(loader)
    for made_of, batch in zip(got, from_stream(made, LENGTH), strict=True):
        assert torch.equal(made_of["s1"], batch.arrays["s1"])


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # Python 3.12's
def test_worker_processes_are_refused_with_what_to_write(made, start):
    with open_dataset(made) as dataset:
        loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=start)
        with pytest.raises(ConfigError, match="num_workers=0"):
            batches = iter(loader)
            next(batches)
        if start == "fork":
            batches._shutdown_workers()  # left to the garbage collector, torch waits 5 s for each of them


def test_it_does_not_pickle(made):
    with open_dataset(made) as dataset, pytest.raises(ConfigError, match="another process"):
        pickle.dumps(dataset)


def test_a_dataloader_that_would_batch_the_batches_is_refused_by_torch(made):
    with open_dataset(made) as dataset, pytest.raises(TypeError, match="Batch"):
        next(iter(DataLoader(dataset)))


@pytest.mark.parametrize("killed_after", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("collate_fn", [None, lambda batch: batch], ids=["batches", "collated"])
def test_a_stateful_dataloader_resumes_within_an_epoch_and_between_two(made, killed_after, collate_fn):
    def loader(dataset):
        return StatefulDataLoader(dataset, batch_size=None, collate_fn=collate_fn)

    with open_dataset(made, epoch_batches=3) as dataset:
        interrupted = loader(dataset)
        got = first(interrupted, killed_after)
        state = interrupted.state_dict()
    with open_dataset(made, epoch_batches=3) as dataset:
        resumed = loader(dataset)
        resumed.load_state_dict(state)
        while len(got) < 6:
            got += resumed
    assert_all_equal(got, from_stream(made, 6))


def test_a_stateful_dataloader_without_its_state_starts_over(made):
    with open_dataset(made, epoch_batches=3) as dataset:
        got = list(islice(StatefulDataLoader(dataset, batch_size=None), 1))
    with open_dataset(made, epoch_batches=3) as dataset:
        got += list(StatefulDataLoader(dataset, batch_size=None))[:2]
    assert differ(got, from_stream(made, 3))


# Other streams


def test_another_kind_of_stream_may_be_wrapped(tmp_path):
    made = make(tmp_path / "pairs", codec="none")
    with StreamDataset(lambda rank, world_size: WebDatasetStream(config(made), rank, world_size)) as dataset:
        got = list(dataset)
        state = dataset.state_dict()
    with open_dataset(made) as dataset:
        dataset.load_state_dict(state)
        assert_all_equal(got + list(dataset), from_stream(made, 2 * LENGTH))


def test_a_mixture_may_be_wrapped(tmp_path):
    urls = [make(tmp_path / name, sizes).url for name, sizes in (("ben", (7, 5, 8)), ("few", (5,)))]
    members = tuple(MixtureMember(url=url) for url in urls)
    open_mixture = partial(MixtureStream, MixtureConfig(datasets=members, global_batch=10))
    with open_mixture(0, 1) as stream:
        expected = [batch.keys for batch in islice(stream, 6)]
    with StreamDataset(open_mixture) as dataset:
        assert len(dataset) == 3  # 25 pairs
        got = list(islice(dataset, 2))
        state = dataset.state_dict()
        assert dataset.state_after(got[-1]) == state
    with StreamDataset(open_mixture) as dataset:
        dataset.load_state_dict(state)
        got += [batch for _ in range(2) for batch in dataset]
    assert [batch.keys for batch in got] == expected[:6]
