"""What a build is going to do: a pure function of the sources' listings and the settings.

All pairs are shuffled by a keyed hash of their keys and cut into shards of about equal length, a series a split. A
plan is columns, not objects: half a million pairs are planned in seconds, and a worker is sent the rows of its shard
alone (`sharding.plan_store`).
"""

import hashlib
import io
import json
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sharding.duplicates import Places, days_of, find_duplicates
from sharding.errors import ConfigError, DataError
from sharding.layout import Layout, Probe, probe
from sharding.manifest import Manifest, ShardSpec
from sharding.s1_storage import store_s1
from sharding.sources.base import Sample, Source, SourceOptions
from sharding.sources.listing import Listing, Pair, Refusal, merge_tables, own_columns, pairs_of
from sharding.splits import (
    CELL_KM,
    GEOGRAPHIC,
    OFFICIAL,
    REFUSED,
    SERIES,
    Assignment,
    degrees_of,
    from_file,
    geographic,
    official,
)

FORMAT: Final = 2
"""Raised whenever the same pixels would give other bytes, so that no build goes on with shards of another program."""
MAX_LABELS: Final = 64
_CODEC_SHARE: Final = {"none": 1.0, "lz4": 0.75, "zstd": 0.73}
_MIB: Final = 2**20
_SHOWN: Final = 5
_PROBED_AT_ONCE: Final = 32
_NEAR: Final = 0.1
"""Footprints are the same when their centres are nearer than this share of a patch's side."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What determines a data set, besides the archives."""

    sources: tuple[tuple[str, str], ...]
    """Name and root of each."""
    splits: str = OFFICIAL
    codec: str = "lz4"
    s1: str = "float32"
    shard_mib: int = 256
    seed: int = 0
    cell_km: float = CELL_KM
    max_days: float | None = None
    options: SourceOptions = field(default_factory=SourceOptions)


