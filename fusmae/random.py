"""Random numbers that are a function of (seed, epoch, sample position) and of nothing else.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) in torch int64
arithmetic: no state, the same bits on every device, whatever the batch, the ranks or the resumes.

Shape legend: B samples of a batch, 4 words of a Philox block (32 bits each, held in int64).
"""

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

import torch
from torch import Tensor

_MASK32: Final = 0xFFFFFFFF
_MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)
_ROUNDS: Final = 10

_MAX_WORDS: Final = 4 << 16  # the block index has 16 bits, a block has four words


class Purpose(IntEnum):
    """What numbers are drawn for; each purpose has numbers of its own."""

    MASK = 1
    """Which patches are visible; one stream a modality."""
    SHUFFLE = 2
    """The permutation of visible contents in the shuffled twin of an evaluation; one stream a modality."""
    FLIP = 3
    """Which of the eight flips and turns of the square a sample gets."""
    CROP = 4
    """Which window of a larger image is cut out."""
    COUNTS = 5
    """How many patches of each modality are visible, where that varies."""
    DROPOUT = 6
    """Whether one modality is hidden, and which."""
    BAND_GROUP = 7
    """Which group of bands is hidden; one stream a modality."""
    QUERIES = 8
    """Which of the hidden patches are predicted; one stream a modality."""
    SCALE = 9
    """Size and place of the second view of a cross-scale model."""


def philox4x32(counter_4: Tensor, key_2: tuple[int, int]) -> Tensor:
    """Philox4x32-10 of each counter.

    Args:
        counter_4: (..., 4) int64, each word in [0, 2^32).
        key_2: two words in [0, 2^32).

    Returns:
        (..., 4) int64 words in [0, 2^32), equal to Random123's philox4x32.
    """
    if counter_4.dtype != torch.int64 or counter_4.ndim == 0 or counter_4.shape[-1] != 4:
        raise ValueError(
            f"a Philox counter is int64 with 4 words, not {counter_4.dtype} of shape {tuple(counter_4.shape)}"
        )
    if any(not 0 <= word <= _MASK32 for word in key_2) or len(key_2) != 2:
        raise ValueError(f"a Philox key is two words of 32 bits, not {key_2}")
    c0, c1, c2, c3 = counter_4.unbind(-1)
    return torch.stack(_philox_rounds(c0, c1, c2, c3, key_2), dim=-1)


def _philox_rounds(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, key_2: tuple[int, int]) -> list[Tensor]:
    """The ten rounds on four separate words that broadcast against each other.

    The words stay separate and the constants stay Python numbers, because a constant tensor would be copied
    to the device on every call. int64 products wrap modulo 2^64, so that both halves of the 64-bit product
    are right once the sign bits that the arithmetic shift brings in are masked off.
    """
    k0, k1 = key_2
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = ((product1 >> 32) & _MASK32) ^ c1 ^ k0
        c2 = ((product0 >> 32) & _MASK32) ^ c3 ^ k1
        c1, c3 = product1 & _MASK32, product0 & _MASK32
        k0, k1 = (k0 + _WEYL[0]) & _MASK32, (k1 + _WEYL[1]) & _MASK32
    return [c0, c1, c2, c3]


@dataclass(frozen=True, eq=False)
class CounterRandom:
    """Numbers for the samples of a batch, each a function of (seed, epoch, position) alone.

    The Philox key is the 64-bit seed (low word first). The counter is, from its first word to its last:
    purpose (8 bits), stream (8 bits) and block index (16 bits); epoch; position, low word; position, high
    word.
    """

    seed: int
    """Seed of the run, in [0, 2^64)."""
    epoch_B: Tensor
    """int64 (B,): epoch of each sample, below 2^32; a batch may span two."""
    position_B: Tensor
    """int64 (B,): place of each sample in its epoch's order."""
    origin: "CounterRandom | None" = None
    """Where `to` came from: the same on the CPU."""
    first_stream: int = 0
    """Added to the number of every stream that is asked for."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"the seed must lie in [0, 2^64), not {self.seed}")
        for name, value in (("epoch_B", self.epoch_B), ("position_B", self.position_B)):
            if value.dtype != torch.int64 or value.ndim != 1:
                raise ValueError(f"{name} must be int64 of shape (B,), not {value.dtype} {tuple(value.shape)}")
        if self.epoch_B.shape != self.position_B.shape:
            raise ValueError(f"{len(self.epoch_B)} epochs do not fit {len(self.position_B)} positions")

    @property
    def batch_size(self) -> int:
        """Number of samples."""
        return self.position_B.shape[0]

    @property
    def on_cpu(self) -> "CounterRandom":
        """The same numbers, drawn on the CPU; without asking the device when they were on the CPU once."""
        if self.position_B.device.type == "cpu":
            return self
        return self.origin or self.to("cpu")

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "CounterRandom":
        """The same numbers, drawn on `device`."""
        return CounterRandom(
            self.seed,
            self.epoch_B.to(device, non_blocking=non_blocking),
            self.position_B.to(device, non_blocking=non_blocking),
            self if self.position_B.device.type == "cpu" else self.origin,
            self.first_stream,
        )

    def from_stream(self, first: int) -> "CounterRandom":
        """Other numbers for the same samples: stream i is what stream `first` + i is here."""
        origin = None if self.origin is None else self.origin.from_stream(first)
        return replace(self, origin=origin, first_stream=self.first_stream + first)

    def words(self, num: int, purpose: int, stream: int = 0) -> Tensor:
        """(B, num) int64 words, uniform in [0, 2^32).

        Args:
            num: words a sample, at most 262,144.
            purpose: what for, see `Purpose`; in [0, 256).
            stream: number of an independent sequence within the purpose, in [0, 256).
        """
        if not 0 < num <= _MAX_WORDS:
            raise ValueError(f"{num} words a sample cannot be drawn; between 1 and {_MAX_WORDS} can")
        stream += self.first_stream
        if not 0 <= purpose < 256 or not 0 <= stream < 256:
            raise ValueError(f"purpose {purpose} and stream {stream} must lie in [0, 256)")
        first = (int(purpose) << 24) | (int(stream) << 16)
        blocks = -(-num // 4)
        block_B4 = _philox_rounds(
            torch.arange(first, first + blocks, device=self.position_B.device)[None],
            (self.epoch_B & _MASK32)[:, None],
            (self.position_B & _MASK32)[:, None],
            ((self.position_B >> 32) & _MASK32)[:, None],
            (self.seed & _MASK32, self.seed >> 32),
        )
        return torch.stack(block_B4, dim=-1).flatten(1)[:, :num]

    def uniform(self, num: int, purpose: int, stream: int = 0) -> Tensor:
        """(B, num) float32 numbers, uniform in [0, 1): the upper 24 bits of `words`, exactly."""
        return (self.words(num, purpose, stream) >> 8).float() * 2.0**-24

    def permutation(self, num: int, purpose: int, stream: int = 0) -> Tensor:
        """(B, num) int64: a permutation of range(num) for each sample; ties go to the smaller index."""
        return self.words(num, purpose, stream).argsort(dim=1, stable=True)
