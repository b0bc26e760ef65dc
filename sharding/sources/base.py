"""What a source gives: a listing, cheap to make, and samples, read one at a time.

A source knows one layout of an archive. It lists what is there without opening a raster, and reads one pair into
arrays at native resolution, exactly as stored. A pair that is not what it says it is raises `PairError`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sharding.errors import DataError
from sharding.sources.listing import Listing, Pair

MISSING_HALF: Final = "missing half"
MISSING_BAND: Final = "missing band file"
CORRUPT: Final = "corrupt file"
GRIDS: Final = "grids disagree"
WRONG_SIZE: Final = "wrong size"
WRONG_TYPE: Final = "wrong type"
NOT_FINITE: Final = "NaN in S1"
NO_DATA: Final = "all nodata"
CONSTANT: Final = "constant S1"
PHYSICS: Final = "S1 outside physics"
BANDS: Final = "bands contradict"
METADATA: Final = "metadata missing or wrong"
OFFSET: Final = "radiometric offset unclear"
DAYS: Final = "days apart"
CLOUDY: Final = "too cloudy"
KNOWN_BROKEN: Final = "known to be broken"
MIXED: Final = "unlike the data set"

ASKED_FOR: Final = (DAYS, CLOUDY)
"""Reasons that a user's own limit makes: such pairs are listed and counted, and are no defects of the archive."""


class PairError(DataError):
    """A pair that cannot be built: one of the reasons above, the file (relative to the root), and what to do."""

    def __init__(self, reason: str, file: str, message: str) -> None:
        super().__init__(reason, file, message)
        self.reason, self.file, self.message = reason, file, message

    def __str__(self) -> str:
        return f"{self.file}: {self.message}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """A file of the archive, relative to its root, and what shows that it changed."""

    path: str
    size: int
    version: str
    """Modification time, or an object's ETag."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions:
    """What a user may ask of any source; a source that cannot give it raises ConfigError."""

    s2_level: str = ""
    """`L1C` or `L2A`, where the archive has both; empty: L2A if there is one."""
    riders: bool = True
    """Whether elevation, label rasters and the like come along."""
    max_days: float | None = None
    """Where halves are matched by date: S1 and S2 further apart are no pair."""
    max_cloud: float = 1.0
    """Where patches are cut out of scenes with a cloud mask: the largest share of clouds, 0 to 1."""
    patch_pixels: int = 256
    """Where patches are cut out of scenes: their side at 10 m."""


@dataclass(frozen=True, kw_only=True)
class StoredArray:
    """One array of a sample, (bands, height, width), in the type in which it is stored."""

    data: npt.NDArray[Any]
    bands: tuple[str, ...]
    units: str
    """`dB`, `linear`, `DN`, `reflectance`, `m`, `index` or `class`."""
    gsd_m: float
    """Of the pixels as stored; larger than a band's own where an archive has it resampled only."""
    transform: tuple[float, ...] | None = None
    """Affine coefficients a, b, c, d, e, f of the upper left corner; None when the source has none."""
    scale: float = 1.0
    radiometric_offset: float = 0.0
    """Added to the stored numbers before the scale."""
    nodata: float | None = None
    """The stored number that means that nothing was measured; one for all samples of a data set."""


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
    place: tuple[float, float] | None = None
    """Longitude and latitude of the centre, where the source knows them better than the grid does."""

    @property
    def bands(self) -> tuple[str, ...]:
        """All bands of the sample, in storage order."""
        return tuple(band for array in self.arrays.values() for band in array.bands)

    @property
    def centre(self) -> tuple[str, float, float] | None:
        """CRS and centre of the patch; None when unknown."""
        if self.place is not None:
            return ("EPSG:4326", *self.place)
        array = next(iter(self.arrays.values()))
        if not self.crs or array.transform is None:
            return None
        a, b, c, d, e, f = array.transform
        row, column = np.array(array.data.shape[1:]) / 2
        return self.crs, float(a * column + b * row + c), float(d * column + e * row + f)


class Source(ABC):
    """A layout of archives. `name` is what `--source` says."""

    name: str
    version: str
    """Version of the data that the layout holds; goes into the manifest."""
    arrays: tuple[str, ...]
    """Names of all arrays that its samples may have; `list` may narrow them to what it has seen."""
    vocabulary: tuple[str, ...] = ()
    """Labels in their official order; empty when the labels are the pairs' own."""

    def __init__(self, root: str, options: SourceOptions | None = None) -> None:
        self.root = root
        self.options = options or SourceOptions()

    @abstractmethod
    def list(self) -> Listing:
        """Everything at the root; ConfigError when there is no root, DataError when it cannot be listed.

        Looks at tables and names only, so that an archive of any size is listed in seconds: whether the files of a
        pair are whole, `files` and `read` say when its shard is built.
        """

    @abstractmethod
    def files(self, pair: Pair) -> tuple[SourceFile, ...]:
        """The files that `read` reads, with what shows that they changed; PairError when one is missing."""

    @abstractmethod
    def read(self, pair: Pair) -> Sample:
        """The pixels and attributes of `pair`; PairError when they are not as they should be."""

    def centre(self, pair: Pair) -> tuple[str, float, float] | None:
        """CRS and centre of a patch whose place the listing does not say; None when unknown."""
        return self.read(pair).centre
