"""What a build is going to do: a pure function of the sources' listings and the settings.

All pairs are shuffled by a keyed hash of their keys and cut into shards of about equal length, a series a split.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Final

from sharding.errors import ConfigError, DataError
from sharding.sources.base import Listing, Pair, Refusal, Source
from sharding.splits import SERIES, assign_splits

FORMAT: Final = 1
"""Raised whenever the same pixels would give other bytes, so that no build goes on with shards of another program."""
MAX_LABELS: Final = 64
_CODEC_SHARE: Final = {"none": 1.0, "lz4": 0.75, "zstd": 0.73}
_MIB: Final = 2**20
_SHOWN: Final = 5


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What determines a data set, besides the archives."""

    sources: tuple[tuple[str, str], ...]
    """Name and root of each."""
    splits: str = "official"
    codec: str = "lz4"
    shard_mib: int = 256
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class PlannedShard:
    """A shard to be: its samples in order."""

    name: str
    split: str
    pairs: tuple[tuple[int, Pair], ...]
    """Number of the source in `Settings.sources`, and the pair."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All shards, and what is known before the first pixel is read."""

    settings: Settings
    shards: tuple[PlannedShard, ...]
    vocabulary: tuple[str, ...]
    refused: tuple[Refusal, ...]
    notes: tuple[str, ...]
    num_found: int
    """Pairs and halves found, duplicates and refused ones counted."""
    num_duplicates: int

    @property
    def num_pairs(self) -> int:
        """Pairs to be read."""
        return sum(len(shard.pairs) for shard in self.shards)


def make_plan(settings: Settings, sources: list[Source], listings: list[Listing]) -> Plan:
    """The plan; DataError when there is nothing at all."""
    pairs: dict[str, tuple[int, Pair]] = {}
    duplicates: list[str] = []
    for number, listing in enumerate(listings):
        for pair in listing.pairs:
            if pair.key in pairs:
                duplicates.append(pair.key)
            else:
                pairs[pair.key] = (number, pair)
    refused = [refusal for listing in listings for refusal in listing.refused]
    if not pairs and not refused:
        roots = ", ".join(source.root for source in sources)
        raise DataError(f"no pair of S1 and S2 was found in {roots}; is it the right folder?")
    notes = [note for listing in listings for note in listing.notes]
    if duplicates:
        more = ", …" if len(duplicates) > _SHOWN else ""
        names = ", ".join(duplicates[:_SHOWN]) + more
        notes.append(f"{len(duplicates)} pairs are in two sources and kept once, from the first: {names}")
    shuffled = sorted(pairs.values(), key=lambda item: _rank(item[1].key, settings.seed))
    num_found = len(pairs) + len(duplicates) + len(refused)
    assigned = assign_splits(shuffled, sources, listings, settings.splits)
    by_split: dict[str, list[tuple[int, Pair]]] = {}
    for item, split in zip(shuffled, assigned.splits, strict=True):
        if split is not None:
            by_split.setdefault(split, []).append(item)
    shards = [shard for split in SERIES for shard in _cut(split, by_split.get(split, []), settings)]
    return Plan(
        settings=settings,
        shards=tuple(shards),
        vocabulary=_vocabulary(sources, [pair for _, pair in shuffled]),
        refused=(*refused, *assigned.refused),
        notes=(*notes, *assigned.notes),
        num_found=num_found,
        num_duplicates=len(duplicates),
    )


def digest(*parts: Any) -> str:
    """SHA-256 (hex) of anything that JSON can say."""
    content = json.dumps([FORMAT, *parts], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


def shard_digest(shard: PlannedShard, plan: Plan, layout: dict[str, Any]) -> str:
    """Changes with everything that a shard's bytes depend on, the archive's files included."""
    names = [name for name, _ in plan.settings.sources]
    pairs = [[names[number], asdict(pair)] for number, pair in shard.pairs]
    return digest(shard.name, plan.settings.codec, plan.vocabulary, layout, pairs)


def plan_digest(shard_digests: Iterable[str], refused: Iterable[Refusal]) -> str:
    """Changes with everything that a data set's bytes depend on."""
    return digest(list(shard_digests), [asdict(refusal) for refusal in refused])


def _rank(key: str, seed: int) -> tuple[bytes, str]:
    return hashlib.blake2b(key.encode(), key=seed.to_bytes(8, "little", signed=True), digest_size=16).digest(), key


def _cut(split: str, pairs: list[tuple[int, Pair]], settings: Settings) -> list[PlannedShard]:
    if not pairs:
        return []
    num_bytes = sum(pair.num_bytes for _, pair in pairs) * _CODEC_SHARE[settings.codec]
    num_shards = min(len(pairs), max(1, round(num_bytes / (settings.shard_mib * _MIB))))
    bounds = [len(pairs) * i // num_shards for i in range(num_shards + 1)]
    return [
        PlannedShard(name=f"{split}-{i:06d}", split=split, pairs=tuple(pairs[start:end]))
        for i, (start, end) in enumerate(pairwise(bounds))
    ]


def _vocabulary(sources: list[Source], pairs: list[Pair]) -> tuple[str, ...]:
    """The sources' nomenclatures in their order, then all other labels by name."""
    official = dict.fromkeys(label for source in sources for label in source.vocabulary)
    others = sorted({label for pair in pairs for label in pair.labels} - official.keys())
    labels = (*official, *others)
    if len(labels) > MAX_LABELS:
        raise ConfigError(f"the sources have {len(labels)} different labels, at most {MAX_LABELS} fit; merge some")
    return labels
