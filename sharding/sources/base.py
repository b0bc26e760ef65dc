"""What a source gives: pairs, cheap to list, and samples, read one at a time.

A source knows one layout of an archive. It lists what is there without opening a raster, and reads one pair into
arrays at native resolution, exactly as stored. A pair that is not what it says it is raises `PairError`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sharding.errors import DataError

MISSING_HALF: Final = "missing half"
MISSING_BAND: Final = "missing band file"
CORRUPT: Final = "corrupt file"
GRIDS: Final = "grids disagree"
WRONG_SIZE: Final = "wrong size"
WRONG_TYPE: Final = "wrong type"
NOT_FINITE: Final = "NaN in S1"
CONSTANT: Final = "constant S1"
PHYSICS: Final = "S1 outside physics"
BANDS: Final = "bands contradict"
METADATA: Final = "metadata missing or wrong"
MIXED: Final = "unlike the data set"


class PairError(DataError):
    """A pair that cannot be built: one of the reasons above, the file (relative to the root), and what to do."""

    def __init__(self, reason: str, file: str, message: str) -> None:
        super().__init__(reason, file, message)
        self.reason, self.file, self.message = reason, file, message

    def __str__(self) -> str:
        return f"{self.file}: {self.message}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A pair that is left out, as `bad.jsonl` lists it."""

    key: str
    source: str
    reason: str
    file: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """A file of the archive, relative to its root, and what shows that it changed."""

    path: str
    size: int
    version: str
    """Modification time, or an object's ETag."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One S1/S2 pair as the listing knows it; holds all that `Source.read` needs."""

    key: str
    source: str
    s1: str
    """Where the S1 half lies: a path relative to the root, or a key of the LMDB."""
    s2: str
    bands: tuple[str, ...]
    files: tuple[SourceFile, ...]
    num_bytes: int
    """Uncompressed size of its arrays, about; shards are cut by it."""
    split: str | None = None
    labels: tuple[str, ...] = ()
    attributes: tuple[tuple[str, Any], ...] = ()
    """What else goes into the sample's attributes (country, flags) or steers the reading: names and values."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All of a source: its pairs sorted by key, what is refused without opening it, and what a user should know."""

    pairs: list[Pair]
    refused: list[Refusal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    has_splits: bool = False
    """Whether the source says splits at all, be it of pairs that are not here; then a pair without one was left out."""


@dataclass(frozen=True, kw_only=True)
class StoredArray:
    """One array of a sample, (bands, height, width), in the type in which it is stored."""

    data: npt.NDArray[Any]
    bands: tuple[str, ...]
    units: str
    """`dB`, `linear` or `DN`."""
    gsd_m: float
    transform: tuple[float, ...] | None = None
    """Affine coefficients a, b, c, d, e, f of the upper left corner; None when the source has none."""
    scale: float = 1.0
    radiometric_offset: float = 0.0
    """Added to the stored numbers before the scale."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One pair, read and checked."""

    key: str
    source: str
    arrays: dict[str, StoredArray]
    """By name, in the order of `sharding.bands.ARRAY_BANDS`."""
    crs: str
    """`EPSG:…` or WKT; empty when the source has none."""
    level: str
    """Processing level of S2: L1C or L2A."""
    dates: dict[str, str]
    """`s1` and `s2`: acquisition in UTC, ISO 8601; lacking when unknown."""
    labels: tuple[str, ...] = ()
    split: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def bands(self) -> tuple[str, ...]:
        """All bands of the sample, in storage order."""
        return tuple(band for array in self.arrays.values() for band in array.bands)

    @property
    def centre(self) -> tuple[float, float] | None:
        """The patch's centre in its CRS; None without one."""
        array = next(iter(self.arrays.values()))
        if not self.crs or array.transform is None:
            return None
        a, b, c, d, e, f = array.transform
        row, column = np.array(array.data.shape[1:]) / 2
        return float(a * column + b * row + c), float(d * column + e * row + f)


class Source(ABC):
    """A layout of archives. `name` is what `--source` says."""

    name: str
    version: str
    """Version of the data that the layout holds; goes into the manifest."""
    vocabulary: tuple[str, ...] = ()
    """Labels in their official order; empty when the labels are the pairs' own."""

    def __init__(self, root: str) -> None:
        self.root = root

    @abstractmethod
    def list(self) -> Listing:
        """Everything at the root; ConfigError when there is no root, DataError when it cannot be listed."""

    @abstractmethod
    def read(self, pair: Pair) -> Sample:
        """The pixels and attributes of `pair`; PairError when they are not as they should be."""

    def centre(self, pair: Pair) -> tuple[str, float, float] | None:
        """CRS and centre of the patch; None when unknown. Sources override it when they know it without reading."""
        sample = self.read(pair)
        centre = sample.centre
        return None if centre is None else (sample.crs, *centre)
