"""SSL4EO-S12 v1.1 indexed as it is published: two files of Zarr in ZIP, their samples joined by id and nearest date."""

from collections import OrderedDict
from typing import Any, Final

from sharding.errors import ConfigError
from sharding.foreign_archive import (
    Archive,
    ArchiveShard,
    ChunkReader,
    Found,
    IndexedSample,
    IndexOptions,
    arrays_of_chunks,
    prove,
    read_file,
)
from sharding.foreign_zarr import Chunk, Read, StoredGroup
from sharding.sources.band_names import band_name
from sharding.sources.base import BANDS, METADATA, MISSING_HALF, WRONG_SIZE, PairError, SourceFile, SourceOptions
from sharding.sources.listing import Listing, Pair, table_of
from sharding.sources.ssl4eo_v1 import place_of
from sharding.sources.ssl4eo_v11 import _S1_BANDS, _S2_BANDS, PIXELS, S2_OFFSET, SSL4EOS12V11
from sharding.sources.ssl4eo_v11_file import grid_of, sample_ids
from sharding.sources.ssl4eo_v11_listing import EXTENSION, Lister, find_files, find_level, parse_half
from sharding.sources.tree import Tree
from sharding.sources.zarr_zip_part import GroupFiles
from sharding.splits import UNLISTED

GSD_M: Final = 10.0
_MASK: Final = "cloud_mask"
_KEPT: Final = 4
"""Open files: those of one shard, and of the one before."""


class IndexedSSL4EO(Archive):
    """Shards are pairs of files; samples come in the order of the file of S2: locations, and of each its timestamps."""

    name = SSL4EOS12V11.name
    version = SSL4EOS12V11.version
    riders = (_MASK,)

    def __init__(self, root: str, options: IndexOptions) -> None:
        super().__init__(root, options)
        if options.unproven_offset is not None:
            raise ConfigError(
                "--unproven-offset is of no use here: the numbers of S2 are raised by 1000 in all of SSL4EO-S12 v1.1"
            )
        self._source_options = SourceOptions(s2_level=options.level, riders=options.riders)
        self._source = SSL4EOS12V11(root, self._source_options)
        self._groups = _Groups(self.tree)
        self._source._groups = self._groups
        self._chunks = ChunkReader()

    def shards(self, found: Found) -> list[ArchiveShard]:
        """The files of both halves by name; what has no partner is refused."""
        self.tree.require()
        listing = _listing()
        level = find_level(self.tree, self.options.level)
        folders: dict[str, dict[str, SourceFile]] = {}
        shards = []
        for files in find_files(self.tree, level, listing):
            both = []
            for path in (files.s2, files.s1):
                folder, _, name = path.rpartition("/")
                if folder not in folders:
                    folders[folder] = self.tree.files(folder)
                both.append(folders[folder][name])
            stem = files.s2.rpartition("/")[2].removesuffix(EXTENSION)
            shards.append(
                ArchiveShard(
                    name=f"{files.s2.split('/')[0]}-{stem}",
                    split=files.split or UNLISTED,
                    parts=tuple(both),
                    content=(files, level),
                )
            )
        found.refused += listing.refused
        found.counts.update(dict.fromkeys(listing.notes, 1))
        return shards

    def entries(self, shard: ArchiveShard, facts: Any, found: Found) -> list[Pair]:
        """The pairs, by ids and dates."""
        listing = _listing()
        pairs = list(Lister(self.tree, self._source_options, listing).pairs([shard.content[0]]))
        found.refused += listing.refused
        # The notes of the lister count within one shard.
        for note in listing.notes:
            words = note.split(" ")
            number = next((i for i, word in enumerate(words) if word.isdigit()), None)
            if number is None:
                found.counts[note] += 1
            else:
                found.counts[" ".join([*words[:number], "{}", *words[number + 1 :]])] += int(words[number])
        return pairs

    def key_of(self, entry: Pair) -> tuple[str, str]:
        """Sample and number of S2's timestamp, and the file of S2."""
        return entry.key, parse_half(entry.s2)[0]

    def read(self, shard: ArchiveShard, entry: Pair, pixels: bool) -> IndexedSample:
        """One timestamp of a location."""
        level = shard.content[1]
        halves = {"s2": parse_half(entry.s2), "s1": parse_half(entry.s1)}
        found = IndexedSample(key=entry.key, arrays=[], level=level)
        for half in ("s1", "s2"):
            path, row, time = halves[half]
            group = self._groups.open(path)
            _require_sample(group, row, entry)
            bands = _bands(group, _S1_BANDS if half == "s1" else _S2_BANDS[level])
            chunks = group.chunks("bands", row, time)
            _require_size(group, chunks, len(bands))
            found.arrays += arrays_of_chunks(
                half, bands, chunks, path, units="dB" if half == "s1" else "DN", gsd_m=GSD_M
            )
        path, row, time = halves["s2"]
        group = self._groups.open(path)
        if self.options.riders and _MASK in group:
            mask = group.chunks(_MASK, row, time)
            _require_size(group, mask, 1)
            found.arrays += arrays_of_chunks(_MASK, ("CLOUD",), mask, path, units="class", gsd_m=GSD_M)
        for array in found.arrays:
            if array.spec.units == "DN":
                array.radiometric_offset = S2_OFFSET
        self._describe(found, entry, group, row)
        if pixels:
            self._read_pixels(found, entry)
        return found

    def _describe(self, found: IndexedSample, entry: Pair, group: StoredGroup, row: int) -> None:
        grid = grid_of(group, row)
        found.crs = grid.crs
        found.dates = {half: date for half, date in (("s1", entry.s1_date), ("s2", entry.s2_date)) if date}
        place = (entry.lon, entry.lat) if entry.lon + entry.lat == entry.lon + entry.lat else place_of(grid, group.path)
        if place is not None:
            found.lon, found.lat = place
        found.attributes = {"location": entry.key.rpartition("_")[0], "resampled": True}
        for half, where in (("s1", entry.s1), ("s2", entry.s2)):
            path, at, time = parse_half(where)
            names = self._groups.open(path)
            if "file_id" in names:
                found.attributes[f"{half}_product"] = str(names.part("file_id", at, time))

    def _read_pixels(self, found: IndexedSample, entry: Pair) -> None:
        for array in found.arrays:
            group = self._groups.open(array.file)
            stored = self._chunks.fill(array, array.file, group.read_bytes)
            if stored and array.spec.name != _MASK:
                group.remember(array.chunk, stored)  # the source reads the same
        sample = self._source.read(entry)
        for array in found.arrays:
            prove(array, sample, array.file)
        found.attributes = sample.attributes


