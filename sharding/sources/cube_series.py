"""A cube, opened: the bands of S1 and S2 with their dates, what rides along, and the patches that it is cut into."""

from dataclasses import dataclass, field
from itertools import chain
from typing import Final

from sharding.bands import S1_BANDS, S2_BANDS
from sharding.sources.assemble import Radiometry
from sharding.sources.base import BANDS, METADATA, MISSING_HALF, PairError, SourceOptions
from sharding.sources.cube_layers import MASKS, Layer, layers_of
from sharding.sources.cube_radiometry import S1Coding, level_of, offsets_of, radiometry_of, s1_coding
from sharding.sources.cube_store import open_cube
from sharding.sources.cube_tiles import Tiles, tiles_of
from sharding.sources.eo_bands import own_gsd_m
from sharding.sources.pair_table import normalise_split
from sharding.sources.tree import Tree

_MASK_ROLES: Final = tuple(dict.fromkeys(MASKS.values()))
_OFFSET_SINCE: Final = "2022-01-25"
"""Since then ESA adds 1000 to the digital numbers of S2."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stack:
    """Bands of S1 over the same dates: one orbit, or all."""

    times: tuple[str, ...]
    bands: dict[str, Layer]


@dataclass(kw_only=True, eq=False)
class Series:
    """All that the files of a cube hold of S1 and S2."""

    files: tuple[str, ...]
    s1: tuple[Stack, ...]
    s2: dict[str, Layer]
    s2_dates: tuple[str, ...]
    """At which all bands of S2 are there, in order."""
    mask: Layer | None
    mask_rides: bool
    """Whether the mask goes into the samples: as classes, and if riders are asked for."""
    still: dict[str, Layer]
    """DEM and LABEL, if asked for."""
    coding: S1Coding
    radiometry: Radiometry
    offsets: dict[str, float]
    level: str
    split: str | None
    tiles: Tiles
    notes: list[str] = field(default_factory=list)

    @property
    def s1_dates(self) -> tuple[str, ...]:
        """Of all stacks, each once, in order."""
        return tuple(sorted(set(chain.from_iterable(stack.times for stack in self.s1))))

    def stack(self, date: str) -> Stack:
        """The first stack that has a date; KeyError when none has."""
        for stack in self.s1:
            if date in stack.times:
                return stack
        raise KeyError(date)


def open_series(tree: Tree, files: tuple[str, ...], options: SourceOptions) -> Series | None:
    """The cube made of `files`; None when they hold neither S1 nor S2; PairError when it cannot be used."""
    layers: list[Layer] = []
    for path in files:
        groups = open_cube(tree, path)
        try:
            layers += layers_of(groups)
        except ValueError as error:
            raise PairError(METADATA, path, str(error)) from error
    s1 = [layer for band in S1_BANDS for layer in layers if layer.role == band and layer.time_dim]
    s2 = [layer for band in S2_BANDS for layer in layers if layer.role == band and layer.time_dim]
    if not s1 and not s2:
        return None
    for half, found in (("S1", s1), ("S2", s2)):
        if not found:
            names = ", ".join(sorted({layer.variable.name for layer in (*s1, *s2)}))
            raise PairError(
                MISSING_HALF, files[0], f"it has no {half} over time (only {names}); put the other half beside it"
            )
    try:
        return _series(files, layers, s1, _by_band(s2, files), options)
    except ValueError as error:
        raise PairError(METADATA, files[0], str(error)) from error


def _series(
    files: tuple[str, ...], layers: list[Layer], s1: list[Layer], s2: dict[str, Layer], options: SourceOptions
) -> Series:
    stacks = _stacks(s1, files)
    coding = s1_coding(s1)
    masks = [layer for layer in layers if layer.time_dim and layer.role in _MASK_ROLES]
    mask = min(masks, key=lambda layer: _MASK_ROLES.index(layer.role), default=None)
    still = {layer.role: layer for layer in layers if layer.role in ("DEM", "LABEL")} if options.riders else {}
    if "LABEL" in still and not _is_classes(still["LABEL"]):
        name = still["LABEL"].variable.name
        raise ValueError(f"the classes of {name} are {still['LABEL'].variable.dtype}; write them as whole numbers")
    dates, notes = _common_dates([*s2.values(), *([mask] if mask else [])])
    offsets, told = offsets_of(s2, dates)
    if not told and dates and dates[-1] >= _OFFSET_SINCE:
        notes.append(
            f"{files[0]} has S2 since {_OFFSET_SINCE} and does not say whether its numbers carry ESA's +1000; taken as "
            "free of it, unless the attribute s2_offset says -1000"
        )
    placed = {layer.variable.name: layer.grid for layer in (*s2.values(), *s1, *still.values())}
    if mask:
        placed[mask.variable.name] = mask.grid
    tiles = tiles_of(placed, options.patch_pixels, finest_gsd_m=min(own_gsd_m(band) for band in s2))
    if not tiles.crs:
        notes.append(f"{files[0]} says no CRS, so its patches have no place on earth")
    split = next(iter(s2.values())).group.attribute("split")
    return Series(
        files=files,
        s1=stacks,
        s2=s2,
        s2_dates=dates,
        mask=mask,
        mask_rides=options.riders and mask is not None and mask.role != "CLP" and _is_classes(mask),
        still=still,
        coding=coding,
        radiometry=radiometry_of(coding, s2),
        offsets=offsets,
        level=level_of(s2, options.s2_level),
        split=normalise_split(str(split or "")),
        tiles=tiles,
        notes=notes,
    )


def _by_band(layers: list[Layer], files: tuple[str, ...]) -> dict[str, Layer]:
    bands: dict[str, Layer] = {}
    for layer in layers:
        known = bands.get(layer.role)
        if known is not None:
            raise PairError(BANDS, files[0], f"{_where(known)} and {_where(layer)} are both {layer.role}; keep one")
        bands[layer.role] = layer
    return bands


def _stacks(layers: list[Layer], files: tuple[str, ...]) -> tuple[Stack, ...]:
    """Bands with the same dates and grid belong together; those of other orbits are stacks of their own."""
    stacks: list[tuple[Stack, list[Layer]]] = []
    for layer in layers:
        for stack, members in stacks:
            if stack.times == layer.times and members[0].grid == layer.grid:
                if layer.role in stack.bands:
                    pair = f"{_where(stack.bands[layer.role])} and {_where(layer)}"
                    raise PairError(BANDS, files[0], f"{pair} are both {layer.role} of the same dates; keep one")
                stack.bands[layer.role] = layer
                break
        else:
            stacks.append((Stack(times=layer.times, bands={layer.role: layer}), [layer]))
    return tuple(stack for stack, _ in stacks)


def _is_classes(layer: Layer) -> bool:
    return layer.variable.dtype.kind in "iub"


def _where(layer: Layer) -> str:
    return f"{layer.variable.path}:{layer.variable.name}"


def _common_dates(layers: list[Layer]) -> tuple[tuple[str, ...], list[str]]:
    """The dates at which everything of S2 is there, and what is left out."""
    common = set(layers[0].times).intersection(*(layer.times for layer in layers[1:]))
    every = set(chain.from_iterable(layer.times for layer in layers))
    path = layers[0].variable.path
    notes = []
    if every - common:
        notes.append(f"{len(every - common)} dates of {path} lack a band of S2 or its cloud mask and are left out")
    twice = len(layers[0].times) - len(set(layers[0].times))
    if twice:
        notes.append(f"{twice} dates of {path} are there twice; the first of each is taken")
    return tuple(sorted(common)), notes
