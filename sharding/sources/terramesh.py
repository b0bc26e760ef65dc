"""TerraMesh as it is published: tars of zarr.zip, a folder a modality, joined by the names of the tiles.

The listing reads the headers of every tar once and keeps where each member lies, so that a sample is one ranged read
for each modality. S1 is radiometrically terrain corrected in the shards of Major TOM (S1RTC) and ground range detected
in those of SSL4EO-S12 (S1GRD), both in dB; S2 is level 2A or 1C, with all bands on the grid of 10 m. Whether the
numbers of S2 carry the +1000 of baseline 04.00 differs from tile to tile and is proven by the pixels of each.
"""

import dataclasses
import math
import os
from typing import Final

from sharding.bands import ARRAY_BANDS
from sharding.errors import ConfigError
from sharding.sources.assemble import Radiometry, arrays_of, rider
from sharding.sources.base import (
    CORRUPT,
    DAYS,
    GRIDS,
    MISSING_HALF,
    OFFSET,
    WRONG_SIZE,
    PairError,
    Sample,
    Source,
    SourceFile,
    SourceOptions,
    StoredArray,
)
from sharding.sources.listing import Listing, Pair, table_of
from sharding.sources.nearest import days_apart
from sharding.sources.radiometric_offset import Planes, judge_l1c, judge_l2a, judge_l2a_beside
from sharding.sources.tar_members import BLOCK, member_name
from sharding.sources.terramesh_places import Places
from sharding.sources.terramesh_shards import (
    L1C,
    MODALITIES,
    RIDERS,
    SUFFIX,
    Join,
    Shard,
    columns,
    find_shards,
    pairs_of_shards,
)
from sharding.sources.terramesh_tile import GSD_M, Tile, decode_place, decode_tile
from sharding.sources.tree import Tree

_UNITS: Final = {"dem": "m", "ndvi": "index", "lulc": "class"}
_SAME_PLACE: Final = 5e-5
"""Degrees: half a pixel."""


class TerraMesh(Source):
    """The published tars; a pair's key is its tile."""

    name = "terramesh"
    version = "1.0"
    arrays = ("s1", "s2_10m", "s2_20m", "s2_60m", *RIDERS, "cloud_mask")

    def __init__(self, root: str, options: SourceOptions | None = None) -> None:
        super().__init__(root, options)
        self.tree = Tree(root)
        self._remote_files: dict[str, SourceFile] = {}

    def list(self) -> Listing:
        """Pairs by the headers of the tars; a tile without its other half is refused."""
        self.tree.require()
        level = self._level()
        wanted = tuple(RIDERS) if self.options.riders else ()
        wanted += (L1C,) if level == "L2A" else ()
        shards = find_shards(self.tree, level, wanted)
        places = Places(self.tree, sorted({shard.split for shard in shards}))
        join = Join(source=self.name)
        table = table_of(pairs_of_shards(self.tree, shards, wanted, places, join), **columns())
        notes = _notes(shards, join, level)
        return Listing(table=table, refused=join.refused, notes=notes, has_splits=True)

    def files(self, pair: Pair) -> tuple[SourceFile, ...]:
        """One tar a modality."""
        return tuple(self._file(_tar(pair, role)) for role in _roles(pair))

    def read(self, pair: Pair) -> Sample:
        """S1, S2, what rides along, and the verdict on the offset of S2."""
        s1, s2 = self._tile(pair, "s1"), self._tile(pair, "s2")
        _require_same_place(s1, s2)
        if self.options.max_days is not None and s1.date and s2.date:
            _require_close(s1, s2, self.options.max_days)
        level = "L1C" if "B10" in s2.rasters else "L2A"
        offset, evidence = self._offset(pair, s2, level)
        arrays = arrays_of({**s1.rasters, **s2.rasters}, Radiometry(s2_offset=offset))
        if self.options.riders:
            arrays |= self._riders(pair, s2)
        crs = next(iter(s2.rasters.values())).grid.crs
        split, modality, shard = pair.s1.split("/")
        kept = {name: value for name, value in pair.attributes.items() if name in ("tile", "cloud_cover")}
        return Sample(
            key=pair.key,
            source=self.name,
            # All bands are at 10 m here, also where no CRS tells how large a pixel is.
            arrays=arrays if crs else {n: dataclasses.replace(array, gsd_m=GSD_M) for n, array in arrays.items()},
            crs=crs,
            level=level,
            dates={half: tile.date for half, tile in (("s1", s1), ("s2", s2)) if tile.date},
            split=pair.split,
            attributes={
                **kept,
                "shard": f"{split}/{shard.removesuffix('.tar')}",
                "s1_product": modality,
                "resampled": True,
                "offset_evidence": evidence,
            },
            place=(s2.lon, s2.lat),
        )

    def centre(self, pair: Pair) -> tuple[str, float, float] | None:
        """From the smallest member."""
        role = min(_roles(pair), key=lambda role: int(pair.attributes[f"{role}_size"]))
        content, path = self._content(pair, role)
        return ("EPSG:4326", *decode_place(content, path))

    def _level(self) -> str:
        splits = self.tree.folders()
        there = [
            level
            for level in ("L2A", "L1C")
            if any(name.endswith(".tar") for split in splits for name in self.tree.files(f"{split}/S2{level}"))
        ]
        asked = self.options.s2_level
        if not there or (asked and asked not in there):
            folders = f"S2{asked}" if asked else "S2L2A or S2L1C"
            raise ConfigError(
                f"{self.root} has no tar in train/{folders} or val/{folders}; give --root the folder that holds "
                "train/ and val/ of TerraMesh"
            )
        return asked or there[0]

    def _file(self, path: str) -> SourceFile:
        if path in self._remote_files:
            return self._remote_files[path]
        file = self.tree.file(path)
        if file is None:
            raise PairError(MISSING_HALF, path, "the tar is missing; fetch it again")
        if self.tree.local(path) is None:
            self._remote_files[path] = file  # a tar serves ten thousand pairs, and each question is a request
        return file

    def _tile(self, pair: Pair, role: str) -> Tile:
        content, path = self._content(pair, role)
        return decode_tile(content, path, path.split("/")[1])

    def _content(self, pair: Pair, role: str) -> tuple[bytes, str]:
        """The bytes of a member, whose header must still have its name, and how messages call it."""
        tar, member = _tar(pair, role), str(pair.attributes.get("tile", pair.key)) + SUFFIX
        path = f"{tar}/{member}"
        start, size = (int(pair.attributes[f"{role}_{what}"]) for what in ("offset", "size"))
        content = self._range(tar, start - BLOCK, BLOCK + size)
        found = member_name(content[:BLOCK])
        # A longer name than a header holds stands in a header before it, and this one has its beginning.
        if member != found and not (len(found) >= 99 and member.startswith(found)):
            raise PairError(CORRUPT, path, f"the tar has '{found}' at byte {start}: it was changed; build again")
        return content[BLOCK:], path

    def _range(self, tar: str, start: int, size: int) -> bytes:
        local = self.tree.local(tar)
        cut = f"it ends before byte {start + size}: it is cut short; fetch it again"
        if local is None:
            if self._file(tar).size < start + size:
                raise PairError(CORRUPT, tar, cut)
            return self.tree.store.read_range(tar, start, start + size)
        try:
            descriptor = os.open(local, os.O_RDONLY)
        except FileNotFoundError as error:
            raise PairError(MISSING_HALF, tar, "the tar is missing; fetch it again") from error
        try:
            content = os.pread(descriptor, size, start)
        except OSError as error:
            raise PairError(CORRUPT, tar, f"bytes {start} to {start + size} cannot be read ({error})") from error
        finally:
            os.close(descriptor)
        if len(content) != size:
            raise PairError(CORRUPT, tar, cut)
        return content

    def _offset(self, pair: Pair, s2: Tile, level: str) -> tuple[float, str]:
        planes = _planes(s2)
        verdict = judge_l1c(planes) if level == "L1C" else judge_l2a(planes)
        hint = "leave the tile out"
        if verdict.offset is None and level == "L2A":
            if L1C in _roles(pair):
                l1c = self._tile(pair, L1C)
                _require_same_place(s2, l1c)
                verdict = judge_l2a_beside(planes, _planes(l1c))
            else:
                hint = "fetch its S2L1C tar, against which it can be measured"
        if verdict.offset is None:
            raise PairError(
                OFFSET,
                s2.path,
                f"it is not clear whether its numbers carry the +1000 of baseline 04.00: {verdict.evidence}; {hint}",
            )
        return verdict.offset, verdict.evidence

    def _riders(self, pair: Pair, s2: Tile) -> dict[str, StoredArray]:
        found = {}
        for name in RIDERS:
            if name in _roles(pair):
                tile = self._tile(pair, name)
                _require_same_place(s2, tile)
                found[name] = rider(name, tile.rasters, units=_UNITS[name])
        if s2.cloud_mask is not None:
            found["cloud_mask"] = rider("cloud_mask", {"CLOUD": s2.cloud_mask}, units="class")
        return {name: found[name] for name in ARRAY_BANDS if name in found}


