"""The one level of S2 in a data set, and the one shape, type and unit of each array, taken from a few samples."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Final

from sharding.bands import ARRAY_BANDS, array_of
from sharding.manifest import ArraySpec
from sharding.plan import Plan
from sharding.sources.base import MIXED, PairError, Sample, Source, StoredArray

_VOTERS: Final = 5
_ONE_KIND: Final = "one data set holds one kind, build another from the rest"


@dataclass(frozen=True, kw_only=True)
class ArrayLayout:
    """What all samples of a data set share in one array."""

    height: int
    width: int
    dtype: str
    units: str
    gsd_m: float
    scale: float
    key: str
    """A sample that has it, for messages."""

    def spec(self, name: str, bands: tuple[str, ...]) -> ArraySpec:
        """As the manifest keeps it."""
        shared = {k: v for k, v in asdict(self).items() if k != "key"}
        return ArraySpec(name=name, bands=bands, **shared)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What all samples of a data set share."""

    arrays: dict[str, ArrayLayout]
    """By name, in storage order."""
    level: str = ""
    """Processing level of S2: top-of-atmosphere (L1C) and surface (L2A) reflectance have other statistics."""
    level_key: str = ""
    """A sample of this level, for messages."""


def find_layout(plan: Plan, sources: list[Source]) -> Layout:
    """The layout that most of the first few readable samples have, in the order of the plan."""
    pairs = [item for shard in plan.shards for item in shard.pairs]
    wanted = {array_of(band) for _, pair in pairs for band in pair.bands}
    levels: Counter[str] = Counter()
    votes: dict[str, Counter[tuple[Any, ...]]] = {name: Counter() for name in ARRAY_BANDS if name in wanted}
    keys: dict[tuple[Any, ...], str] = {}
    for number, pair in pairs:
        open_votes = {name for name, counter in votes.items() if counter.total() < _VOTERS}
        if not open_votes:
            break
        if not open_votes & {array_of(band) for band in pair.bands}:
            continue
        try:
            sample = sources[number].read(pair)
        except PairError:
            continue  # it is counted where its shard is built
        levels[sample.level] += 1
        keys.setdefault((sample.level,), pair.key)
        for name, array in sample.arrays.items():
            votes[name][_shared(array)] += 1
            keys.setdefault((name, *_shared(array)), pair.key)
    arrays = {}
    for name, counter in votes.items():
        if counter:
            height, width, dtype, units, gsd_m, scale = shared = counter.most_common(1)[0][0]
            arrays[name] = ArrayLayout(
                height=height, width=width, dtype=dtype, units=units, gsd_m=gsd_m, scale=scale, key=keys[name, *shared]
            )
    if not levels:
        return Layout(arrays=arrays)
    level = levels.most_common(1)[0][0]
    return Layout(arrays=arrays, level=level, level_key=keys[level,])


def require_layout(sample: Sample, layout: Layout, file: str) -> None:
    """PairError that names both samples when the level or an array is not as in the rest of the data set."""
    if sample.level != layout.level:
        raise PairError(
            MIXED,
            file,
            f"S2 of {sample.key} is {sample.level}, of {layout.level_key} {layout.level}; {_ONE_KIND}",
        )
    for name, array in sample.arrays.items():
        shared = layout.arrays[name]
        expected = (shared.height, shared.width, shared.dtype, shared.units, shared.gsd_m, shared.scale)
        if _shared(array) != expected:
            raise PairError(
                MIXED,
                file,
                f"{name} of {sample.key} is {_described(_shared(array))}, of {shared.key} {_described(expected)}; "
                f"{_ONE_KIND}",
            )


def _shared(array: StoredArray) -> tuple[Any, ...]:
    height, width = array.data.shape[1:]
    return height, width, array.data.dtype.name, array.units, array.gsd_m, array.scale


def _described(shared: tuple[Any, ...]) -> str:
    height, width, dtype, units, gsd_m, _ = shared
    return f"{height}x{width} {dtype} {units} at {gsd_m:g} m"
