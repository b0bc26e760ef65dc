"""What is known of the samples beside their pixels: place, dates, CRS; from the data set's metadata, shard by shard."""

import datetime
import math
from collections import OrderedDict
from dataclasses import replace
from typing import Any, Final

import numpy as np

from pipeline.embed.arrays import Columns
from sharding.dataset import open_dataset
from sharding.existing import metadata_of
from sharding.manifest import ShardSpec

_KEPT: Final = 2
"""Shards whose metadata are kept: samples come in order."""


class SampleFacts:
    """Of the samples of a data set, by split and number."""

    def __init__(self, url: str) -> None:
        self._store, self._manifest = open_dataset(url)
        self._lines: OrderedDict[str, list[dict[str, Any]]] = OrderedDict()

    def columns(self, split: str, first: int, last: int) -> Columns:
        """Of samples [first, last) of the split: key, lon, lat (NaN unknown), crs (empty), dates (seconds, NaN)."""
        lines: list[dict[str, Any]] = []
        begin = 0
        for shard in self._manifest.shards_of(split):
            low, high = max(first, begin), min(last, begin + shard.samples)
            if low < high:
                lines += self._of(shard)[low - begin : high - begin]
            begin += shard.samples
        return {
            "key": np.array([line["key"] for line in lines], object),
            "lon": np.array([math.nan if line["lon"] is None else line["lon"] for line in lines], np.float64),
            "lat": np.array([math.nan if line["lat"] is None else line["lat"] for line in lines], np.float64),
            "crs": np.array([line.get("crs") or "" for line in lines], object),
            "date_s1": np.array([seconds_of(line["dates"].get("s1")) for line in lines], np.float64),
            "date_s2": np.array([seconds_of(line["dates"].get("s2")) for line in lines], np.float64),
        }

    def _of(self, shard: ShardSpec) -> list[dict[str, Any]]:
        if shard.metadata_path not in self._lines:
            ((_, lines),) = metadata_of(self._store, replace(self._manifest, shards=(shard,)))
            self._lines[shard.metadata_path] = lines
            if len(self._lines) > _KEPT:
                self._lines.popitem(last=False)
        self._lines.move_to_end(shard.metadata_path)
        return self._lines[shard.metadata_path]


def seconds_of(date: str | None) -> float:
    """Seconds since 1970 of an ISO 8601 date in UTC; NaN when it is unknown or is none."""
    if not date:
        return math.nan
    try:
        moment = datetime.datetime.fromisoformat(date)
    except ValueError:
        return math.nan
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()
