"""TerraMesh indexed as it is published: tars joined by the names of the tiles, each tile's pixels where they lie."""

from typing import Any, Final

import numpy as np

from sharding.foreign_archive import (
    Archive,
    ArchiveShard,
    ChunkReader,
    Found,
    IndexedArray,
    IndexedSample,
    IndexOptions,
    arrays_of_chunks,
    prove,
    read_file,
)
from sharding.foreign_zarr import StoredGroup
from sharding.sources.base import OFFSET, WRONG_SIZE, PairError, Sample, SourceFile, SourceOptions
from sharding.sources.listing import Pair
from sharding.sources.raster import Raster
from sharding.sources.terramesh import _UNITS, TerraMesh, _require_same_place, _roles, _tar
from sharding.sources.terramesh_places import Place, Places
from sharding.sources.terramesh_shards import L1C, RIDERS, SUFFIX, Join, find_shards, pairs_of_shards
from sharding.sources.terramesh_tile import GSD_M, Tile, _bands, _date, _grid, _place

_TABLE: Final = "{}_metadata.parquet"
_MASK: Final = "cloud_mask"


class IndexedTerraMesh(Archive):
    """Shards are the tars of one name in one split; samples come in the order of the tar of S2."""

    name = TerraMesh.name
    version = TerraMesh.version
    riders = (*RIDERS, _MASK)
    proves_offset = True

    def __init__(self, root: str, options: IndexOptions) -> None:
        super().__init__(root, options)
        self._source = _Source(root, options)
        self._chunks = ChunkReader()
        self._places: dict[str, Places] = {}

    def shards(self, found: Found) -> list[ArchiveShard]:
        """Every name of a tar of S1 or S2, with the tars that are read for it."""
        self.tree.require()
        wanted = tuple(RIDERS) if self.options.riders else ()
        level = self._source.level
        if level == "L2A" and not self.options.headers_only:
            wanted += (L1C,)  # where level 2A does not prove its offset by itself
        tables = self.tree.files()
        folders: dict[str, dict[str, SourceFile]] = {}
        shards = []
        for shard in find_shards(self.tree, level, wanted):
            files = {}
            for role, path in shard.tars.items():
                folder, _, name = path.rpartition("/")
                if folder not in folders:
                    folders[folder] = self.tree.files(folder)
                files[role] = folders[folder][name]
            parts = tuple(files[role] for role in ("s2", "s1", *RIDERS) if role in files)
            table = _TABLE.format(shard.split)
            others = [*([files[L1C]] if L1C in files else []), *([tables[table]] if table in tables else [])]
            name = f"{shard.split}-{shard.name.removesuffix('.tar')}"
            shards.append(
                ArchiveShard(name=name, split=shard.split, parts=parts, others=tuple(others), content=(shard, wanted))
            )
        return shards

    def facts(self, shard: ArchiveShard) -> dict[str, Place]:
        """What the table of the split says of its tiles: read here, once, for it has millions of rows."""
        split = shard.split
        if split not in self._places:
            self._places = {split: Places(self.tree, [split])}
        return self._places[split].of(split, shard.content[0].name)

    def entries(self, shard: ArchiveShard, facts: Any, found: Found) -> list[Pair]:
        """The pairs, by the headers of the tars."""
        tars, wanted = shard.content
        join = Join(source=self.name)
        known: Any = _Known(facts)
        pairs = list(pairs_of_shards(self.tree, [tars], wanted, known, join))
        found.refused += join.refused
        for role, count in join.lacking.items():
            if role == L1C:
                found.counts["{} tiles have no S2L1C, which proves the offset of tiles that are nowhere dark"] += count
            else:
                found.counts[f"{{}} tiles have no {RIDERS[role]}"] += count
        for path, count in join.strange.items():
            if count:
                found.counts[f"{{}} members of {path} are no {SUFFIX} and are left out"] += count
        return sorted(pairs, key=lambda pair: int(pair.attributes["s2_offset"]))

    def key_of(self, entry: Pair) -> tuple[str, str]:
        """The tile, and its member in the tar of S2."""
        return entry.key, f"{entry.s2}/{_tile_name(entry)}"

    def read(self, shard: ArchiveShard, entry: Pair, pixels: bool) -> IndexedSample:
        """A tile in all its modalities."""
        files = {file.path: file for file in shard.parts}
        sample = self._source.read_kept(entry, pixels)
        groups = {role: self._group(entry, role, files) for role in ("s2", "s1", *self._riders_of(entry))}
        tiles = self._source.tiles if sample else _described_tiles(entry, groups)
        found = IndexedSample(
            key=entry.key,
            arrays=[],
            crs=next(iter(tiles["s2"].rasters.values())).grid.crs,
            level=self._source.level,
            dates={half: tiles[half].date for half in ("s1", "s2") if tiles[half].date},
            lon=tiles["s2"].lon,
            lat=tiles["s2"].lat,
            attributes=sample.attributes if sample else _attributes(entry),
        )
        for role in ("s1", "s2", *self._riders_of(entry)):
            bands = tuple(tiles[role].rasters)
            chunks = groups[role].chunks("bands", 0)
            if sum(chunk.shape[0] for chunk in chunks) != len(bands):
                raise PairError(WRONG_SIZE, groups[role].path, f"it does not have the {len(bands)} bands {bands}")
            units = {"s1": "dB", "s2": "DN"}.get(role) or _UNITS[role]
            found.arrays += arrays_of_chunks(role, bands, chunks, _tar(entry, role), units=units, gsd_m=GSD_M)
        if self.options.riders and _MASK in groups["s2"]:
            found.arrays += self._mask(entry, groups["s2"])
        self._set_offset(found, sample)
        if sample is not None:
            self._read_pixels(entry, found, groups, sample)
        return found

    def _riders_of(self, entry: Pair) -> list[str]:
        return [role for role in _roles(entry) if role in RIDERS] if self.options.riders else []

    def _group(self, entry: Pair, role: str, files: dict[str, SourceFile]) -> StoredGroup:
        """A member as a Zarr group; from memory where its pixels have just been read."""
        path, start, size = _tar(entry, role), *(int(entry.attributes[f"{role}_{what}"]) for what in ("offset", "size"))
        kept = self._source.kept.get(role)

        def read(at: int, count: int) -> bytes:
            return kept[at - start : at - start + count] if kept else read_file(self.tree, files[path], at, count)

        return StoredGroup(read, start, size, f"{path}/{_tile_name(entry)}")

    def _mask(self, entry: Pair, group: StoredGroup) -> list[IndexedArray]:
        chunks = group.chunks(_MASK, *[0] * (len(group.shape(_MASK)) - 2))
        return list(arrays_of_chunks(_MASK, ("CLOUD",), chunks, entry.s2, units="class", gsd_m=GSD_M))

    def _set_offset(self, found: IndexedSample, sample: Sample | None) -> None:
        if sample is not None:
            offset = sample.arrays["s2_10m"].radiometric_offset
            found.is_unproven = self._source.took_unproven
        else:
            assert self.options.unproven_offset is not None
            offset, found.is_unproven = self.options.unproven_offset, True
        for array in found.arrays:
            if array.spec.units == "DN":
                array.radiometric_offset = offset

    def _read_pixels(self, entry: Pair, found: IndexedSample, groups: dict[str, StoredGroup], sample: Sample) -> None:
        roles = {_tar(entry, role): role for role in groups}
        for array in found.arrays:
            group = groups[roles[array.file]]
            self._chunks.fill(array, group.path, group.read_bytes)
            prove(array, sample, group.path)