class _Groups(GroupFiles):
    """The files that were used last, by path."""

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree, _KEPT)
        self._stored: OrderedDict[str, tuple[SourceFile, StoredGroup]] = OrderedDict()

    def open(self, path: str) -> StoredGroup:
        """The group at `path`; on a disk read anew when the file has changed."""
        known = self._stored.pop(path, None)
        file = known[0] if known and not self._tree.store.is_local else self._tree.file(path)
        if file is None:
            raise PairError(MISSING_HALF, path, "the file is missing; fetch it again")
        if known is None or known[0] != file:
            known = file, StoredGroup(self._reader(file), 0, file.size, path)
        self._stored[path] = known
        while len(self._stored) > self._kept:
            self._stored.popitem(last=False)
        return known[1]

    def _reader(self, file: SourceFile) -> Read:
        return lambda start, count: read_file(self._tree, file, start, count)


def _listing() -> Listing:
    return Listing(table=table_of(()), has_splits=True)


def _require_sample(group: StoredGroup, row: int, entry: Pair) -> None:
    ids, location = sample_ids(group), entry.key.rpartition("_")[0]
    if row >= len(ids) or ids[row] != location:
        raise PairError(
            METADATA, group.path, f"sample {row} is not {location}: the file has changed since it was listed"
        )


def _bands(group: StoredGroup, expected: tuple[str, ...]) -> tuple[str, ...]:
    """In the order in which they are stored."""
    told = [str(name) for name in group.array("band").tolist()]
    bands = tuple(str(band_name(name)) for name in told)
    if sorted(bands) != sorted(expected):
        raise PairError(BANDS, group.path, f"its bands are {', '.join(told)} where {', '.join(expected)} belong")
    if packed := group.attributes("bands").keys() & {"scale_factor", "add_offset"}:
        raise PairError(
            METADATA, group.path, f"its numbers are packed ({', '.join(sorted(packed))}), so not as published"
        )
    return bands


def _require_size(group: StoredGroup, chunks: tuple[Chunk, ...], planes: int) -> None:
    found = (sum(chunk.shape[0] for chunk in chunks), *chunks[0].shape[1:])
    if found != (planes, PIXELS, PIXELS):
        shape, wanted = ("x".join(map(str, sizes)) for sizes in (found, (planes, PIXELS, PIXELS)))
        raise PairError(WRONG_SIZE, group.path, f"a timestamp is {shape} where {wanted} belong")
