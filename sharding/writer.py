"""One shard: a tar of `KEY.zarr.zip` members by webdataset, its index and metadata, proven against the file."""

import contextlib
import hashlib
import json
import math
import mmap
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

import google_crc32c
import numpy as np

from sharding.bands import presence_mask
from sharding.codec import CODECS
from sharding.errors import StorageError
from sharding.sample import EXTENSION, Payload, pack_sample
from sharding.shard_index import Records, ShardIndex, record_dtype
from sharding.sources.base import Sample
from sharding.sources.raster import to_degrees
from sharding.statistics import Accumulator, Moments

_TAR_HEADER: Final = 512
_OWNER: Final = "fusmae"
_MODE: Final = 0o444


@dataclass(frozen=True, kw_only=True)
class _Written:
    key: str
    presence: int
    labels: int
    place: tuple[str, float, float] | None
    offset: int
    length: int
    payloads: dict[str, Payload]
    radiometric_offsets: dict[str, float]
    metadata: dict[str, Any]


@dataclass(kw_only=True)
class FinishedShard:
    """What is known of a shard once its file is complete."""

    index: ShardIndex
    num_bytes: int
    sha256: str
    metadata: bytes
    """JSON lines, one a sample in the order of the tar."""
    moments: dict[str, Moments] = field(default_factory=dict)
    label_counts: dict[str, int] = field(default_factory=dict)


class _Sink:
    """Where the tar goes; nowhere once `discard` is set."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.discard = file, False

    def write(self, content: bytes) -> int:
        return len(content) if self.discard else self._file.write(content)


class ShardWriter:
    """Writes samples into the local file `path`; `finish` proves what was written, without it the file is no shard."""

    def __init__(
        self, path: Path, *, arrays: tuple[str, ...], codec: str, vocabulary: tuple[str, ...], split: str = "train"
    ) -> None:
        import webdataset

        self.path, self.arrays, self.codec, self.split = path, arrays, codec, split
        self._bits = {label: 1 << i for i, label in enumerate(vocabulary)}
        self._written: list[_Written] = []
        self._statistics = Accumulator()
        self._file = path.open("wb")
        self._sink = _Sink(self._file)
        self._tar = webdataset.TarWriter(
            self._sink, user=_OWNER, group=_OWNER, mode=_MODE, mtime=0, encoder=False, compress=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        # An open tarfile writes its end when it is collected, by then into a closed file.
        self._sink.discard = True
        self._tar.close()
        with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
            self._file.close()  # on a full disk the last bytes fail once more

    def write(self, sample: Sample) -> None:
        """Append a sample."""
        content, payloads = pack_sample(sample, self.codec)
        # A USTAR header is one block; `finish` reads every payload back at the place computed here.
        offset = self._tar.tarstream.offset + _TAR_HEADER
        self._tar.write({"__key__": sample.key, EXTENSION: content})
        self._tar.tarstream.members.clear()  # tarfile remembers every member; memory must not grow with the shard
        self._written.append(
            _Written(
                key=sample.key,
                presence=presence_mask(sample.bands),
                labels=sum(self._bits[label] for label in sample.labels),
                place=sample.centre,
                offset=offset,
                length=len(content),
                payloads=payloads,
                radiometric_offsets={name: array.radiometric_offset for name, array in sample.arrays.items()},
                metadata={
                    "source": sample.source,
                    "labels": list(sample.labels),
                    "crs": sample.crs,
                    "level": sample.level,
                    "dates": sample.dates,
                    "bands": list(sample.bands),
                    "attributes": sample.attributes,
                },
            )
        )
        self._statistics.add(sample)

    def finish(self) -> FinishedShard:
        """Close the tar and read it back: its digest, and every payload at its offset."""
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        records = self._records()
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            view = memoryview(content)
            digest, num_bytes = hashlib.sha256(view).hexdigest(), len(view)
            try:
                self._prove(view)
            finally:
                view.release()
        return FinishedShard(
            index=ShardIndex(arrays=self.arrays, records=records),
            num_bytes=num_bytes,
            sha256=digest,
            metadata=self._metadata(records),
            moments=self._statistics.result(),
            label_counts=dict(Counter(label for written in self._written for label in written.metadata["labels"])),
        )

    def _metadata(self, records: Records) -> bytes:
        lines = []
        for record, written in zip(records, self._written, strict=True):
            lon, lat = (None if math.isnan(value) else float(value) for value in (record["lon"], record["lat"]))
            line = {"key": written.key, "split": self.split, "lon": lon, "lat": lat, **written.metadata}
            lines.append(json.dumps(line, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n")
        return "".join(lines).encode()

    def _prove(self, content: memoryview) -> None:
        for written in self._written:
            for name, payload in written.payloads.items():
                start = written.offset + payload.offset
                found = google_crc32c.value(bytes(content[start : start + payload.length]))
                if found != payload.crc32c:
                    raise StorageError(
                        f"{self.path.name}: {name} of {written.key} was not written as it was meant; "
                        "the disk or its driver loses data"
                    )

    def _records(self) -> Records:
        key_bytes = max((len(written.key) for written in self._written), default=1)
        records: Records = np.zeros(len(self._written), record_dtype(len(self.arrays), key_bytes))
        degrees = _degrees([written.place for written in self._written])
        for record, written, (lon, lat) in zip(records, self._written, degrees, strict=True):
            record["key"] = written.key.encode()
            record["presence"], record["labels"] = written.presence, written.labels
            record["lon"], record["lat"] = lon, lat
            record["member_offset"], record["member_length"] = written.offset, written.length
            for i, name in enumerate(self.arrays):
                if name in written.payloads:
                    record["arrays"][i] = self._payload_record(written, name)
        return records

    def _payload_record(self, written: _Written, name: str) -> tuple[Any, ...]:
        payload = written.payloads[name]
        return (
            written.offset + payload.offset,
            payload.length,
            payload.crc32c,
            CODECS.index(self.codec),
            written.radiometric_offsets[name],
        )


def _degrees(places: list[tuple[str, float, float] | None]) -> list[tuple[float, float]]:
    """Longitude and latitude of each place; one transformation a CRS, for each costs milliseconds to set up."""
    result = [(float("nan"), float("nan"))] * len(places)
    for crs in sorted({place[0] for place in places if place}):
        chosen = [i for i, place in enumerate(places) if place and place[0] == crs]
        points = [(place[1], place[2]) for place in places if place and place[0] == crs]
        for i, degrees in zip(chosen, to_degrees(crs, points), strict=True):
            result[i] = degrees
    return result