class _Source(TerraMesh):
    """The source of `sharding.build`, which keeps the members of its last pair."""

    def __init__(self, root: str, options: IndexOptions) -> None:
        super().__init__(root, SourceOptions(s2_level=options.level, riders=options.riders))
        self._unproven = options.unproven_offset
        self._found_level = ""
        self.kept: dict[str, bytes] = {}
        self.tiles: dict[str, Tile] = {}
        self.took_unproven = False

    @property
    def level(self) -> str:
        """Of S2, as the folders have it."""
        self._found_level = self._found_level or self._level()
        return self._found_level

    def read_kept(self, pair: Pair, pixels: bool) -> Sample | None:
        """The sample, with every check that a build makes; None without its pixels."""
        self.kept, self.tiles, self.took_unproven = {}, {}, False
        return self.read(pair) if pixels else None

    def _tile(self, pair: Pair, role: str) -> Tile:
        self.tiles[role] = super()._tile(pair, role)
        return self.tiles[role]

    def _content(self, pair: Pair, role: str) -> tuple[bytes, str]:
        content, path = super()._content(pair, role)
        self.kept[role] = content
        return content, path

    def _offset(self, pair: Pair, s2: Tile, level: str) -> tuple[float, str]:
        try:
            return super()._offset(pair, s2, level)
        except PairError as error:
            if error.reason != OFFSET:
                raise
            if self._unproven is None:
                raise PairError(
                    OFFSET, error.file, f"{error.message}, or say by --unproven-offset what it is"
                ) from None
            self.took_unproven = True
            return self._unproven, f"unproven, --unproven-offset says {self._unproven:g}"


class _Known:
    """The places of one shard's tiles, as `Places` gives them."""

    def __init__(self, places: dict[str, Place]) -> None:
        self._places = places

    def of(self, split: str, tar: str) -> dict[str, Place]:
        return self._places


def _tile_name(entry: Pair) -> str:
    return str(entry.attributes.get("tile", entry.key)) + SUFFIX


def _attributes(entry: Pair) -> dict[str, Any]:
    """As the source gives them, without what needs pixels."""
    split, modality, shard = entry.s1.split("/")
    kept = {name: value for name, value in entry.attributes.items() if name in ("tile", "cloud_cover")}
    return {
        **kept,
        "shard": f"{split}/{shard.removesuffix('.tar')}",
        "s1_product": modality,
        "resampled": True,
        "offset_evidence": "not looked at, --headers-only",
    }


def _described_tiles(entry: Pair, groups: dict[str, StoredGroup]) -> dict[str, Tile]:
    """The tiles of an entry without their pixels; PairError when they are not of one place."""
    tiles = {role: _described(group, _tar(entry, role).split("/")[1]) for role, group in groups.items()}
    for tile in tiles.values():
        _require_same_place(tiles["s2"], tile)
    return tiles


def _described(group: StoredGroup, modality: str) -> Tile:
    """A tile without its pixels: its rasters have the right size and no content."""
    bands, shape = _bands(group, modality), group.shape("bands")
    if len(shape) != 4 or shape[:2] != (1, len(bands)):
        raise PairError(
            WRONG_SIZE, group.path, f"its bands have the shape {shape}, (1, {len(bands)}, height, width) was expected"
        )
    lon, lat = _place(group)
    grid = _grid(group, lon, lat, *shape[2:])
    empty = np.broadcast_to(np.uint8(0), (1, *shape[2:]))
    rasters = {band: Raster(path=group.path, data=empty, grid=grid) for band in bands}
    return Tile(path=group.path, rasters=rasters, cloud_mask=None, lon=lon, lat=lat, date=_date(group))
