import json
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stream.exact import Stream, StreamConfig, evaluation_batches
from sharding.errors import ConfigError
from tests.unit.pipeline.mixed_sets import make_sets, open_stream, slots
from tests.unit.pipeline.small_shards import Made, take


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Made]:
    return make_sets(tmp_path_factory.mktemp("mixture"))


def test_pixels_are_those_that_were_stored_in_each_data_set(sets):
    with open_stream(sets) as stream:
        for batch in take(stream, 4):
            for name, part in zip(batch.names, batch.parts, strict=True):
                for row, key in enumerate(part.keys):
                    for spec in sets[name].manifest.arrays:
                        assert (part.arrays[spec.name][row].numpy() == sets[name].full(key, spec)).all()


def test_each_part_equals_its_data_set_read_alone_bit_for_bit(sets):
    alone = {}
    for name, made in sets.items():
        with evaluation_batches(made.url, "train", 64) as batches:
            (alone[name],) = [batch.copy() for batch in batches]
    with open_stream(sets) as stream:
        for batch in take(stream, 6):
            for name, part in zip(batch.names, batch.parts, strict=True):
                rows = part.sample_id
                assert part.keys == [alone[name].keys[row] for row in rows.tolist()]
                assert torch.equal(part.labels, alone[name].labels[rows])
                assert torch.equal(part.radiometric_offset, alone[name].radiometric_offset[rows])
                for array in part.arrays:
                    assert torch.equal(part.arrays[array], alone[name].arrays[array][rows])
                    assert torch.equal(part.present[array], alone[name].present[array][rows])


def test_each_sample_comes_once_in_each_epoch_of_its_own_data_set(sets):
    with open_stream(sets) as stream:
        seen = Counter(slot[:3] for batch in take(stream, 15) for slot in slots(batch))
        epochs = stream.epochs
    assert set(seen.values()) == {1}
    assert {name: int(passed) for name, passed in epochs.items()} == {"ben": 4, "ssl": 4, "few": 6}
    for name, made in sets.items():
        for epoch in range(int(epochs[name])):
            assert {key for which, key, e in seen if (which, e) == (name, epoch)} == made.samples.keys()


def test_every_batch_has_the_data_sets_in_their_shares(sets):
    with open_stream(sets) as stream:
        for batch in take(stream, 8):
            assert dict(zip(batch.names, map(len, batch.parts), strict=True)) == {"ben": 6, "ssl": 4, "few": 2}
        assert stream.shares == {"ben": 3 / 6, "ssl": 2 / 6, "few": 1 / 6}


def test_without_weights_the_shares_go_by_size_and_a_temperature_evens_them(sets):
    by_size = {name: size / 38 for name, size in (("ben", 20), ("ssl", 13), ("few", 5))}
    weights = dict.fromkeys(sets)
    with open_stream(sets, weights=weights) as stream:
        assert stream.shares == pytest.approx(by_size)
    with open_stream(sets, weights=weights, temperature=float("inf")) as stream:
        assert stream.shares == pytest.approx(dict.fromkeys(sets, 1 / 3))
    with open_stream(sets, weights=weights, temperature=2.0) as stream:
        powers = {name: share**0.5 for name, share in by_size.items()}
        assert stream.shares == pytest.approx({name: p / sum(powers.values()) for name, p in powers.items()})


