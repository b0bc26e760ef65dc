"""The tars of a TerraMesh archive, and which of their members belong together.

    {train,val}/{S1GRD,S1RTC,S2L1C,S2L2A,DEM,NDVI,LULC}/{majortom,ssl4eos12}_shard_NNNNNN.tar, members <tile>.zarr.zip

Tars of one name hold the same tiles, one modality each, and are joined by the names of their members: a tile that one
of them lacks shifts all that follow, so that a member's position says nothing.
"""

import math
import re
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from sharding.sources.base import METADATA, MISSING_HALF, PairError
from sharding.sources.listing import Pair, Refusal
from sharding.sources.tar_members import Member, scan_tar
from sharding.sources.terramesh_places import Place, Places
from sharding.sources.tree import Tree

SPLITS: Final = ("train", "val", "test")
RIDERS: Final = {"dem": "DEM", "ndvi": "NDVI", "lulc": "LULC"}
"""Array -> modality."""
L1C: Final = "l1c"
"""Level 1C beside level 2A: read where the offset of level 2A is not clear by itself."""
MODALITIES: Final = {**RIDERS, L1C: "S2L1C"}
SUFFIX: Final = ".zarr.zip"
_MAX_KEY: Final = 91
_THREADS: Final = 16
"""Headers are small reads far apart: what they wait for is the disk or the network."""
_AHEAD: Final = 8
"""Tars of as many names are scanned before they are asked for, some MB each."""
_Scan = tuple[dict[str, Member], list[str]]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The tars of one name in one split: `s1`, `s2`, and what of `MODALITIES` is wanted and there, by path."""

    split: str
    name: str
    tars: dict[str, str]


@dataclass(kw_only=True)
class Join:
    """The pairs of shards, and what is told of the rest."""

    source: str
    refused: list[Refusal] = field(default_factory=list)
    lacking: Counter[str] = field(default_factory=Counter)
    """Pairs without a member in a tar that is there, or without a tar, by modality."""
    strange: Counter[str] = field(default_factory=Counter)
    """Members that are no `.zarr.zip`, by tar."""
    num_pairs: int = 0

    def refuse(self, key: str, error: PairError) -> None:
        """Add a refusal to the list."""
        self.refused.append(
            Refusal(key=key, source=self.source, reason=error.reason, file=error.file, message=error.message)
        )


def columns() -> dict[str, pa.DataType]:
    """Names and types of the attributes that a pair of this source may have."""
    members = ("s1", "s2", *MODALITIES)
    return {
        **{f"{role}_offset": pa.int64() for role in members},
        **{f"{role}_size": pa.int64() for role in members},
        "tile": pa.string(),
        "cloud_cover": pa.float64(),
    }


def find_shards(tree: Tree, level: str, wanted: Iterable[str]) -> list[Shard]:
    """Every name of a tar of S1 or of S2 in this level, with its tars of these and of the `wanted` of `MODALITIES`."""
    shards = []
    for split in [name for name in tree.folders() if name in SPLITS]:
        modalities = {"s2": f"S2{level}", "rtc": "S1RTC", "grd": "S1GRD"}
        modalities |= {role: MODALITIES[role] for role in wanted}
        found = {role: tree.files(f"{split}/{modality}") for role, modality in modalities.items()}
        names = {name for role in ("s2", "rtc", "grd") for name in found[role] if name.endswith(".tar")}
        for name in sorted(names):
            # RTC comes with the shards of Major TOM, GRD with those of SSL4EO-S12.
            kinds = ("rtc", "grd") if name.startswith("majortom") else ("grd", "rtc")
            tars = {role: f"{split}/{modalities[role]}/{name}" for role in modalities if name in found[role]}
            s1 = next((tars[kind] for kind in kinds if kind in tars), None)
            tars = {role: path for role, path in tars.items() if role not in kinds}
            shards.append(Shard(split=split, name=name, tars={"s1": s1, **tars} if s1 else tars))
    return shards


def pairs_of_shards(
    tree: Tree, shards: list[Shard], wanted: tuple[str, ...], places: Places, join: Join
) -> Iterator[Pair]:
    """The pairs of all shards, scanned ahead by threads."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="tar-headers") as pool:
        waiting: deque[tuple[Shard, dict[str, Future[_Scan]]]] = deque()
        for shard in shards:
            waiting.append((shard, {role: pool.submit(scan_tar, tree, path) for role, path in shard.tars.items()}))
            if len(waiting) > _AHEAD:
                yield from _joined(*waiting.popleft(), wanted, places, join)
        while waiting:
            yield from _joined(*waiting.popleft(), wanted, places, join)


