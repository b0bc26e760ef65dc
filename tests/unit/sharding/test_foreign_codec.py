"""Chunks of archives come back as zarr's codecs give them, whole or in part, and a broken one is refused."""

import gzip
import struct
import threading
import time
import zlib

import numcodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.errors import DataError
from sharding.foreign_codec import BLOSC, RAW, ZLIB, ZSTD, decode_foreign

CODECS = {
    "raw": (RAW, lambda data: data.tobytes()),
    "zstd": (ZSTD, lambda data: bytes(numcodecs.Zstd(3).encode(data))),
    "zlib": (ZLIB, lambda data: zlib.compress(data.tobytes(), 1)),
    "gzip": (ZLIB, lambda data: gzip.compress(data.tobytes(), 1)),
    **{
        f"blosc {name}, shuffle {shuffle}": (
            BLOSC,
            lambda data, name=name, shuffle=shuffle: bytes(numcodecs.Blosc(name, 5, shuffle).encode(data)),
        )
        for name in ("lz4", "lz4hc", "blosclz", "zstd", "zlib")
        for shuffle in (0, 1, 2)
    },
    "blosc, as it is": (BLOSC, lambda data: bytes(numcodecs.Blosc("lz4", 0).encode(data))),
}
CHUNK = (np.arange(6 * 3 * 40 * 44) // 7 % 900).astype(np.int16).reshape(6, 3, 40, 44)
"""Six samples."""


def decoded(stored, like, codec, skip=0):
    """Between two guards, which must stay as they are."""
    memory = np.full(like.nbytes + 128, 0xA5, np.uint8)
    out = memory[64 : 64 + like.nbytes].view(like.dtype).reshape(like.shape)
    try:
        decode_foreign(stored, out, codec, skip)
    finally:
        assert (memory[:64] == 0xA5).all()
        assert (memory[-64:] == 0xA5).all()
    return out


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("dtype", ["u1", "<u2", "<i2", "<f2", "<f4", "<f8"])
def test_a_chunk_comes_back_bit_for_bit(name, dtype):
    codec, encode = CODECS[name]
    rng = np.random.default_rng(0)
    for shape in ((1, 1, 1), (2, 40, 44), (12, 120, 120)):
        data = rng.integers(0, 200, shape).astype(dtype)
        assert decoded(encode(data), data, codec).tobytes() == data.tobytes()


@pytest.mark.parametrize("name", CODECS)
def test_every_sample_of_a_chunk_that_holds_several_comes_back(name):
    codec, encode = CODECS[name]
    stored = encode(CHUNK)
    for number, sample in enumerate(CHUNK):
        assert np.array_equal(decoded(stored, sample, codec, number * sample.nbytes), sample)
        assert np.array_equal(decoded(np.frombuffer(stored, np.uint8), sample, codec, number * sample.nbytes), sample)


@pytest.mark.parametrize("name", CODECS)
def test_a_part_behind_the_end_is_refused(name):
    codec, encode = CODECS[name]
    with pytest.raises(DataError, match="expected"):
        decoded(encode(CHUNK), CHUNK[0], codec, CHUNK.nbytes - CHUNK[0].nbytes + 2)
    with pytest.raises(DataError, match="expected"):
        decoded(encode(CHUNK[:5]), CHUNK, codec)


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_cut_chunk_is_refused(name, data):
    codec, encode = CODECS[name]
    stored = encode(CHUNK)
    with pytest.raises(DataError):
        decoded(stored[: data.draw(st.integers(0, len(stored) - 1))], CHUNK, codec)


@pytest.mark.parametrize("codec", [BLOSC, ZSTD, ZLIB])
@settings(max_examples=60, deadline=None)
@given(stored=st.binary(max_size=300))
def test_random_bytes_are_no_chunk(codec, stored):
    with pytest.raises(DataError):
        decoded(stored, CHUNK, codec)


@pytest.mark.parametrize("skip", [0, CHUNK[0].nbytes])
@pytest.mark.parametrize("name", ["blosc lz4, shuffle 1", "blosc zstd, shuffle 2", "blosc, as it is"])
def test_no_byte_of_a_blosc_header_makes_it_write_elsewhere(name, skip):
    """Every value of every byte of the header and of the first blocks' places: refused, or it stays in its bounds."""
    codec, encode = CODECS[name]
    stored = encode(CHUNK)
    like = CHUNK[1] if skip else CHUNK
    for place in range(24):
        for value in {0, 1, 2, 3, 4, 127, 128, 254, 255, stored[place] ^ 1} - {stored[place]}:
            changed = bytearray(stored)
            changed[place] = value
            try:
                decoded(bytes(changed), like, codec, skip)
            except DataError:
                pass


def test_blocks_that_lie_outside_of_a_blosc_buffer_are_refused():
    stored = bytearray(numcodecs.Blosc("lz4", 5, blocksize=4096).encode(CHUNK))
    for place in (0, 15, len(stored), 1 << 31):
        stored[16:20] = struct.pack("<I", place)
        with pytest.raises(DataError, match="lie outside"):
            decoded(bytes(stored), CHUNK, BLOSC)


def test_a_frame_that_does_not_say_its_size_is_refused():
    frame = bytearray(numcodecs.Zstd(3).encode(CHUNK))
    with pytest.raises(DataError, match="does not say"):
        decoded(bytes(frame[:4]) + b"\x00" + bytes(frame[5:]), CHUNK, ZSTD)


def test_a_small_chunk_that_claims_to_be_huge_takes_no_memory():
    frame = bytes(numcodecs.Zstd(3).encode(np.tile(CHUNK, (4, 1, 1, 1))))
    assert frame[4] >> 6 == 2  # four bytes for the size
    with pytest.raises(DataError, match="expected"):
        decoded(frame[:5] + struct.pack("<I", 0xFFFFFFF0) + frame[9:], CHUNK[0], ZSTD)
    bomb = zlib.compress(bytes(50_000_000), 9)
    started = time.monotonic()
    assert not decoded(bomb, CHUNK[0], ZLIB).any()
    assert time.monotonic() - started < 1


def test_a_zlib_stream_whose_checksum_is_wrong_is_refused():
    stored = bytearray(zlib.compress(CHUNK.tobytes()))
    stored[-1] ^= 1
    with pytest.raises(DataError, match="decoded"):
        decoded(bytes(stored), CHUNK, ZLIB)


def test_an_unknown_codec_is_refused():
    with pytest.raises(DataError, match="codec 99 is not one of"):
        decoded(CHUNK.tobytes(), CHUNK, 99)


@pytest.mark.parametrize("name", ["blosc zstd, shuffle 1", "zstd", "zlib"])
def test_other_threads_run_while_a_chunk_is_decoded(name):
    codec, encode = CODECS[name]
    noise = np.random.default_rng(0).integers(0, 50, (60, 300, 300)).astype(np.int16)
    stored, done, ticks = encode(noise), threading.Event(), 0

    def work():
        for _ in range(5):
            decode_foreign(stored, np.empty_like(noise), codec)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not done.is_set():
        time.sleep(0.0005)
        ticks += 1
    thread.join()
    assert ticks > 20
