"""Keyed permutations of [0, n): any element on its own, nothing stored (a Feistel network with cycle walking)."""

import hashlib
from typing import Final

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

_ROUNDS: Final = 8
_CHUNK: Final = 1 << 14
"""Elements permuted at a time: the temporaries stay in the cache of a core."""
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)
_ALL: Final = (1 << 64) - 1
_ONE: Final = np.uint64(1)
_HIGH: Final = np.uint64(32)
_ROUND_OFFSETS: Final = np.arange(1, _ROUNDS + 1, dtype=np.uint64) * _GOLDEN


def derive_key(*parts: str | int) -> int:
    """A 64-bit key from anything that distinguishes one use from another."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mix(x: UInt64s) -> UInt64s:
    """SplitMix64's finaliser (Steele et al. 2014): every bit of the input changes half of the output's."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    mixed: UInt64s = x ^ (x >> np.uint64(31))
    return mixed


def _half_bits(n: npt.NDArray[np.integer]) -> UInt64s:
    """Half the width of the smallest even-width domain that holds [0, n); at least 2, which mixes tiny domains."""
    # frexp is exact: for 1 <= x < 2**53 its exponent is the bit length of x.
    bits = np.frexp(np.maximum(np.asarray(n) - 1, 1).astype(np.float64))[1]
    half: UInt64s = np.maximum((bits + 1) // 2, 2).astype(np.uint64)
    return half


def permute(positions: Int64s, sizes: Int64s, keys: UInt64s) -> Int64s:
    """Each position's image under the keyed permutation of [0, size) that belongs to it.

    The three arrays have one shape: every element has its own permutation, so that one call serves a batch that
    touches hundreds of windows. Positions must lie in [0, size), sizes below 2**53.
    """
    images = np.empty(positions.size, np.int64)
    for begin in range(0, positions.size, _CHUNK):
        chunk = slice(begin, begin + _CHUNK)
        images[chunk] = _permute(positions[chunk], sizes[chunk], keys[chunk])
    return images


def _permute(positions: Int64s, sizes: Int64s, keys: UInt64s) -> Int64s:
    half = _half_bits(sizes)
    mask = (_ONE << half) - _ONE
    limit = sizes.astype(np.uint64)
    round_keys = mix(keys + _ROUND_OFFSETS[:, None])
    x = _network(positions.astype(np.uint64), half, mask, round_keys)
    outside = np.flatnonzero(x >= limit)
    while outside.size:  # cycle walking: outside [0, size) the network is applied again; it always comes back
        walked = _network(x[outside], half[outside], mask[outside], round_keys[:, outside])
        x[outside] = walked
        outside = outside[walked >= limit[outside]]
    return x.astype(np.int64)


def _network(x: UInt64s, half: UInt64s, mask: UInt64s, round_keys: UInt64s) -> UInt64s:
    left, right = x >> half, x & mask
    for round_key in round_keys:
        mixed = (right ^ round_key) * _GOLDEN
        mixed ^= mixed >> _HIGH
        mixed *= _MIX_1
        mixed >>= _HIGH
        mixed &= mask
        mixed ^= left
        left, right = right, mixed
    return (left << half) | right


class FeistelPermutation:
    """A permutation of [0, n) chosen by `key`; any element is computed on its own, nothing is stored."""

    def __init__(self, n: int, key: int) -> None:
        self.n = n
        self.key = key

    def __call__(self, positions: npt.ArrayLike) -> Int64s:
        """The images of `positions`, an array of integers in [0, n) of any shape."""
        flat = np.asarray(positions, np.int64)
        count = flat.size
        images = permute(
            flat.reshape(-1), np.full(count, self.n, np.int64), np.full(count, np.uint64(self.key), np.uint64)
        )
        return images.reshape(flat.shape)

    def place_of(self, image: int) -> int:
        """The position whose image is `image`: the permutation undone, for one element."""
        half = int(_half_bits(np.array([self.n]))[0])
        mask = (1 << half) - 1
        rounds = [int(key) for key in mix(np.uint64(self.key) + _ROUND_OFFSETS)]
        place = image
        while True:
            left, right = place >> half, place & mask
            for key in reversed(rounds):
                left, right = right ^ _mixed(left ^ key, mask), left
            place = left << half | right
            if place < self.n:
                return place


def _mixed(x: int, mask: int) -> int:
    x = x * int(_GOLDEN) & _ALL
    x = (x ^ x >> 32) * int(_MIX_1) & _ALL
    return x >> 32 & mask
