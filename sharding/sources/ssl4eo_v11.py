"""SSL4EO-S12 v1.1, the edition in Zarr: files of 64 samples with four timestamps, all bands resampled to 10 m.

    ROOT/{train,val}/S1GRD/ssl4eos12_{split}_seasonal_data_NNNNNN.zarr.zip
    ROOT/{train,val}/S2L2A/… and S2L1C/…               the same name: the same samples
    ROOT/splits/ssl4eos12_{train,val}.txt              names of files, if there

S1 and S2 of a sample are joined by its id and, of its timestamps, those whose dates are nearest. The numbers of S2
are raised by 1000 in all files and both levels.
"""

import math
from dataclasses import replace
from typing import Any, Final

import numpy as np

from sharding.sources.assemble import Radiometry, arrays_of, rider, split_bands
from sharding.sources.band_names import band_name
from sharding.sources.base import (
    BANDS,
    GRIDS,
    METADATA,
    MISSING_HALF,
    OFFSET,
    WRONG_SIZE,
    WRONG_TYPE,
    PairError,
    Sample,
    Source,
    SourceFile,
    SourceOptions,
)
from sharding.sources.listing import Listing, Pair, table_of
from sharding.sources.radiometric_offset import judge_l1c, judge_l2a
from sharding.sources.raster import Raster
from sharding.sources.ssl4eo_v1 import place_of
from sharding.sources.ssl4eo_v11_file import cloud_shares, grid_of, sample_ids
from sharding.sources.ssl4eo_v11_listing import NAME, S2_FOLDERS, Lister, find_files, find_level, parse_half
from sharding.sources.tree import Tree
from sharding.sources.zarr_zip_part import GroupFile, GroupFiles

S2_OFFSET: Final = -1000.0
PIXELS: Final = 264
_S1_BANDS: Final = ("VV", "VH")
_S2_BANDS: Final = {
    "L2A": ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"),
    "L1C": ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"),
}
_RESAMPLED: Final = ("s2_20m", "s2_60m")
_KEPT: Final = 256
_NEAR: Final = 10
"""Pixels between the centres of the halves; those of v1.0 are up to four apart."""


class SSL4EOS12V11(Source):
    """The published files; a pair's key is the archive's own: sample and number of S2's timestamp, `0080717_0`."""

    name = NAME
    version = "1.1"
    arrays = ("s1", "s2_10m", "s2_20m", "s2_60m", "cloud_mask")

    def __init__(self, root: str, options: SourceOptions | None = None) -> None:
        super().__init__(root, options)
        self.tree = Tree(root)
        self._groups = GroupFiles(self.tree, _KEPT)

    def list(self) -> Listing:
        """Pairs by the ids and dates in the files; no pixel is decoded but, with `max_cloud`, the masks of clouds."""
        self.tree.require()
        level = find_level(self.tree, self.options.s2_level)
        listing = Listing(table=table_of(()), has_splits=True)
        files = find_files(self.tree, level, listing)
        listing.table = table_of(Lister(self.tree, self.options, listing).pairs(files))
        return listing

    def files(self, pair: Pair) -> tuple[SourceFile, ...]:
        """The two files in which the halves are."""
        found = []
        for path, _, _ in map(parse_half, (pair.s1, pair.s2)):
            file = self.tree.file(path)
            if file is None:
                raise PairError(MISSING_HALF, path, "the file is missing; fetch it again")
            found.append(file)
        return tuple(found)

    def read(self, pair: Pair) -> Sample:
        """One timestamp of S1 and S2 as stored; the mask of clouds rides along."""
        level = _level_of(pair)
        s1, s1_row, s1_time = self._half(pair, pair.s1)
        s2, s2_row, s2_time = self._half(pair, pair.s2)
        rasters = _rasters(s1, s1_row, s1_time, _S1_BANDS) | _rasters(s2, s2_row, s2_time, _S2_BANDS[level])
        _refuse_other_place(rasters)
        _refuse_without_offset(rasters, level)
        arrays = arrays_of(rasters, Radiometry(s2_offset=S2_OFFSET), same_grid=False)
        for name in _RESAMPLED:
            arrays[name] = replace(arrays[name], gsd_m=arrays["s2_10m"].gsd_m)
        grid = rasters["B02"].grid
        facts: dict[str, Any] = {"location": pair.key.rpartition("_")[0], "resampled": True}
        for name, group, row, time in (("s1", s1, s1_row, s1_time), ("s2", s2, s2_row, s2_time)):
            if "file_id" in group:
                facts[f"{name}_product"] = str(group.part("file_id", row, time))
        if self.options.riders and "cloud_mask" in s2:
            mask = _mask(s2, s2_row, s2_time)
            raster = Raster(path=s2.path, data=mask, grid=grid)
            arrays["cloud_mask"] = rider("cloud_mask", {"CLOUD": raster}, units="class")
            facts["cloud_share"] = round(float(cloud_shares(mask)[0]), 6)
        return Sample(
            key=pair.key,
            source=self.name,
            arrays=arrays,
            crs=grid.crs,
            level=level,
            dates={name: date for name, date in (("s1", pair.s1_date), ("s2", pair.s2_date)) if date},
            labels=pair.labels,
            split=pair.split,
            attributes=facts,
            place=(pair.lon, pair.lat) if math.isfinite(pair.lon + pair.lat) else place_of(grid, s2.path),
        )

    def centre(self, pair: Pair) -> tuple[str, float, float] | None:
        """From the coordinates of S2's pixels, without decoding one."""
        group, row, _ = self._half(pair, pair.s2)
        return grid_of(group, row).centre

    def _half(self, pair: Pair, half: str) -> tuple[GroupFile, int, int]:
        """File, row and timestamp of a half; PairError when the row is not the pair's sample (any more)."""
        path, row, time = parse_half(half)
        group = self._groups.open(path)
        ids, location = sample_ids(group), pair.key.rpartition("_")[0]
        if row >= len(ids) or ids[row] != location:
            raise PairError(METADATA, path, f"sample {row} is not {location}: the file has changed since it was listed")
        return group, row, time


