"""One sample at a time, in Python: what the native loop leaves alone, and what is wrong with one that it marked."""

import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from pipeline.stream.table import SampleTable
from sharding.bands import ALL_BANDS
from sharding.codec import CODECS, decode_into
from sharding.errors import DataError
from sharding.manifest import ArraySpec
from sharding.shard_index import CHECKSUMS

Slots = dict[str, npt.NDArray[Any]]
Bytes = npt.NDArray[np.uint8]
ReadRange = Callable[[int, int, int], Bytes]
"""Bytes [start, end) of a file by its number in the table; they must be there."""


class PayloadReader:
    """Checks and decodes the payloads of a record into slots."""

    def __init__(self, table: SampleTable, verify: bool) -> None:
        self._table = table
        self._verify = verify
        self._planes = lru_cache(maxsize=4096)(_planes)

    def read(self, record: Any, read_range: ReadRange, slots: Slots) -> None:
        """Fill `slots` (by array name: bands x height x width) with a sample; absent bands become 0.

        Raises DataError naming file, key and array when a payload is not what the index says; what `read_range` raises.
        """
        for place, spec in enumerate(self._table.arrays):
            stored, absent = self._planes(spec, int(record["presence"]))
            length, slot = int(record["length"][place]), slots[spec.name]
            if bool(stored) != bool(length):
                raise DataError(f"{self._name(record, place)} and the index's presence bits disagree; build it again")
            if absent:
                slot[absent] = 0
            if not stored:
                continue
            start = int(record["offset"][place])
            content = read_range(int(record["file"][place]), start, start + length)
            self._check(record, place, content)
            try:
                decoded = np.empty((len(stored), *slot.shape[1:]), slot.dtype)
                self._decode(record, place, content, decoded)
                slot[stored] = decoded
            except (DataError, IndexError) as error:
                raise DataError(f"{self._name(record, place)} cannot be decoded: {error}") from error

    def _decode(self, record: Any, place: int, content: Bytes, decoded: npt.NDArray[Any]) -> None:
        codec = int(record["codec"][place])
        skip = int(record["skip"][place])
        if codec < len(CODECS) and not skip:
            decode_into(content, decoded, CODECS[codec])
            return
        from sharding.foreign_codec import decode_foreign

        decode_foreign(content, decoded, codec, skip)

    def _check(self, record: Any, place: int, content: Bytes) -> None:
        kind = CHECKSUMS[record["checksum_kind"]]
        if not self._verify or kind == "none":
            return
        found = google_crc32c.value(content) if kind == "crc32c" else zlib.crc32(content.tobytes())
        if found != record["checksum"][place]:
            raise DataError(
                f"{self._name(record, place)} is damaged: its {'CRC-32C' if kind == 'crc32c' else 'CRC-32'} does not "
                "match; fetch this shard again, python -m sharding.verify tells whether others are damaged too"
            )

    def _name(self, record: Any, place: int) -> str:
        key, shard = record["key"].decode(), self._table.name(int(record["file"][place]))
        return f"array {self._table.arrays[place].name} of sample {key} in shard {shard}"


def _planes(spec: ArraySpec, presence: int) -> tuple[list[int], list[int]]:
    """The planes of a slot that a sample with these bands stores, and those that it lacks."""
    stored = [plane for plane, band in enumerate(spec.bands) if presence >> ALL_BANDS.index(band) & 1]
    return stored, [plane for plane in range(len(spec.bands)) if plane not in stored]
