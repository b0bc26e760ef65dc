"""Statistics of each band, gathered while shards are written, merged when they are finished.

Values are (stored number + radiometric offset) x scale, in the array's units; pixels without data are counted apart.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, Final

from sharding.bands import are_classes
from sharding.errors import DataError
from sharding.histogram import Histogram
from sharding.manifest import BandStatistics
from sharding.moments import Moments, merge, percentiles_of
from sharding.sources.base import Sample
from sharding.tally import Meaning, Tally, tally_of

__all__ = ["Accumulator", "Moments", "band_statistics", "dump_statistics", "merge", "parse_statistics"]

SCHEMA: Final = "fusmae-statistics/1"


class Accumulator:
    """The statistics of one shard: `add` every sample, then take the `result`."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[Any, ...], Tally] = {}
        self._bands: dict[tuple[Any, ...], tuple[str, ...]] = {}

    def add(self, sample: Sample) -> None:
        """Count the pixels of a sample."""
        for name, array in sample.arrays.items():
            nodata = array.nodata if array.nodata == array.nodata else None  # NaN is no data in any case
            dtype, scale, offset = array.data.dtype, array.scale, array.radiometric_offset
            key = (name, array.bands, array.units, dtype, scale, offset, nodata)
            if key not in self._tallies:
                classes = are_classes(array.bands, array.units)
                meaning = Meaning(
                    units=array.units, classes=classes, dtype=dtype, scale=scale, offset=offset, nodata=nodata
                )
                self._tallies[key], self._bands[key] = tally_of(meaning, len(array.bands)), array.bands
            self._tallies[key].add(array.data)

    def result(self) -> dict[str, Moments]:
        """The moments of each band, in the order in which the bands were first seen."""
        return merge(dict(zip(self._bands[key], tally.moments(), strict=True)) for key, tally in self._tallies.items())


def band_statistics(moments: Moments) -> BandStatistics:
    """As the manifest keeps them: 12 significant digits, for the last bits of a sum differ between processors.

    Of a band that has no data anywhere all figures but `nodata` are 0.
    """
    if not moments.count:
        return BandStatistics(
            count=0, mean=0.0, std=0.0, minimum=0.0, maximum=0.0, nodata=moments.nodata, percentiles={}
        )
    return BandStatistics(
        count=moments.count,
        mean=_rounded(moments.mean),
        std=_rounded(math.sqrt(moments.m2 / moments.count)),
        minimum=_rounded(moments.minimum),
        maximum=_rounded(moments.maximum),
        nodata=moments.nodata,
        percentiles={name: _rounded(value) for name, value in percentiles_of(moments).items()},
    )


def dump_statistics(statistics: Mapping[str, Mapping[str, Moments]]) -> bytes:
    """The bytes of a data set's `statistics-….json`: by split and band, with the full histograms."""
    splits = {
        split: {band: _as_json(moments) for band, moments in bands.items()} for split, bands in statistics.items()
    }
    content = {"schema": SCHEMA, "splits": splits}
    return (json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n").encode()


def parse_statistics(content: bytes, name: str) -> dict[str, dict[str, Moments]]:
    """The moments in `content` by split and band; DataError naming `name` when it is damaged or of another schema."""
    try:
        raw: Any = json.loads(content)
        if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
            raise DataError(f"{name} is no statistics of this program (schema {SCHEMA}); fetch it again")
        return {
            split: {band: _from_json(moments) for band, moments in bands.items()}
            for split, bands in raw["splits"].items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{name} is damaged ({error}); fetch it again or build the data set again") from error


def _as_json(moments: Moments) -> dict[str, Any]:
    content = dict(vars(moments))
    content["mean"], content["m2"] = _rounded(moments.mean), _rounded(moments.m2)
    content["histogram"] = moments.histogram.pairs()
    if not moments.count:
        content["minimum"] = content["maximum"] = None  # JSON has no infinity
    return content


def _from_json(content: dict[str, Any]) -> Moments:
    if not content["count"]:
        content = {name: value for name, value in content.items() if value is not None}
    return Moments(**content | {"histogram": Histogram.of_pairs(content["histogram"])})


def _rounded(value: float) -> float:
    return float(f"{value:.12g}")