def _rasters(group: GroupFile, row: int, time: int, expected: tuple[str, ...]) -> dict[str, Raster]:
    """The planes of one timestamp by band, in the file's own order of bands."""
    told = [str(name) for name in group.array("band").tolist()]
    bands = [band_name(name) for name in told]
    if sorted(map(str, bands)) != sorted(expected):
        raise PairError(BANDS, group.path, f"its bands are {', '.join(told)} where {', '.join(expected)} belong")
    if packed := group.attributes("bands").keys() & {"scale_factor", "add_offset"}:
        raise PairError(
            METADATA, group.path, f"its numbers are packed ({', '.join(sorted(packed))}), so not as published"
        )
    data = group.part("bands", row, time)
    if data.shape != (len(bands), PIXELS, PIXELS):
        shape = "x".join(map(str, data.shape))
        raise PairError(WRONG_SIZE, group.path, f"a timestamp is {shape} where {len(bands)}x{PIXELS}x{PIXELS} belong")
    return split_bands(Raster(path=group.path, data=data, grid=grid_of(group, row)), tuple(map(str, bands)))


def _refuse_other_place(rasters: dict[str, Raster]) -> None:
    """The halves' arrays align, as those of v1.0 do; their coordinates need only mean the same place."""
    s1, s2 = rasters["VV"], rasters["B02"]
    if s1.grid.crs != s2.grid.crs:
        raise PairError(
            GRIDS, s1.path, f"S1 is in {s1.grid.crs or 'no CRS'}, S2 ({s2.path}) in {s2.grid.crs or 'none'}"
        )
    if s1.grid.centre is None or s2.grid.centre is None or s2.grid.transform is None:
        return
    apart = max(abs(a - b) for a, b in zip(s1.grid.centre[1:], s2.grid.centre[1:], strict=True))
    if not apart <= _NEAR * abs(s2.grid.transform[0]):
        message = f"S1's centre is {s1.grid.centre[1:]}, that of S2 ({s2.path}) {s2.grid.centre[1:]}; no one place"
        raise PairError(GRIDS, s1.path, message)


def _refuse_without_offset(rasters: dict[str, Raster], level: str) -> None:
    """Files that are made otherwise are told from the published ones where their pixels prove it."""
    planes = {band: raster.data[0] for band, raster in rasters.items()}
    verdict = judge_l1c(planes) if level == "L1C" else judge_l2a(planes)
    if verdict.offset == 0.0:
        raise PairError(OFFSET, rasters["B02"].path, f"S2 is not raised by 1000 as all of v1.1 is: {verdict.evidence}")


def _mask(group: GroupFile, row: int, time: int) -> np.ndarray[Any, Any]:
    mask = group.part("cloud_mask", row, time)
    if mask.dtype != np.uint8:
        raise PairError(WRONG_TYPE, group.path, f"its mask of clouds is {mask.dtype}, uint8 was expected")
    if mask.shape != (PIXELS, PIXELS):
        raise PairError(WRONG_SIZE, group.path, f"its mask of clouds has the shape {mask.shape}, not that of the bands")
    return mask[np.newaxis]


def _level_of(pair: Pair) -> str:
    folder = pair.s2.split("/")[1]
    return next(level for level, name in S2_FOLDERS.items() if name == folder)