@dataclass(frozen=True, kw_only=True)
class PlannedShard:
    """A shard to be: rows `start` to `stop` of the plan's table."""

    name: str
    split: str
    start: int
    stop: int

    @property
    def num_pairs(self) -> int:
        """Pairs to be read."""
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True)
class Existing:
    """What a data set that is to be extended has already."""

    manifest: Manifest
    keys: pa.Array
    lon: npt.NDArray[np.float64]
    lat: npt.NDArray[np.float64]
    s2_date: pa.Array


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All shards, and what is known before they are built."""

    settings: Settings
    table: pa.Table
    """`sharding.sources.listing.merge_tables` in the order of the shards."""
    shards: tuple[PlannedShard, ...]
    layout: Layout
    vocabulary: tuple[str, ...]
    refused: tuple[Refusal, ...]
    notes: tuple[str, ...]
    num_found: int
    """Pairs and halves found, duplicates and refused ones counted."""
    num_duplicates: int
    digest: str
    """Changes with everything that the data set's bytes depend on, but the archive's rasters."""

    @property
    def num_pairs(self) -> int:
        """Pairs to be read."""
        return len(self.table)


def make_plan(
    settings: Settings, sources: list[Source], listings: list[Listing], existing: Existing | None = None
) -> Plan:
    """The plan; DataError when there is nothing at all."""
    refused = [refusal for listing in listings for refusal in listing.refused]
    table = merge_tables([listing.table for listing in listings])
    if not len(table) and not refused:
        roots = ", ".join(source.root for source in sources)
        raise DataError(f"no pair of S1 and S2 was found in {roots}; is it the right folder?")
    num_found = len(table) + len(refused)
    notes = [note for listing in listings for note in listing.notes]
    table, num_repeated = _first_of_each_key(table, existing, notes)
    table = table.take(_shuffled(table["key"], settings.seed))
    probed = _probe(settings, sources, table, existing)
    table, num_duplicates = _first_of_each_place(settings, sources, table, probed, existing, notes)
    assigned = _assign(settings, sources, listings, table, probed, refused)
    order = np.argsort(assigned.codes, kind="stable")
    order = order[assigned.codes[order] != REFUSED]
    names = pa.array(SERIES)
    table = table.take(order)
    table = table.set_column(
        table.column_names.index("split"), "split", names.take(pa.array(assigned.codes[order], pa.int8()))
    )
    shards = tuple(_cut(table, assigned.codes[order], settings, probed, existing))
    vocabulary = _vocabulary(sources, table, existing)
    refused += assigned.refused
    return Plan(
        settings=settings,
        table=table,
        shards=shards,
        layout=probed.layout,
        vocabulary=vocabulary,
        refused=tuple(refused),
        notes=(*notes, *assigned.notes),
        num_found=num_found,
        num_duplicates=num_repeated + num_duplicates,
        digest=_digest(
            settings,
            table,
            shards,
            probed.layout,
            vocabulary,
            refused,
            existing.manifest.fingerprint if existing else "",
        ),
    )


def stored_sample(sample: Sample, settings: Settings) -> tuple[Sample, float]:
    """What goes into a shard, and the worst error in dB that storing S1 so has."""
    return store_s1(sample, settings.s1)


def _first_of_each_key(table: pa.Table, existing: Existing | None, notes: list[str]) -> tuple[pa.Table, int]:
    keys = table["key"].combine_chunks()
    first = np.zeros(len(keys), np.bool_)
    encoded = keys.dictionary_encode()
    first[np.unique(encoded.indices.to_numpy(), return_index=True)[1]] = True
    if existing is not None:
        known = pc.is_in(keys, value_set=existing.keys).to_numpy(zero_copy_only=False)
        if known.any():
            notes.append(f"{int(known.sum())} pairs are in the data set already")
        first &= ~known
        twice = len(first) - int(first.sum()) - int(known.sum())
    else:
        twice = len(first) - int(first.sum())
    if twice:
        repeated = keys.filter(pa.array(~first)).slice(0, _SHOWN).to_pylist()
        more = ", …" if twice > _SHOWN else ""
        notes.append(f"{twice} pairs have a key that came before and are left out: {', '.join(repeated)}{more}")
    return table.filter(pa.array(first)), len(first) - int(first.sum())


def _shuffled(keys: pa.ChunkedArray, seed: int) -> npt.NDArray[np.int64]:
    """The order of a keyed hash (BLAKE2b) of the keys."""
    secret = seed.to_bytes(8, "little", signed=True)
    hashes = b"".join(hashlib.blake2b(key.encode(), key=secret, digest_size=16).digest() for key in keys.to_pylist())
    words = np.frombuffer(hashes, ">u8").reshape(-1, 2)
    order: npt.NDArray[np.int64] = np.lexsort((words[:, 1], words[:, 0]))
    return order


def _probe(settings: Settings, sources: list[Source], table: pa.Table, existing: Existing | None) -> Probe:
    number = table["source"].to_numpy()

    def candidates(source: int) -> Any:
        rows = np.flatnonzero(number == source)
        for start in range(0, len(rows), _PROBED_AT_ONCE):
            yield from pairs_of(own_columns(table.take(rows[start : start + _PROBED_AT_ONCE]), source))

    return probe(
        sources,
        candidates,
        lambda sample: stored_sample(sample, settings)[0],
        existing.manifest if existing else None,
    )


def _first_of_each_place(
    settings: Settings,
    sources: list[Source],
    table: pa.Table,
    probed: Probe,
    existing: Existing | None,
    notes: list[str],
) -> tuple[pa.Table, int]:
    if len(sources) < 2 and existing is None:
        return table, 0
    lon, lat = degrees_of(table, sources, [], required=False)
    source, day = table["source"].to_numpy().astype(np.int64), days_of(table["s2_date"])
    if existing is not None:
        source = np.concatenate([np.full(len(existing.lon), -1), source])
        lon, lat = np.concatenate([existing.lon, lon]), np.concatenate([existing.lat, lat])
        day = np.concatenate([days_of(pa.chunked_array([existing.s2_date])), day])
    places = Places(source=source, lon=lon, lat=lat, day=day)
    repeated = find_duplicates(places, max(_NEAR * probed.side_m, 1.0))[len(lon) - len(table) :]
    count = int(repeated.sum())
    if count:
        names = table["key"].filter(pa.array(repeated)).slice(0, _SHOWN).to_pylist()
        more = ", …" if count > _SHOWN else ""
        notes.append(
            f"{count} pairs show a place on a day that an earlier source shows too and are left out: "
            f"{', '.join(names)}{more}"
        )
    return table.filter(pa.array(~repeated)), count


def _assign(
    settings: Settings,
    sources: list[Source],
    listings: list[Listing],
    table: pa.Table,
    probed: Probe,
    refused: list[Refusal],
) -> Assignment:
    if settings.splits == OFFICIAL:
        return official(table, sources, listings)
    if settings.splits == GEOGRAPHIC:
        unplaced: list[Refusal] = []
        lon, lat = degrees_of(table, sources, unplaced, required=True)
        assigned = geographic(lon, lat, cell_km=settings.cell_km, side_m=probed.side_m)
        return Assignment(codes=assigned.codes, refused=unplaced, notes=assigned.notes)
    return from_file(table, settings.splits)


def _cut(
    table: pa.Table, codes: npt.NDArray[np.int8], settings: Settings, probed: Probe, existing: Existing | None
) -> list[PlannedShard]:
    sizes = np.array(probed.sample_bytes)[table["source"].to_numpy()] * _CODEC_SHARE[settings.codec]
    shards = []
    for code, split in enumerate(SERIES):
        begin, end = (int(i) for i in np.searchsorted(codes, (code, code + 1)))
        if begin == end:
            continue
        num_bytes = float(sizes[begin:end].sum())
        count = min(end - begin, max(1, round(num_bytes / (settings.shard_mib * _MIB))))
        bounds = [begin + (end - begin) * i // count for i in range(count + 1)]
        first = _next_number(existing.manifest.shards if existing else (), split)
        shards += [
            PlannedShard(name=f"{split}-{first + i:06d}", split=split, start=start, stop=stop)
            for i, (start, stop) in enumerate(pairwise(bounds))
        ]
    return shards


def _next_number(shards: tuple[ShardSpec, ...], split: str) -> int:
    numbers = [int(shard.path.rpartition("-")[2].removesuffix(".tar")) for shard in shards if shard.split == split]
    return max(numbers, default=-1) + 1


def _vocabulary(sources: list[Source], table: pa.Table, existing: Existing | None) -> tuple[str, ...]:
    """The data set's own words, the sources' nomenclatures in their order, then all other labels by name."""
    official = dict.fromkeys(existing.manifest.labels if existing else ())
    official |= dict.fromkeys(label for source in sources for label in source.vocabulary)
    used = pc.unique(pc.list_flatten(table["labels"])).to_pylist()
    labels = (*official, *sorted(set(used) - official.keys()))
    if len(labels) > MAX_LABELS:
        raise ConfigError(f"the sources have {len(labels)} different labels, at most {MAX_LABELS} fit; merge some")
    return labels


class _Hash(io.RawIOBase):
    """A file that keeps nothing but a digest of what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, content: Any, /) -> int:
        self.digest.update(content)
        return len(content)