@pytest.mark.parametrize("world_size", [2, 3, 4, 6, 12])
def test_global_batches_are_the_same_for_every_number_of_ranks(sets, world_size):
    with open_stream(sets) as stream:
        whole = take(stream, 4)
    parts = []
    for rank in range(world_size):
        with open_stream(sets, rank, world_size, threads=1 + rank % 3) as stream:
            parts.append(take(stream, 4))
    for step, batch in enumerate(whole):
        assert slots(*(part[step] for part in parts)) == slots(batch)
        assert all(len(part[step]) == 12 // world_size and part[step].step == step for part in parts)


@pytest.mark.parametrize("step", range(4))
def test_resumed_equals_uninterrupted(sets, step):
    with open_stream(sets) as stream:
        whole = take(stream, 6)
    with open_stream(sets) as stream:
        take(stream, step)
        state = json.loads(json.dumps(stream.state_dict()))
    with open_stream(sets) as stream:
        stream.load_state_dict(state)
        for expected, batch in zip(whole[step:], take(stream, 6 - step), strict=True):
            assert batch.step == expected.step
            assert slots(batch) == slots(expected)


@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_stopped_and_resized_at_random_the_ranks_see_the_uninterrupted_stream(sets, data):
    steps, groups = 6, data.draw(st.sampled_from([1, 2, 3]), "groups")
    with open_stream(sets, groups=groups) as stream:
        expected = [slots(batch) for batch in take(stream, steps)]
    state, found = None, []
    while len(found) < steps:
        world_size = data.draw(st.sampled_from([1, 2, 3, 4, 6]), "ranks")
        count = data.draw(st.integers(1, steps - len(found)), "steps")
        ranks, states = [], []
        for rank in range(world_size):
            threads = data.draw(st.integers(1, 3), "threads")
            with open_stream(sets, rank, world_size, groups=groups, threads=threads) as stream:
                if state is not None:
                    stream.load_state_dict(state)
                ranks.append(take(stream, count))
                states.append(stream.state_dict())
        assert all(one == states[0] for one in states)
        state = json.loads(json.dumps(states[0]))
        found += [slots(*(rank[step] for rank in ranks)) for step in range(count)]
    assert found == expected


def test_without_the_state_or_with_another_seed_the_batches_differ(sets):
    with open_stream(sets) as stream:
        whole = [slots(batch) for batch in take(stream, 3)]
    with open_stream(sets) as stream:
        assert slots(take(stream, 1)[0]) != whole[2]
    with open_stream(sets, seed=1) as stream:
        assert [slots(batch) for batch in take(stream, 3)] != whole


def test_a_data_set_mixed_in_leaves_the_order_of_the_others_as_it_is(sets):
    def of_ben(stream, num):
        return [slot for batch in take(stream, num) for slot in slots(batch) if slot[0] == "ben"]

    with open_stream(sets, weights={"ben": 1}, global_batch=6) as stream:
        alone = of_ben(stream, 5)
    with open_stream(sets, weights={"ben": 1, "ssl": 1}, global_batch=12) as stream:
        assert of_ben(stream, 5) == alone


def test_state_is_small_and_the_same_on_every_rank(sets):
    states = []
    for rank in range(3):
        with open_stream(sets, rank, 3) as stream:
            take(stream, 5)
            states.append(json.dumps(stream.state_dict()))
    assert len(set(states)) == 1
    assert len(states[0]) < 100 + 3 * 300


def test_state_counts_what_was_yielded_not_what_was_read_ahead(sets):
    with open_stream(sets, slots=5) as stream:
        batches = iter(stream)
        assert stream.state_dict()["samples_seen"] == 0
        next(batches), next(batches)
        assert stream.state_dict()["samples_seen"] == 24
        assert stream.epochs == {"ben": 12 / 20, "ssl": 8 / 13, "few": 4 / 5}
        assert stream.epoch == 0


def test_order_settings_of_the_state_win_over_the_configured_ones(sets):
    with open_stream(sets, window_gib=1e-5) as stream:
        take(stream, 1)
        state = stream.state_dict()
        expected = take(stream, 2)
    with open_stream(sets) as stream:
        assert stream.state_dict()["datasets"] != state["datasets"]
        stream.load_state_dict(state)
        assert stream.state_dict() == state
        assert [slots(batch) for batch in take(stream, 2)] == [slots(batch) for batch in expected]


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1)])
def test_groups_of_the_state_win_over_the_configured_ones_on_every_rank(sets, before, after):
    with open_stream(sets, groups=before) as stream:
        expected = [slots(batch) for batch in take(stream, 4)]
    with open_stream(sets, groups=before) as stream:
        take(stream, 1)
        state = stream.state_dict()
    ranks = []
    for rank in range(3):
        with open_stream(sets, rank, 3, groups=after) as stream:
            stream.load_state_dict(state)
            ranks.append(take(stream, 3))
    assert [slots(*(rank[step] for rank in ranks)) for step in range(3)] == expected[1:]


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"ben": 3, "ssl": 2}, "data set 'few' is gone; set .* set its `name` to what it was"),
        ({"ben": 3, "few": 1}, "data set 'ssl' is gone"),
        ({"ssl": 2, "ben": 3, "few": 1}, "the order of the data sets was"),
        ({"ben": 3, "ssl": 2, "few": 2}, "the share of data set 'ben' was '3 of 6 parts' and is '3 of 7 parts'"),
    ],
)
def test_a_state_of_another_mixture_is_refused_by_name(sets, weights, said):
    with open_stream(sets) as stream:
        state = stream.state_dict()
    with open_stream(sets, weights=weights) as stream, pytest.raises(ConfigError, match=said):
        stream.load_state_dict(state)


def test_a_state_with_fewer_data_sets_is_refused_by_the_new_ones(sets):
    with open_stream(sets, weights={"ben": 3, "ssl": 2}) as stream:
        state = stream.state_dict()
    with open_stream(sets) as stream, pytest.raises(ConfigError, match="data set 'few' is new"):
        stream.load_state_dict(state)


@pytest.mark.parametrize(("name", "said"), [("fingerprint", "another data set"), ("split", "set its split back")])
def test_a_state_of_another_data_set_under_the_same_name_is_refused(sets, name, said):
    with open_stream(sets) as stream:
        state = stream.state_dict()
        state["datasets"][1][name] = "other"
        with pytest.raises(ConfigError, match=f"{name} of data set 'ssl' was 'other' .*{said}"):
            stream.load_state_dict(state)


@pytest.mark.parametrize("name", ["seed", "global_batch"])
def test_a_state_of_another_order_is_refused(sets, name):
    with open_stream(sets) as stream:
        state = stream.state_dict()
        state[name] += 1
        with pytest.raises(ConfigError, match=f"{name} was .* and is"):
            stream.load_state_dict(state)


