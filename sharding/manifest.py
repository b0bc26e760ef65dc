"""`manifest.json`: what a data set is. It is written last; without it there is no data set.

The fingerprint is a SHA-256 over all that determines the order and the pixels, so two data sets with one fingerprint
train alike, however and wherever they were built.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from sharding.errors import DataError

SCHEMA: Final = "fusmae-shards/1"
MANIFEST_NAME: Final = "manifest.json"
BUILD_NAME: Final = "build.json"


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One array of the data set's samples; a sample stores those of its bands that it has."""

    name: str
    """Name in `sharding.bands.ARRAY_BANDS`."""
    bands: tuple[str, ...]
    """Bands that at least one sample has, in storage order."""
    dtype: str
    """Numpy name of the stored type: float32, float16, uint16, int16."""
    height: int
    width: int
    gsd_m: float
    units: str
    """`dB`, `linear` (backscatter) or `DN` (digital numbers)."""
    scale: float = 1.0
    """Stored number times scale (after the sample's radiometric offset) is the value in `units`."""


@dataclass(frozen=True, kw_only=True)
class ShardSpec:
    """One tar and its index; paths are relative to the manifest."""

    path: str
    split: str
    samples: int
    num_bytes: int
    sha256: str
    index_path: str
    index_bytes: int
    index_sha256: str


@dataclass(frozen=True, kw_only=True)
class BandStatistics:
    """Statistics of one band over the split `train` (over everything when there is no such split), in its units."""

    count: int
    mean: float
    std: float
    minimum: float
    maximum: float


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """Where samples came from: a source's name, its processing levels and how many samples it gave."""

    name: str
    version: str
    samples: int
    levels: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that a reader needs before it opens the first shard."""

    arrays: tuple[ArraySpec, ...]
    shards: tuple[ShardSpec, ...]
    labels: tuple[str, ...]
    """Vocabulary: bit i of a record's `labels` is `labels[i]`; empty when no source has labels."""
    statistics: dict[str, BandStatistics]
    """By band name."""
    sources: tuple[SourceSpec, ...]
    codec: str
    schema: str = SCHEMA
    fingerprint: str = field(default="")

    @property
    def splits(self) -> dict[str, int]:
        """Samples in each split, in the order of the shards."""
        counts: dict[str, int] = {}
        for shard in self.shards:
            counts[shard.split] = counts.get(shard.split, 0) + shard.samples
        return counts

    @property
    def bands(self) -> tuple[str, ...]:
        """Every band of the data set, in storage order."""
        return tuple(band for array in self.arrays for band in array.bands)

    def shards_of(self, split: str) -> tuple[ShardSpec, ...]:
        """The shards of `split`; DataError that names the splits there are."""
        shards = tuple(shard for shard in self.shards if shard.split == split)
        if not shards:
            raise DataError(f"the data set has no split '{split}'; it has {', '.join(self.splits) or 'none'}")
        return shards


def compute_fingerprint(manifest: Manifest) -> str:
    """SHA-256 (hex) over the manifest without its fingerprint."""
    content = asdict(manifest)
    del content["fingerprint"]
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def dump_manifest(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`, with the splits spelled out for human readers."""
    content = asdict(manifest)
    content["fingerprint"] = compute_fingerprint(manifest)
    content["splits"] = manifest.splits
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def parse_manifest(content: bytes, name: str) -> Manifest:
    """The manifest in `content`; DataError naming `name` when it is damaged or of another schema."""
    try:
        raw: dict[str, Any] = json.loads(content)
    except ValueError as error:
        raise DataError(f"{name} is not JSON ({error}); fetch it again or build the data set again") from error
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        found = raw.get("schema") if isinstance(raw, dict) else type(raw).__name__
        raise DataError(
            f"{name} has schema {found!r}, this program reads {SCHEMA!r}; it is no manifest of this program"
        )
    try:
        manifest = Manifest(
            arrays=tuple(ArraySpec(**{**a, "bands": tuple(a["bands"])}) for a in raw["arrays"]),
            shards=tuple(ShardSpec(**s) for s in raw["shards"]),
            labels=tuple(raw["labels"]),
            statistics={band: BandStatistics(**s) for band, s in raw["statistics"].items()},
            sources=tuple(SourceSpec(**{**s, "levels": tuple(s["levels"])}) for s in raw["sources"]),
            codec=raw["codec"],
            fingerprint=raw["fingerprint"],
        )
    except (KeyError, TypeError) as error:
        raise DataError(f"{name} lacks or has too much of {error}; it was edited or cut, fetch it again") from error
    if compute_fingerprint(manifest) != manifest.fingerprint:
        raise DataError(f"{name} was changed after it was written: its fingerprint does not match its content")
    return manifest
