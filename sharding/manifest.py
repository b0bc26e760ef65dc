"""`manifest.json`: what a data set is. It is written last; without it there is no data set.

The fingerprint is a SHA-256 over all that determines the order and the pixels, so two data sets with one fingerprint
train alike, however and wherever they were built.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from sharding.errors import DataError

SCHEMA: Final = "fusmae-shards/2"
MANIFEST_NAME: Final = "manifest.json"
BUILD_NAME: Final = "build.json"
ALL_SPLITS: Final = "all"

_PLAIN: Final = (
    "codec",
    "label_counts",
    "statistics_path",
    "statistics_sha256",
    "s1_error_db",
    "version",
    "parent",
    "subset",
    "selection",
    "fingerprint",
)
"""Fields that JSON gives back as they are."""


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One array of the data set's samples; a sample stores those of its bands that it has."""

    name: str
    """A key of `sharding.bands.ARRAY_BANDS`; of an archive that was indexed as it lies any name, so that only `bands`
    say what is in it."""
    bands: tuple[str, ...]
    """Bands that at least one sample has, in storage order."""
    dtype: str
    """Numpy name of the stored type: float32, float16, uint16, int16, …"""
    height: int
    width: int
    gsd_m: float
    """Of the pixels as stored."""
    units: str
    """`dB`, `linear` (backscatter), `DN` (digital numbers), `reflectance`, `m`, `index` or `class`."""
    scale: float = 1.0
    """Stored number times scale (after the sample's radiometric offset) is the value in `units`."""
    nodata: float | None = None
    """The stored number that means that nothing was measured."""


@dataclass(frozen=True, kw_only=True)
class PartSpec:
    """A file of a shard that was indexed as it lies."""

    path: str
    """Relative to the manifest's `data_url`."""
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class ShardSpec:
    """One tar, its index, and what is known of its samples; paths are relative to the manifest.

    A shard that `sharding.index` has indexed as it lies has `parts`: then `path` is that of the first, `num_bytes` the
    size of all, and `sha256` is empty, for nobody has read all of their bytes.
    """

    path: str
    split: str
    samples: int
    """That the index lists; a subset's leaves out some that are in the tar."""
    tar_samples: int
    num_bytes: int
    sha256: str
    index_path: str
    index_bytes: int
    index_sha256: str
    metadata_path: str
    """JSON lines, one a sample in the order of the index: labels, place, dates, attributes."""
    metadata_bytes: int
    metadata_sha256: str
    parts: tuple[PartSpec, ...] = ()
    """The files of a shard that lies as others wrote it, in the order of the index's field `file`."""

    def __post_init__(self) -> None:
        # JSON has lists of objects only.
        parts = tuple(part if isinstance(part, PartSpec) else PartSpec(**part) for part in self.parts)
        object.__setattr__(self, "parts", parts)

    @property
    def data_files(self) -> tuple[PartSpec, ...]:
        """The files that hold the samples, by the index's field `file`: the parts, or the tar alone."""
        return self.parts or (PartSpec(path=self.path, num_bytes=self.num_bytes),)

    @property
    def files(self) -> tuple[tuple[str, int, str], ...]:
        """Path, size and SHA-256 of each of its files."""
        return (
            *((part.path, part.num_bytes, self.sha256) for part in self.data_files),
            (self.index_path, self.index_bytes, self.index_sha256),
            (self.metadata_path, self.metadata_bytes, self.metadata_sha256),
        )


@dataclass(frozen=True, kw_only=True)
class BandStatistics:
    """Statistics of one band over a split, in its units; pixels without data are counted apart."""

    count: int
    mean: float
    std: float
    minimum: float
    maximum: float
    nodata: int
    percentiles: dict[str, float]
    """By percentage: `0.1`, `1`, … `99.9`; from a histogram, so exact to a bin."""


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
    statistics: dict[str, dict[str, BandStatistics]]
    """By split, and over all splits under `all`, then by band."""
    sources: tuple[SourceSpec, ...]
    codec: str
    label_counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """By split, then by label: how many samples have it."""
    statistics_path: str = ""
    """JSON with the full histograms (`sharding.statistics.parse_statistics`)."""
    statistics_sha256: str = ""
    s1_error_db: float = 0.0
    """The worst that storing S1 in a smaller type has changed a pixel by, in dB; 0: bit for bit."""
    version: int = 1
    """Raised by one each time that the data set is extended."""
    parent: str = ""
    """Fingerprint of the version that this one was made from."""
    subset: str = ""
    """Name of the selection; empty: everything."""
    selection: dict[str, Any] = field(default_factory=dict)
    """What the samples of a subset were chosen by."""
    data_url: str = ""
    """Where the files of shards lie that were indexed as they lie: a URL, or a path relative to the manifest's folder.
    It is no part of the fingerprint: an archive that was moved is the same archive."""
    schema: str = SCHEMA
    fingerprint: str = field(default="")

    @property
    def training_statistics(self) -> dict[str, BandStatistics]:
        """By band: over the split train, or over everything when there is none; what inputs are normalised with."""
        return self.statistics.get("train") or self.statistics.get(ALL_SPLITS, {})

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

    def sample_bytes(self, split: str) -> float:
        """Bytes that a sample of `split` takes of its files, on average: a subset's files hold others too."""
        shards = self.shards_of(split)
        num_bytes = sum(shard.num_bytes * shard.samples / max(shard.tar_samples, 1) for shard in shards)
        return num_bytes / max(sum(shard.samples for shard in shards), 1)


def compute_fingerprint(manifest: Manifest) -> str:
    """SHA-256 (hex) over the manifest without its fingerprint."""
    content = _content(manifest)
    del content["fingerprint"]
    content.pop("data_url", None)
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def dump_manifest(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`, with the splits spelled out for human readers."""
    content = _content(manifest)
    content["fingerprint"] = compute_fingerprint(manifest)
    content["splits"] = manifest.splits
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def _content(manifest: Manifest) -> dict[str, Any]:
    """All fields; those of indexed archives only where they say something, so that older programs read the rest."""
    content = asdict(manifest)
    if not manifest.data_url:
        del content["data_url"]
    for shard in content["shards"]:
        if not shard["parts"]:
            del shard["parts"]
    return content


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
            statistics={
                split: {band: BandStatistics(**s) for band, s in bands.items()}
                for split, bands in raw["statistics"].items()
            },
            sources=tuple(SourceSpec(**{**s, "levels": tuple(s["levels"])}) for s in raw["sources"]),
            data_url=str(raw.get("data_url", "")),
            **{name: raw[name] for name in _PLAIN},
        )
    except (KeyError, TypeError) as error:
        raise DataError(f"{name} lacks or has too much of {error}; it was edited or cut, fetch it again") from error
    if compute_fingerprint(manifest) != manifest.fingerprint:
        raise DataError(f"{name} was changed after it was written: its fingerprint does not match its content")
    return manifest