def _roles(pair: Pair) -> list[str]:
    """The modalities of which a pair has a member."""
    return [role for role in ("s1", "s2", *MODALITIES) if f"{role}_offset" in pair.attributes]


def _tar(pair: Pair, role: str) -> str:
    if role in ("s1", "s2"):
        return pair.s1 if role == "s1" else pair.s2
    split, _, name = pair.s2.split("/")
    return f"{split}/{MODALITIES[role]}/{name}"


def _planes(tile: Tile) -> Planes:
    return {band: raster.data[0] for band, raster in tile.rasters.items()}


def _require_same_place(a: Tile, b: Tile) -> None:
    east = abs(a.lon - b.lon) * math.cos(math.radians(a.lat))
    if abs(a.lat - b.lat) > _SAME_PLACE or min(east, abs(east - 360 * math.cos(math.radians(a.lat)))) > _SAME_PLACE:
        raise PairError(
            GRIDS,
            b.path,
            f"its centre is {b.lon:.6f} E, {b.lat:.6f} N, that of {a.path} {a.lon:.6f} E, {a.lat:.6f} N: not one tile",
        )
    sizes = [next(iter(tile.rasters.values())).data.shape[1:] for tile in (a, b)]
    if sizes[0] != sizes[1]:
        raise PairError(WRONG_SIZE, b.path, f"it has {sizes[1]} pixels, {a.path} has {sizes[0]}; fetch both again")


def _require_close(s1: Tile, s2: Tile, max_days: float) -> None:
    days = days_apart(s1.date, s2.date)
    if days > max_days:
        raise PairError(
            DAYS, s1.path, f"S1 is of {s1.date}, S2 of {s2.date}: {days:.1f} days apart, --max-days says {max_days:g}"
        )


def _notes(shards: list[Shard], join: Join, level: str) -> list[str]:
    notes = []
    for role, count in sorted(join.lacking.items()):
        what = "which proves the offset of tiles that are nowhere dark" if role == L1C else "which would ride along"
        notes.append(f"{count} of {join.num_pairs} pairs have no {MODALITIES[role]}, {what}")
    for path, count in sorted(join.strange.items()):
        if count:
            notes.append(f"{count} members of {path} are no {SUFFIX} and are left out")
    return notes
