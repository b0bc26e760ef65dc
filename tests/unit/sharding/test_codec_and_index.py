"""Payloads and indexes come back as they were, and a damaged one is refused."""

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.bands import ALL_BANDS, ARRAY_BANDS, presence_mask, present_bands
from sharding.codec import CODECS, decode_into, encode
from sharding.errors import DataError
from sharding.index import ShardIndex, dump_index, parse_index, record_dtype

DTYPES = st.sampled_from([np.uint16, np.float32, np.float16, np.int16])
SHAPES = arrays.array_shapes(min_dims=3, max_dims=3, max_side=24)


@pytest.mark.parametrize("codec", CODECS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_payloads_come_back_bit_for_bit(codec, data):
    array = data.draw(arrays.arrays(data.draw(DTYPES), data.draw(SHAPES)))
    out = np.empty_like(array)
    decode_into(encode(array, codec), out, codec)
    assert out.tobytes() == array.tobytes()


@pytest.mark.parametrize("codec", CODECS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_cut_payload_is_refused(codec, data):
    array = data.draw(arrays.arrays(np.uint16, data.draw(SHAPES)))
    payload = encode(array, codec)
    cut = data.draw(st.integers(0, len(payload) - 1))
    with pytest.raises(DataError):
        decode_into(payload[:cut], np.empty_like(array), codec)


@pytest.mark.parametrize("codec", CODECS)
def test_a_payload_of_another_shape_is_refused(codec):
    payload = encode(np.zeros((2, 3, 4), np.uint16), codec)
    with pytest.raises(DataError, match="were expected"):
        decode_into(payload, np.empty((2, 3, 5), np.uint16), codec)


def test_transposed_arrays_are_encoded_as_they_look():
    array = np.arange(24, dtype=np.uint16).reshape(2, 3, 4).transpose(2, 1, 0)
    out = np.empty((4, 3, 2), np.uint16)
    decode_into(encode(array, "lz4"), out, "lz4")
    assert np.array_equal(out, array)


KEYS = st.lists(st.from_regex(r"[A-Za-z0-9_/-]{1,40}", fullmatch=True), unique=True, max_size=20)


def random_index(keys: list[str], seed: int) -> ShardIndex:
    names = tuple(ARRAY_BANDS)
    dtype = record_dtype(len(names), max((len(key) for key in keys), default=1))
    rng = np.random.default_rng(seed)
    records = np.frombuffer(rng.bytes(dtype.itemsize * len(keys)), dtype).copy()
    records["key"] = [key.encode() for key in keys]
    return ShardIndex(arrays=names, records=records)


@settings(max_examples=50, deadline=None)
@given(keys=KEYS, seed=st.integers(0, 2**32))
def test_an_index_comes_back_bit_for_bit(keys, seed):
    index = random_index(keys, seed)
    again = parse_index(dump_index(index), "a.idx")
    assert again.arrays == index.arrays
    assert again.keys == keys
    assert again.records.tobytes() == index.records.tobytes()


@settings(max_examples=100, deadline=None)
@given(keys=KEYS, seed=st.integers(0, 2**32), data=st.data())
def test_one_flipped_bit_of_an_index_is_noticed(keys, seed, data):
    content = bytearray(dump_index(random_index(keys, seed)))
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    content[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DataError, match=r"a\.idx"):
        parse_index(bytes(content), "a.idx")


@settings(max_examples=50, deadline=None)
@given(keys=KEYS, data=st.data())
def test_a_cut_index_is_noticed(keys, data):
    content = dump_index(random_index(keys, 0))
    with pytest.raises(DataError, match=r"a\.idx"):
        parse_index(content[: data.draw(st.integers(0, len(content) - 1))], "a.idx")


@given(bands=st.sets(st.sampled_from(ALL_BANDS)))
def test_the_presence_mask_names_the_bands(bands):
    mask = presence_mask(list(bands))
    assert {band for name in ARRAY_BANDS for band in present_bands(mask, name)} == bands