def test_weights_in_the_same_proportion_are_the_same_mixture(sets):
    with open_stream(sets) as stream:
        state = stream.state_dict()
    with open_stream(sets, weights={"ben": 0.3, "ssl": 0.2, "few": 0.1}) as stream:
        stream.load_state_dict(state)


def test_states_of_other_programs_are_refused(sets):
    with Stream(StreamConfig(url=sets["ben"].url, global_batch=12)) as single:
        state = single.state_dict()
        with open_stream(sets) as stream:
            with pytest.raises(ConfigError, match="a stream of one data set"):
                stream.load_state_dict(state)
            with pytest.raises(ConfigError, match=r"lacks .*datasets"):
                stream.load_state_dict({"samples_seen": 3})
            with pytest.raises(ConfigError, match="lacks"):
                single.load_state_dict(stream.state_dict())


def test_set_epoch_counts_as_many_batches_as_hold_all_data_sets(sets):
    with open_stream(sets) as stream:
        ninth = take(stream, 9)[8]
        assert stream.epoch == 2  # 38 samples are four batches of 12
        stream.set_epoch(2)
        assert stream.epoch == 2 and stream.state_dict()["samples_seen"] == 2 * 48
        assert slots(take(stream, 1)[0]) == slots(ninth)


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_groups_mix_alike_and_are_the_same_for_every_number_of_ranks(sets, world_size):
    def of_all_ranks(world_size):
        ranks = []
        for rank in range(world_size):
            with open_stream(sets, rank, world_size, groups=3, global_batch=36) as stream:
                ranks.append(take(stream, 4))
        return [slots(*(rank[step] for rank in ranks)) for step in range(4)]

    whole = of_all_ranks(1)
    assert of_all_ranks(world_size) == whole
    for batch in whole:
        for group in range(3):
            names = [slot[0] for slot in batch[12 * group : 12 * group + 12]]
            assert names == ["ben"] * 6 + ["ssl"] * 4 + ["few"] * 2


def test_a_batch_without_a_sample_of_a_data_set_has_no_part_of_it(sets):
    with open_stream(sets, weights={"ben": 47, "few": 1}) as stream:
        batches = take(stream, 12)
    without = [batch for batch in batches if batch.names == ("ben",)]
    assert len(without) == 9
    assert all(len(batch) == 12 and batch.numbers == (0,) for batch in without)
    assert [slot[1:3] for batch in batches for slot in slots(batch) if slot[0] == "few"] != []


def test_a_data_set_smaller_than_its_part_of_a_batch_comes_several_times(sets):
    with open_stream(sets, weights={"few": 1}, global_batch=12) as stream:
        batch = take(stream, 1)[0]
    assert Counter(batch.parts[0].epoch.tolist()) == {0: 5, 1: 5, 2: 2}


@pytest.mark.parametrize("groups", [1, 2])
def test_split_gives_micro_batches_of_equal_size_in_the_order_of_the_slots(sets, groups):
    with open_stream(sets, groups=groups) as stream:
        batch = take(stream, 1)[0]
    for num in (1, 2, 3, 4, 6, 12):
        parts = batch.split(num)
        assert [len(part) for part in parts] == [12 // num] * num
        assert slots(*parts) == slots(batch)
        assert [key for part in parts for key in part.keys] == batch.keys
        assert torch.equal(torch.cat([part.position for part in parts]), batch.position)
    with pytest.raises(ConfigError, match=r"12 samples .* 5 equal"):
        batch.split(5)


def test_rows_names_and_keys_say_which_slot_is_whose(sets):
    with open_stream(sets, groups=2, global_batch=24) as stream:
        batch = take(stream, 1)[0]
    assert batch.names == ("ben", "ssl", "few")
    assert [rows.tolist() for rows in batch.rows] == [
        [*range(0, 6), *range(12, 18)], [*range(6, 10), *range(18, 22)], [10, 11, 22, 23],
    ]  # fmt: skip
    assert batch.keys == [f"{name}/{key}" for name, key, *_ in slots(batch)]
    assert batch.epoch.tolist() == [slot[2] for slot in slots(batch)]
    assert [position % 2**32 for position in batch.position.tolist()] == [slot[3] for slot in slots(batch)]


def test_no_two_data_sets_share_the_key_of_a_samples_random_draws(sets):
    with open_stream(sets) as stream:
        batches = take(stream, 10)
    plain = [slot[2:4] for batch in batches for slot in slots(batch)]
    assert len(set(plain)) < len(plain)  # what would be shared
    keys = [pair for b in batches for pair in zip(b.epoch.tolist(), b.position.tolist(), strict=True)]
    assert len(set(keys)) == len(keys)


def test_the_fingerprint_tells_mixtures_apart(sets):
    def fingerprint(*names) -> str:
        with open_stream(sets, weights=dict.fromkeys(names, 1)) as stream:
            return stream.fingerprint

    found = [fingerprint(*names) for names in (("ben", "ssl"), ("ssl", "ben"), ("ben", "few"), ("ben",))]
    assert len(set(found)) == 4 and all(len(one) == 64 for one in found)
    assert fingerprint("ben", "ssl") == found[0]
