"""The one shape, type and unit that each array has in a data set, taken from a few of its samples."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Final

from sharding.bands import ARRAY_BANDS, array_of
from sharding.manifest import ArraySpec
from sharding.plan import Plan
from sharding.sources.base import MIXED, PairError, Sample, Source, StoredArray

_VOTERS: Final = 5


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


Layout = dict[str, ArrayLayout]


def find_layout(plan: Plan, sources: list[Source]) -> Layout:
    """The layout that most of the first few readable samples have, in the order of the plan."""
    pairs = [item for shard in plan.shards for item in shard.pairs]
    wanted = {array_of(band) for _, pair in pairs for band in pair.bands}
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
        for name, array in sample.arrays.items():
            votes[name][_shared(array)] += 1
            keys.setdefault((name, *_shared(array)), pair.key)
    layout = {}
    for name, counter in votes.items():
        if counter:
            height, width, dtype, units, gsd_m, scale = shared = counter.most_common(1)[0][0]
            layout[name] = ArrayLayout(
                height=height, width=width, dtype=dtype, units=units, gsd_m=gsd_m, scale=scale, key=keys[name, *shared]
            )
    return layout


def require_layout(sample: Sample, layout: Layout, file: str) -> None:
    """PairError that names both samples when an array is not as in the rest of the data set."""
    for name, array in sample.arrays.items():
        shared = layout[name]
        expected = (shared.height, shared.width, shared.dtype, shared.units, shared.gsd_m, shared.scale)
        if _shared(array) != expected:
            raise PairError(
                MIXED,
                file,
                f"{name} of {sample.key} is {_described(_shared(array))}, of {shared.key} {_described(expected)}; "
                "one data set holds one kind, build another from the rest",
            )


def _shared(array: StoredArray) -> tuple[Any, ...]:
    height, width = array.data.shape[1:]
    return height, width, array.data.dtype.name, array.units, array.gsd_m, array.scale


def _described(shared: tuple[Any, ...]) -> str:
    height, width, dtype, units, gsd_m, _ = shared
    return f"{height}x{width} {dtype} {units} at {gsd_m:g} m"