def _digest(
    settings: Settings,
    table: pa.Table,
    shards: tuple[PlannedShard, ...],
    layout: Layout,
    vocabulary: tuple[str, ...],
    refused: list[Refusal],
    base: str,
) -> str:
    # Roots are names of the same files: a data set is the same wherever its archive lies.
    asked = {**asdict(settings), "sources": [name for name, _ in settings.sources]}
    cut = [asdict(shard) for shard in shards]
    described = [FORMAT, asked, cut, asdict(layout), vocabulary, base, [asdict(refusal) for refusal in refused]]
    sink = _Hash()
    sink.write(json.dumps(described, sort_keys=True, separators=(",", ":")).encode())
    with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), table.schema) as stream:
        stream.write_table(table.combine_chunks())
    return sink.digest.hexdigest()


def pairs_of_shard(rows: pa.Table) -> list[tuple[int, Pair]]:
    """The pairs of a shard's rows in order, each with the number of its source."""
    numbers = rows["source"].to_numpy()
    pairs: list[tuple[int, Pair] | None] = [None] * len(rows)
    for number in np.unique(numbers).tolist():
        chosen = np.flatnonzero(numbers == number)
        for place, pair in zip(chosen.tolist(), pairs_of(own_columns(rows.take(chosen), number)), strict=True):
            pairs[place] = (number, pair)
    return [pair for pair in pairs if pair is not None]
