"""SSL4EO-S12 v1.0 as it is published, unpacked: a folder a location and, in it, one a season.

    ROOT/s1/<location>/<S1 product>/VV.tif VH.tif metadata.json
    ROOT/s2a/<location>/<S2 product>/B1.tif … B8A.tif … B12.tif metadata.json     level 2A, 12 bands
    ROOT/s2c/<location>/<S2 product>/…                                            level 1C, B10 too
    ROOT/void_ids.csv, if there

Locations are numbers of seven digits, with gaps. Of each there are up to four S1 and four S2 products; which belong
together the dates alone tell. The halves' coordinates disagree by some pixels although their arrays align (measured:
within a pixel; so do the bands of 10, 20 and 60 m), hence arrays are stacked as they are and each keeps its own.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, Final

from sharding.errors import ConfigError, DataError
from sharding.sources.assemble import Radiometry, arrays_of
from sharding.sources.base import (
    DAYS,
    KNOWN_BROKEN,
    METADATA,
    MISSING_BAND,
    MISSING_HALF,
    OFFSET,
    PairError,
    Sample,
    Source,
    SourceFile,
    SourceOptions,
)
from sharding.sources.listing import Listing, Pair, Refusal, table_of
from sharding.sources.nearest import days_apart, match_nearest
from sharding.sources.raster import Grid, read_grid, read_raster, to_degrees
from sharding.sources.tree import Tree

S2_FOLDERS: Final = {"L2A": "s2a", "L1C": "s2c"}
PIXELS_10M: Final = 264
VOID_IDS: Final = frozenset(
    f"{number:07}"
    for first, last in (
        (124990, 125052),
        (125054, 125055),
        (125058, 125064),
        (125066, 125067),
        (125069, 125076),
        (125079, 125079),
        (125083, 125084),
        (125087, 125087),
        (125089, 125090),
        (125094, 125095),
        (125103, 125104),
        (125112, 125112),
        (125125, 125125),
        (125129, 125129),
        (125140, 125140),
        (179723, 179723),
    )
    for number in range(first, last + 1)
)
"""Locations that the authors have withdrawn (their void_ids.csv); their folders are gaps in a whole archive."""
OFFSET_SINCE: Final = "2022-01-25"
"""From this day on (processing baseline 04.00) products are raised by 1000; the archive has none, it ends in 2021."""

_BASELINE: Final = 4.0
_VOID_FILE: Final = "void_ids.csv"
_METADATA: Final = "metadata.json"
_S1_FILES: Final = {"VV": "VV.tif", "VH": "VH.tif"}
_S2_FILES: Final = {
    level: {band: f"B{band[1:].lstrip('0')}.tif" for band in bands.split()}
    for level, bands in (
        ("L2A", "B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B11 B12"),
        ("L1C", "B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B10 B11 B12"),
    )
}
_LOCATION: Final = re.compile(r"\d{7}", re.ASCII)
_S1_PRODUCT: Final = re.compile(r"S1[A-D]_[A-Z0-9]{2}_GRD[A-Z]_1S[A-Z]{2}_(\d{8}T\d{6})(_[A-Za-z0-9]+)*", re.ASCII)
_S2_PRODUCT: Final = re.compile(r"(\d{8}T\d{6})_\d{8}T\d{6}_T\d{2}[A-Z]{3}", re.ASCII)
_AT_ONCE: Final = 128
_THREADS: Final = 16
_SHOWN: Final = 3


def s1_date(product: str) -> str | None:
    """When the S1 product of this name was taken; None when it is no such name."""
    found = _S1_PRODUCT.fullmatch(product)
    return _iso_time(found[1]) if found else None


def s2_date(product: str) -> str | None:
    """When the S2 product of this name (`20200813T054639_20200813T054952_T43RCP`) was taken; None when it is none."""
    found = _S2_PRODUCT.fullmatch(product)
    return _iso_time(found[1]) if found else None


def _iso_time(text: str) -> str | None:
    try:
        return datetime.fromisoformat(text).isoformat()
    except ValueError:
        return None


class SSL4EOS12V1(Source):
    """The published folders; a pair's key is its location and its S2 product."""

    name = "ssl4eo-s12-v1"
    version = "1.0"
    arrays = ("s1", "s2_10m", "s2_20m", "s2_60m")

    def __init__(self, root: str, options: SourceOptions | None = None) -> None:
        super().__init__(root, options)
        self.tree = Tree(root)

    def list(self) -> Listing:
        """Pairs by the names of the folders; what has no partner is refused."""
        self.tree.require()
        folder = S2_FOLDERS[self._level()]
        listing = Listing(table=table_of(()))
        notes, refused = listing.notes, listing.refused
        s1_ids, s2_ids = (_locations(self.tree, half, notes) for half in ("s1", folder))
        void = (s1_ids | s2_ids) & (VOID_IDS | _more_void_ids(self.tree))
        for location in sorted(void):
            path = f"{folder if location in s2_ids else 's1'}/{location}"
            refused.append(
                _refusal(location, KNOWN_BROKEN, path, "the authors have withdrawn this location; remove it")
            )
        for half, other, alone in (("s1", folder, s1_ids - s2_ids), (folder, "s1", s2_ids - s1_ids)):
            for location in sorted(alone - void):
                message = f"there is no {other}/{location}; fetch it or remove this one"
                refused.append(_refusal(location, MISSING_HALF, f"{half}/{location}", message))
        both = sorted((s1_ids & s2_ids) - void)
        pairs = (
            pair
            for location, s1, s2 in _products(self.tree, both, folder)
            for pair in _pairs(location, s1, s2, self.options.max_days, refused)
        )
        listing.table = table_of(pairs)
        return listing

    def files(self, pair: Pair) -> tuple[SourceFile, ...]:
        """The TIFFs of both products and their metadata.json, if there."""
        found = []
        for folder, names in ((pair.s1, _S1_FILES), (pair.s2, _S2_FILES[_level_of(pair)])):
            present = self.tree.files(folder)
            if not present:
                raise PairError(MISSING_HALF, folder, "the folder is missing or empty; fetch it again")
            missing = [name for name in names.values() if name not in present]
            if missing:
                message = f"{', '.join(missing)} missing in {folder}; fetch the product again"
                raise PairError(MISSING_BAND, f"{folder}/{missing[0]}", message)
            found += [present[name] for name in (*names.values(), _METADATA) if name in present]
        return tuple(found)

    def read(self, pair: Pair) -> Sample:
        """VV, VH and the 12 or 13 bands of S2, each as it came."""
        level = _level_of(pair)
        s1_facts, s2_facts = _facts(self.tree, pair.s1), _facts(self.tree, pair.s2)
        _refuse_offset(s2_facts, f"{pair.s2}/{_METADATA}")
        rasters = {}
        for folder, names in ((pair.s1, _S1_FILES), (pair.s2, _S2_FILES[level])):
            for band, name in names.items():
                rasters[band] = read_raster(self.tree, f"{folder}/{name}", (band,))
        arrays = arrays_of(rasters, Radiometry(), pixels_10m=PIXELS_10M, same_grid=False)
        grid = rasters["B02"].grid
        facts = {
            "location": pair.key.partition("_")[0],
            "s1_product": pair.s1.rpartition("/")[2],
            "s2_product": s2_facts.get("PRODUCT_ID") or pair.s2.rpartition("/")[2],
            "s1_orbit": s1_facts.get("orbitProperties_pass"),
            "s2_baseline": s2_facts.get("PROCESSING_BASELINE"),
            "s2_scene_cloud_percent": s2_facts.get("CLOUDY_PIXEL_PERCENTAGE"),
        }
        return Sample(
            key=pair.key,
            source=self.name,
            arrays=arrays,
            crs=grid.crs,
            level=level,
            dates={name: date for name, date in (("s1", pair.s1_date), ("s2", pair.s2_date)) if date},
            labels=pair.labels,
            split=pair.split,
            attributes={name: value for name, value in facts.items() if value is not None},
            place=place_of(grid, f"{pair.s2}/{_S2_FILES[level]['B02']}"),
        )

    def centre(self, pair: Pair) -> tuple[str, float, float] | None:
        """From the header of S2's B2; the S1 half's coordinates are some pixels off."""
        return read_grid(self.tree, f"{pair.s2}/{_S2_FILES[_level_of(pair)]['B02']}", ("B02",)).centre

    def _level(self) -> str:
        """The level to be read; ConfigError unless both halves are there as folders."""
        wanted = self.options.s2_level
        if wanted and wanted not in S2_FOLDERS:
            raise ConfigError(f"'{wanted}' is no level of SSL4EO-S12; there are {', '.join(S2_FOLDERS)}")
        present = self.tree.folders()
        levels = [level for level, folder in S2_FOLDERS.items() if folder in present and wanted in ("", level)]
        if "s1" in present and levels:
            return levels[0]
        needed = S2_FOLDERS[wanted] if wanted else " or ".join(S2_FOLDERS.values())
        lacking = " and ".join(name for name, there in (("s1", "s1" in present), (needed, bool(levels))) if not there)
        packed = [name for name in self.tree.files() if ".tar" in name]
        if packed:
            raise ConfigError(
                f"{self.root} has no folder {lacking}; its archives ({_shown(packed)}) are not read as they are: "
                "unpack them there, parts as in `cat s1_grd.tar.gz.part* | tar xz`"
            )
        raise ConfigError(
            f"{self.root} has no folder {lacking}; give --root the folder that holds s1 and {needed} of SSL4EO-S12 v1.0"
        )