def tile_key(tile: str) -> str:
    """A tile's name as a key: dots and the like become `_`, and then a checksum keeps it apart from others."""
    key = re.sub(r"[^A-Za-z0-9_-]", "_", tile)
    if key == tile and 0 < len(key) <= _MAX_KEY:
        return key
    checksum = f"-{zlib.crc32(tile.encode('utf-8', 'surrogateescape')):08x}"
    return key[: _MAX_KEY - len(checksum)] + checksum


def _joined(
    shard: Shard, futures: dict[str, Future[_Scan]], wanted: tuple[str, ...], places: Places, join: Join
) -> Iterator[Pair]:
    scans: dict[str, dict[str, Member]] = {}
    twice: dict[str, str] = {}
    shard_key = f"{shard.split}/{shard.name.removesuffix('.tar')}"
    for role, future in futures.items():
        path = shard.tars[role]
        try:
            members, repeated = future.result()
        except PairError as error:
            join.refuse(shard_key, error)
            continue
        scans[role] = {name.removesuffix(SUFFIX): at for name, at in members.items() if name.endswith(SUFFIX)}
        join.strange[path] += len(members) - len(scans[role])
        twice |= dict.fromkeys((name.removesuffix(SUFFIX) for name in repeated), path)
    if len(scans) < len(futures):
        return  # a tar is broken, and it is not known what else it held
    for role, other in (("s1", "s2"), ("s2", "s1")):
        if role not in scans:
            modality = "S1RTC or S1GRD" if role == "s1" else shard.tars[other].split("/")[1]
            message = (
                f"there is no {modality} tar of this name, so its {len(scans[other])} tiles are no pairs; fetch it"
            )
            join.refuse(shard_key, PairError(MISSING_HALF, shard.tars[other], message))
            return
    known = places.of(shard.split, shard.name)
    for tile in sorted(scans["s1"].keys() | scans["s2"].keys()):
        try:
            yield _pair(shard, tile, scans, twice, known.get(tile))
        except PairError as error:
            join.refuse(tile_key(tile), error)
            continue
        join.num_pairs += 1
        join.lacking.update(role for role in wanted if tile not in scans.get(role, {}))


def _pair(
    shard: Shard, tile: str, scans: dict[str, dict[str, Member]], twice: dict[str, str], place: Place | None
) -> Pair:
    for role, other in (("s1", "s2"), ("s2", "s1")):
        if tile not in scans[role]:
            message = f"it has no {tile}{SUFFIX}, which is in {shard.tars[other]}; fetch both tars again"
            raise PairError(MISSING_HALF, shard.tars[role], message)
    if tile in twice:
        raise PairError(METADATA, twice[tile], f"it has {tile}{SUFFIX} more than once; fetch it again")
    attributes: dict[str, Any] = {}
    for role, members in scans.items():
        if tile in members:
            attributes[f"{role}_offset"], attributes[f"{role}_size"] = members[tile]
    key = tile_key(tile)
    if key != tile:
        attributes["tile"] = tile
    if place is not None and place.cloud_cover is not None:
        attributes["cloud_cover"] = place.cloud_cover
    return Pair(
        key=key,
        s1=shard.tars["s1"],
        s2=shard.tars["s2"],
        split=shard.split,
        lon=math.nan if place is None else place.lon,
        lat=math.nan if place is None else place.lat,
        attributes=attributes,
    )
