"""Payloads and indexes come back as they were, and a damaged one is refused."""

import contextlib
import json

import google_crc32c
import hypothesis.extra.numpy as arrays
import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import blosc

from sharding.bands import ALL_BANDS, ARRAY_BANDS, presence_mask, present_bands
from sharding.codec import CODECS, decode_into, encode, zarr_codecs
from sharding.errors import DataError
from sharding.shard_index import MAGIC, ShardIndex, dump_index, parse_index, record_dtype

DTYPES = st.sampled_from([np.uint8, np.uint16, np.int16, np.float16, np.float32])
SHAPES = arrays.array_shapes(min_dims=3, max_dims=3, max_side=24)
BLOSC = ("lz4", "zstd")
HEADER = 16


def decoded(payload: bytes, like: np.ndarray, codec: str) -> np.ndarray:
    out = np.full_like(like, 1)
    decode_into(payload, out, codec)
    return out


def smooth(dtype: type, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Numbers that compress, as pixels do."""
    steps = np.random.default_rng(seed).normal(0, 3, shape)
    return (100 + np.cumsum(steps, axis=-1)).astype(np.int32).astype(dtype)


def noise(dtype: type, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Numbers that do not compress, every bit pattern among them."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(np.random.default_rng(seed).bytes(count), dtype).reshape(shape)


@pytest.mark.parametrize("codec", CODECS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_payloads_come_back_bit_for_bit(codec, data):
    array = data.draw(arrays.arrays(data.draw(DTYPES), data.draw(SHAPES)))
    assert decoded(encode(array, codec), array, codec).tobytes() == array.tobytes()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float16, np.float32])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 20, 20), (6, 60, 60), (2, 264, 264), (3, 129, 7)])
@pytest.mark.parametrize("pixels", [smooth, noise])
def test_arrays_of_every_type_and_size_come_back_bit_for_bit(codec, dtype, shape, pixels):
    array = pixels(dtype, shape)
    assert decoded(encode(array, codec), array, codec).tobytes() == array.tobytes()


@pytest.mark.parametrize("codec", CODECS)
def test_the_bits_inside_of_a_nan_are_kept(codec):
    patterns = np.arange(1 << 16, dtype=np.uint32)
    for array in (
        (0x7F800000 | patterns).view(np.float32).reshape(1, 256, 256),
        (0xFFC00000 | patterns).view(np.float32).reshape(1, 256, 256),
        patterns.astype(np.uint16).view(np.float16).reshape(1, 256, 256),
    ):
        assert decoded(encode(array, codec), array, codec).tobytes() == array.tobytes()


@pytest.mark.parametrize("codec", BLOSC)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_what_compression_makes_longer_comes_back(codec, dtype):
    """Among these are some of which Blosc's payload is by chance as long as one that is stored as it is."""
    for zeros in range(60):
        array = noise(dtype, (1, 20, 50)).copy()
        array.reshape(-1)[:zeros] = 0
        payload = encode(array, codec)
        assert len(payload) <= array.nbytes + HEADER
        assert decoded(payload, array, codec).tobytes() == array.tobytes()


@pytest.mark.parametrize("codec", CODECS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_cut_payload_is_refused(codec, data):
    array = data.draw(arrays.arrays(data.draw(DTYPES), data.draw(SHAPES)))
    payload = encode(array, codec)
    cut = data.draw(st.integers(0, len(payload) - 1))
    with pytest.raises(DataError):
        decode_into(payload[:cut], np.empty_like(array), codec)
    with pytest.raises(DataError):
        decode_into(payload + bytes(1), np.empty_like(array), codec)


@pytest.mark.parametrize("codec", CODECS)
@settings(max_examples=200, deadline=None)
@given(payload=st.binary(max_size=200))
def test_random_bytes_are_no_payload(codec, payload):
    out = np.empty((2, 20, 20), np.uint16)
    with pytest.raises(DataError):
        decode_into(payload, out, codec)


@pytest.mark.parametrize("codec", BLOSC)
@pytest.mark.parametrize(
    "array",
    [smooth(np.uint16, (2, 20, 20)), smooth(np.float32, (2, 90, 90)), noise(np.uint8, (1, 5, 5))],
    ids=["small", "large", "as it is"],
)
def test_no_byte_of_a_header_can_lie(codec, array):
    """All 4,080 of them: refused, or of no consequence to the pixels (a block's length where nothing is compressed)."""
    payload = encode(array, codec)
    refused = 0
    for place in range(HEADER):
        for value in set(range(256)) - {payload[place]}:
            changed = bytearray(payload)
            changed[place] = value
            try:
                out = decoded(bytes(changed), array, codec)
            except DataError:
                refused += 1
            else:
                assert 8 <= place < 12
                assert out.tobytes() == array.tobytes()
    assert refused >= 12 * 255


def test_blosc_alone_believes_a_header_that_lies():
    array = smooth(np.uint16, (2, 20, 20))
    payload = encode(array, "zstd")
    changed = payload[:2] + bytes([payload[2] & ~1]) + payload[3:]  # "the bytes are not shuffled"
    assert bytes(blosc.decompress(changed)) != array.tobytes()
    with pytest.raises(DataError, match="no Blosc header"):
        decode_into(changed, np.empty_like(array), "zstd")


@pytest.mark.parametrize("codec", BLOSC)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_thousands_of_broken_payloads_end_no_process(codec, dtype):
    """What is inside of a payload only its CRC-32C protects; here it may be anything but the end of the program."""
    rng = np.random.default_rng(5)
    for shape in ((2, 20, 20), (3, 60, 60), (1, 264, 264)):
        array = smooth(dtype, shape)
        payload = np.frombuffer(encode(array, codec), np.uint8)
        memory = np.full(array.nbytes + 64, 0xA5, np.uint8)
        out, behind = memory[: array.nbytes].view(dtype).reshape(shape), memory[array.nbytes :]
        for _ in range(700):
            changed = payload.copy()
            front = rng.random() < 0.5  # where the lengths of the blocks are
            places = rng.integers(0, min(48, len(changed)) if front else len(changed), rng.integers(1, 6))
            changed[places] = rng.integers(0, 256, len(places))
            with contextlib.suppress(DataError):
                decode_into(changed, out, codec)
            assert (behind == 0xA5).all()


def test_lengths_of_blocks_that_point_outside_are_refused():
    array = smooth(np.uint16, (4, 264, 264))  # several blocks
    payload = encode(array, "lz4")
    for place in range(HEADER, HEADER + 12, 4):
        for lie in (-1, 0x7FFFFFFF, len(payload), len(payload) - 3):
            changed = payload[:place] + lie.to_bytes(4, "little", signed=True) + payload[place + 4 :]
            with pytest.raises(DataError):
                decode_into(changed, np.empty_like(array), "lz4")


@pytest.mark.parametrize(("written", "read"), [("lz4", "zstd"), ("zstd", "lz4"), ("none", "lz4"), ("none", "zstd")])
def test_a_payload_of_another_codec_is_refused(written, read):
    array = smooth(np.uint16, (2, 20, 20))
    with pytest.raises(DataError):
        decode_into(encode(array, written), np.empty_like(array), read)


@pytest.mark.parametrize("codec", BLOSC)
def test_a_payload_of_another_type_of_the_same_size_is_refused(codec):
    payload = encode(smooth(np.uint16, (2, 20, 20)), codec)
    with pytest.raises(DataError, match=r"no Blosc header of .* for float32"):
        decode_into(payload, np.empty((2, 20, 10), np.float32), codec)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("pixels", [smooth, noise])
def test_zarr_metadata_decode_the_payload(codec, pixels, tmp_path):
    array = pixels(np.float32, (2, 40, 40))
    metadata = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(array.shape),
        "data_type": array.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(array.shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": zarr_codecs(codec, array.dtype),
        "attributes": {},
    }
    (tmp_path / "c" / "0" / "0").mkdir(parents=True)
    (tmp_path / "c" / "0" / "0" / "0").write_bytes(encode(array, codec))
    (tmp_path / "zarr.json").write_text(json.dumps(metadata))
    assert zarr.open_array(str(tmp_path), mode="r")[:].tobytes() == array.tobytes()


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


@pytest.mark.parametrize("value", [0, 0x20, 0x7F, 0xFF])
def test_no_byte_of_an_index_can_be_another(value):
    content = dump_index(random_index(["a", "b/c"], 1))
    for place in range(len(content)):
        if content[place] != value:
            changed = content[:place] + bytes([value]) + content[place + 1 :]
            with pytest.raises(DataError, match=r"a\.idx"):
                parse_index(changed, "a.idx")


@settings(max_examples=50, deadline=None)
@given(keys=KEYS, data=st.data())
def test_a_cut_index_is_noticed(keys, data):
    content = dump_index(random_index(keys, 0))
    with pytest.raises(DataError, match=r"a\.idx"):
        parse_index(content[: data.draw(st.integers(0, len(content) - 1))], "a.idx")
    with pytest.raises(DataError, match=r"a\.idx"):
        parse_index(content + bytes(1), "a.idx")


@given(content=st.binary(max_size=300))
def test_random_bytes_are_no_index(content):
    with pytest.raises(DataError, match=r"a\.idx"):
        parse_index(content, "a.idx")
    with pytest.raises(DataError, match=r"a\.idx"):
        parse_index(MAGIC + content, "a.idx")


@given(bands=st.sets(st.sampled_from(ALL_BANDS)))
def test_the_presence_mask_names_the_bands(bands):
    mask = presence_mask(list(bands))
    assert {band for name in ARRAY_BANDS for band in present_bands(mask, name)} == bands


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"arrays": "abc", "key_bytes": 4, "samples": 2}',
        b'{"arrays": [1, 2], "key_bytes": 4, "samples": 2}',
        b'{"arrays": ["s1"], "key_bytes": -4, "samples": 2}',
        b'{"arrays": ["s1"], "key_bytes": 4, "samples": 3}',
        b'{"arrays": ["s1"], "key_bytes": 4, "samples": "2"}',
        b"[" * 20_000,
    ],
)
def test_a_header_that_lies_is_refused_though_its_checksum_is_right(header):
    good = dump_index(random_index(["aaaa", "bbbb"], 0))
    start = 16
    records = good[start + int.from_bytes(good[12:16], "little") : -4]
    body = good[:12] + len(header).to_bytes(4, "little") + header + records
    with pytest.raises(DataError, match=r"^x\.idx has a header that says something else"):
        parse_index(body + google_crc32c.value(body).to_bytes(4, "little"), "x.idx")


@pytest.mark.parametrize("codec", BLOSC)
def test_numcodecs_alone_decodes_the_payload(codec):
    array = smooth(np.float32, (2, 60, 60))
    content = numcodecs.Blosc().decode(encode(array, codec))
    assert np.frombuffer(content, np.float32).tobytes() == array.tobytes()