def _locations(tree: Tree, half: str, notes: list[str]) -> set[str]:
    names = tree.folders(half)
    strange = [name for name in names if not _LOCATION.fullmatch(name)]
    if strange:
        notes.append(
            f"{len(strange)} folders in {half} are no locations (seven digits) and are left out: {_shown(strange)}"
        )
    return set(names).difference(strange)


def _more_void_ids(tree: Tree) -> set[str]:
    if _VOID_FILE not in tree.files():
        return set()
    lines = tree.read(_VOID_FILE).decode("utf-8", "replace").split()
    for line in lines:
        if not (line.isascii() and line.isdigit()):
            raise DataError(f"{tree.store.name(_VOID_FILE)} has '{line:.40}' where a location's number belongs")
    return {line.zfill(7) for line in lines}


def _products(tree: Tree, locations: list[str], s2: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Each location with the paths of its S1 and S2 products.

    Folders are listed by several threads, for the disk of a cluster is quick only when asked for many at once.
    """

    def listed(some: list[str]) -> list[tuple[str, list[str], list[str]]]:
        return [(location, paths("s1", location), paths(s2, location)) for location in some]

    def paths(half: str, location: str) -> list[str]:
        return [f"{half}/{location}/{name}" for name in tree.folders(f"{half}/{location}")]

    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(locations), _AT_ONCE * _THREADS):
            some = locations[start : start + _AT_ONCE * _THREADS]
            chunks = [some[i : i + _AT_ONCE] for i in range(0, len(some), _AT_ONCE)]
            yield from itertools.chain.from_iterable(pool.map(listed, chunks))


def _pairs(
    location: str, s1: list[str], s2: list[str], max_days: float | None, refused: list[Refusal]
) -> Iterator[Pair]:
    """The pairs of one location by nearest dates; products without a partner are refused."""
    s1_dates, s2_dates = _dates(s1, s1_date, refused), _dates(s2, s2_date, refused)
    for path, date in list(s2_dates.items()):
        if date >= OFFSET_SINCE:
            message = f"products since {OFFSET_SINCE} may be raised by 1000 DN, those of v1.0 never are; remove it"
            refused.append(_refusal(_key(location, path), OFFSET, path, message))
            del s2_dates[path]
    s1_paths, s2_paths = list(s1_dates), list(s2_dates)
    matches = match_nearest(list(s2_dates.values()), list(s1_dates.values()), None)
    for i, j in matches:
        path, partner = s2_paths[i], s1_paths[j]
        if max_days is not None and (days := days_apart(s2_dates[path], s1_dates[partner])) > max_days:
            message = f"the nearest S1, {partner}, is {days:.1f} days away, at most {max_days:g} are allowed"
            refused.append(_refusal(_key(location, path), DAYS, path, message))
            continue
        yield Pair(
            key=_key(location, path),
            s1=partner,
            s2=path,
            s1_date=s1_dates[partner],
            s2_date=s2_dates[path],
        )
    matched = {s2_paths[i] for i, _ in matches} | {s1_paths[j] for _, j in matches}
    for path in (path for path in (*s1_paths, *s2_paths) if path not in matched):
        message = f"no product of the other satellite is left for it at {location}; fetch that or remove this"
        refused.append(_refusal(_key(location, path), MISSING_HALF, path, message))


def _dates(paths: list[str], date_of: Callable[[str], str | None], refused: list[Refusal]) -> dict[str, str]:
    """Date by path; what is named unlike a product is refused."""
    dates = {}
    for path in paths:
        location, name = path.split("/")[-2:]
        if date := date_of(name):
            dates[path] = date
        else:
            message = "the folder's name is that of no product, so its date is unknown; name it as it was published"
            refused.append(_refusal(location, METADATA, path, message))
    return dates


def _key(location: str, path: str) -> str:
    return f"{location}_{path.rpartition('/')[2]}"


def _level_of(pair: Pair) -> str:
    return next(level for level, folder in S2_FOLDERS.items() if pair.s2.startswith(f"{folder}/"))


def _facts(tree: Tree, product: str) -> dict[str, Any]:
    """What metadata.json says of a product; empty without one."""
    path = f"{product}/{_METADATA}"
    try:
        content = tree.read(path)
    except DataError:
        return {}
    try:
        facts = json.loads(content)
    except ValueError as error:
        raise PairError(METADATA, path, f"it cannot be read as JSON ({error}); fetch it again") from error
    if not isinstance(facts, dict):
        raise PairError(METADATA, path, "it is no JSON object; fetch it again")
    return facts


def _refuse_offset(facts: dict[str, Any], path: str) -> None:
    baseline = str(facts.get("PROCESSING_BASELINE", ""))
    try:
        raised = bool(baseline) and float(baseline) >= _BASELINE
    except ValueError as error:
        raise PairError(METADATA, path, f"'{baseline:.40}' is no processing baseline; fetch it again") from error
    if raised:
        message = f"baseline {baseline} is raised by 1000 DN, products of v1.0 never are; leave the pair out"
        raise PairError(OFFSET, path, message)


def place_of(grid: Grid, path: str) -> tuple[float, float] | None:
    """Longitude and latitude of a grid's middle; None when it has no coordinates, PairError when they are no place."""
    if grid.centre is None:
        return None
    crs, x, y = grid.centre
    try:
        return to_degrees(crs, [(x, y)])[0]
    except ValueError as error:
        raise PairError(METADATA, path, f"its centre {x:.10g} {y:.10g} in {crs:.40} is no place ({error})") from error


def _shown(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _refusal(key: str, reason: str, file: str, message: str) -> Refusal:
    return Refusal(key=key, source=SSL4EOS12V1.name, reason=reason, file=file, message=message)
