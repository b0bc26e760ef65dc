"""Whatever is stopped, resized and read from wherever: the same batches, each sample once an epoch, bit for bit."""

from collections import Counter
from itertools import islice

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.stream.exact import Stream, StreamConfig
from tests.unit.pipeline.small_shards import assert_equal, join, make, reader_threads, take

G = 12
BATCHES = 15


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    made = make(tmp_path_factory.mktemp("data") / "pairs", (17, 5, 23, 8), subset_every=4, offset_every=3)
    fsspec.filesystem("memory").put(str(made.root), "memory://properties", recursive=True)
    yield made
    fsspec.filesystem("memory").rm("properties", recursive=True)


@pytest.fixture(scope="module")
def expected(made):
    with Stream(StreamConfig(url=made.url, global_batch=G, window_gib=1e-4)) as stream:
        return take(stream, BATCHES)


stretches = st.lists(
    st.fixed_dictionaries(
        {
            "ranks": st.sampled_from([1, 2, 3, 4, 6, 12]),
            "threads": st.integers(1, 4),
            "slots": st.integers(1, 3),
            "batches": st.integers(1, 4),
            "left": st.integers(0, 2),
            "place": st.sampled_from(["disk", "memory", "cache"]),
        }
    ),
    min_size=1,
    max_size=4,
)


def streams_of(made, stretch, cache) -> list[Stream]:
    url = made.url if stretch["place"] == "disk" else "memory://properties"
    config = StreamConfig(
        url=url,
        global_batch=G,
        window_gib=1e-4,
        threads=stretch["threads"],
        slots=stretch["slots"],
        cache_dir=str(cache) if stretch["place"] == "cache" else "",
    )
    return [Stream(config, rank, stretch["ranks"]) for rank in range(stretch["ranks"])]


@given(plan=stretches)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_stops_and_layouts_give_the_batches_of_one_uninterrupted_process(made, expected, tmp_path, plan):
    step, state = 0, None
    for stretch in plan:
        streams = streams_of(made, stretch, tmp_path / "cache")
        for stream in streams:
            if state is not None:
                stream.load_state_dict(state)
        batches = [iter(stream) for stream in streams]
        for _ in range(min(stretch["batches"], BATCHES - step)):
            assert_equal(join([next(batch) for batch in batches]), expected[step])
            step += 1
        states = [stream.state_dict() for stream in streams]
        assert all(found == states[0] for found in states)
        state = states[0]
        # Some ranks have gone further when the job is killed: what they read is lost, and nothing else.
        for batch in batches[: stretch["left"]]:
            next(batch)
        for stream in streams:
            stream.close()
    assert reader_threads() == []


@given(ranks=st.sampled_from([1, 2, 3, 4, 6, 12]), threads=st.integers(1, 4))
@settings(max_examples=8, deadline=None)
def test_each_sample_comes_once_an_epoch_over_all_ranks_with_its_own_pixels(made, ranks, threads):
    streams = streams_of(made, {"place": "disk", "ranks": ranks, "threads": threads, "slots": 2}, None)
    seen = Counter()
    for stream in streams:
        for batch in islice(stream, -(-2 * len(made.samples) // G)):
            seen.update(zip(batch.epoch.tolist(), batch.keys, strict=True))
            for name, array in batch.arrays.items():
                spec = next(spec for spec in made.manifest.arrays if spec.name == name)
                assert all(
                    (made.full(key, spec) == planes.numpy()).all()
                    for key, planes in zip(batch.keys, array, strict=True)
                )
        stream.close()
    assert all(seen[epoch, key] == 1 for epoch in range(2) for key in made.samples)


def test_without_its_state_a_stream_begins_anew(made, expected):
    with Stream(StreamConfig(url=made.url, global_batch=G, window_gib=1e-4)) as stream:
        take(stream, 3)
    with Stream(StreamConfig(url=made.url, global_batch=G, window_gib=1e-4)) as stream:
        assert take(stream, 1)[0].keys != expected[3].keys


def test_another_window_is_another_order_unless_the_state_brings_its_own(made, expected):
    with Stream(StreamConfig(url=made.url, global_batch=G, window_gib=1e-4)) as stream:
        take(stream, 3)
        state = stream.state_dict()
    with Stream(StreamConfig(url=made.url, global_batch=G, window_gib=1e-5)) as stream:
        assert take(stream, 4)[3].keys != expected[3].keys
        stream.load_state_dict(state)
        assert_equal(take(stream, 1)[0], expected[3])
