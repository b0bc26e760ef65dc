"""The one level of S2 in a data set, and the one shape, type and unit of each array, taken from a few samples."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from sharding.bands import ARRAY_BANDS
from sharding.manifest import ArraySpec, Manifest
from sharding.sources.base import MIXED, PairError, Sample, Source, StoredArray
from sharding.sources.listing import Pair

_VOTERS: Final = 5
_MAX_PROBES: Final = 64
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
    nodata: float | None
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


@dataclass(kw_only=True)
class _Votes:
    levels: Counter[str] = field(default_factory=Counter)
    arrays: dict[str, Counter[tuple[Any, ...]]] = field(default_factory=dict)
    keys: dict[tuple[Any, ...], str] = field(default_factory=dict)

    def add(self, sample: Sample) -> None:
        self.levels[sample.level] += 1
        self.keys.setdefault((sample.level,), sample.key)
        for name, array in sample.arrays.items():
            self.arrays.setdefault(name, Counter())[_shared(array)] += 1
            self.keys.setdefault((name, *_shared(array)), sample.key)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a few samples of each source tell of all."""

    layout: Layout
    sample_bytes: tuple[float, ...]
    """Of each source: uncompressed size of a sample, on average; shards are cut by it."""
    side_m: float
    """Side of the largest patch."""


def probe(
    sources: list[Source],
    candidates: Callable[[int], Iterator[Pair]],
    stored: Callable[[Sample], Sample],
    base: Manifest | None = None,
) -> Probe:
    """Read the first few pairs that `candidates(number of the source)` gives.

    `stored` makes of a sample what goes into a shard. An array or level that `base`, the data set to be extended, has
    already is as there; every other one is as most of the samples have it. Sources are asked for more
    samples, up to 64, while an array that they may have was not seen.
    """
    votes = _Votes()
    sizes, sides = [], []
    for number, source in enumerate(sources):
        seen: Counter[str] = Counter()
        found: list[int] = []
        for tries, pair in enumerate(candidates(number), start=1):
            try:
                sample = stored(source.read(pair))
            except PairError:
                continue  # it is counted where its shard is built
            votes.add(sample)
            seen.update(list(sample.arrays))
            found.append(sum(array.data.nbytes for array in sample.arrays.values()))
            sides += [array.data.shape[1] * array.gsd_m for array in sample.arrays.values()]
            if all(seen[name] >= _VOTERS for name in source.arrays) or tries >= _MAX_PROBES:
                break
        sizes.append(sum(found) / max(len(found), 1))
    return Probe(layout=_elect(votes, base), sample_bytes=tuple(sizes), side_m=max(sides, default=0.0))


def _elect(votes: _Votes, base: Manifest | None) -> Layout:
    known = {spec.name: spec for spec in base.arrays} if base else {}
    arrays = {}
    for name in ARRAY_BANDS:
        if name in known:
            spec = {k: v for k, v in asdict(known[name]).items() if k not in ("name", "bands")}
            arrays[name] = ArrayLayout(**spec, key="the data set")
        elif name in votes.arrays:
            shared = votes.arrays[name].most_common(1)[0][0]
            arrays[name] = ArrayLayout(**dict(zip(_SHARED, shared, strict=True)), key=votes.keys[name, *shared])
    if base and len(levels := {level for source in base.sources for level in source.levels}) == 1:
        return Layout(arrays=arrays, level=levels.pop(), level_key="the data set")
    if not votes.levels:
        return Layout(arrays=arrays)
    level = votes.levels.most_common(1)[0][0]
    return Layout(arrays=arrays, level=level, level_key=votes.keys[level,])


def require_layout(sample: Sample, layout: Layout, file: str) -> None:
    """PairError that names both samples when the level or an array is not as in the rest of the data set."""
    if sample.level != layout.level:
        raise PairError(
            MIXED,
            file,
            f"S2 of {sample.key} is {sample.level}, of {layout.level_key} {layout.level}; {_ONE_KIND}",
        )
    for name, array in sample.arrays.items():
        if name not in layout.arrays:
            raise PairError(
                MIXED,
                file,
                f"{sample.key} has the array {name}, which none of the first {_MAX_PROBES} pairs of a source has; "
                f"{_ONE_KIND}",
            )
        shared = layout.arrays[name]
        expected = tuple(getattr(shared, field) for field in _SHARED)
        if _shared(array) != expected:
            raise PairError(
                MIXED,
                file,
                f"{name} of {sample.key} is {_described(_shared(array))}, of {shared.key} {_described(expected)}; "
                f"{_ONE_KIND}",
            )


_SHARED: Final = ("height", "width", "dtype", "units", "gsd_m", "scale", "nodata")


def _shared(array: StoredArray) -> tuple[Any, ...]:
    height, width = array.data.shape[1:]
    return height, width, array.data.dtype.name, array.units, array.gsd_m, array.scale, array.nodata


def _described(shared: tuple[Any, ...]) -> str:
    height, width, dtype, units, gsd_m, scale, nodata = shared
    more = f", scale {scale:g}" if scale != 1.0 else ""
    more += f", nodata {nodata:g}" if nodata is not None else ""
    return f"{height}x{width} {dtype} {units} at {gsd_m:g} m{more}"
