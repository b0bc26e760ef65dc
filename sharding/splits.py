"""Which pair goes into which split: the source's own, by cells of the earth, or by a file.

Pairs that a source with splits leaves out (BigEarthNet's authors do so with snow and clouds) make a split of their own,
`unlisted`: they are kept and counted, and not trained on.
"""

import csv
import hashlib
import io
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from sharding.errors import ConfigError, DataError
from sharding.sources.base import METADATA, Listing, Pair, PairError, Refusal, Source
from sharding.sources.pair_table import normalise_split

SPLITS: Final = ("train", "val", "test")
UNLISTED: Final = "unlisted"
SERIES: Final = (*SPLITS, UNLISTED)
"""Every split that a data set may have, in the order of its shards."""
OFFICIAL: Final = "official"
GEOGRAPHIC: Final = "geographic"
CELL_KM: Final = 25.0
_KM_PER_DEGREE: Final = 111.32
_SHARES: Final = (("train", 0.8), ("val", 0.9), ("test", 1.0))
_SHOWN: Final = 5


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Where the pairs go."""

    splits: list[str | None]
    """One a pair, in the order given; None when the pair is refused."""
    refused: list[Refusal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def assign_splits(
    pairs: list[tuple[int, Pair]], sources: list[Source], listings: list[Listing], rule: str
) -> Assignment:
    """The split of each pair, which comes with the number of its source."""
    if rule == OFFICIAL:
        return _official(pairs, sources, listings)
    if rule == GEOGRAPHIC:
        return _geographic([(sources[number], pair) for number, pair in pairs])
    listed = _read_table(rule)
    unlisted = [pair.key for _, pair in pairs if pair.key not in listed]
    if unlisted:
        more = ", …" if len(unlisted) > _SHOWN else ""
        raise DataError(
            f"{rule} has no row for {len(unlisted)} of {len(pairs)} keys ({', '.join(unlisted[:_SHOWN])}{more})"
        )
    return Assignment(splits=[listed[pair.key] for _, pair in pairs])


def cell(lon: float, lat: float) -> tuple[int, int]:
    """Row and column of the cell of about 25 km by 25 km that a place lies in; rows of one height, the world over."""
    height = CELL_KM / _KM_PER_DEGREE
    row = math.floor(lat / height)
    circumference_km = 360 * _KM_PER_DEGREE * math.cos(math.radians((row + 0.5) * height))
    columns = max(1, round(circumference_km / CELL_KM))
    return row, math.floor((lon + 180) % 360 / 360 * columns)


def split_of_cell(row: int, column: int) -> str:
    """80 % of all cells are train, 10 % val, 10 % test; the seed has no say, so a test cell stays one."""
    digest = hashlib.blake2b(f"{row},{column}".encode(), digest_size=8).digest()
    share = int.from_bytes(digest, "little") / 2**64
    return next(split for split, bound in _SHARES if share < bound)


def _official(pairs: list[tuple[int, Pair]], sources: list[Source], listings: list[Listing]) -> Assignment:
    splits: list[str | None] = []
    without: Counter[int] = Counter()
    for number, pair in pairs:
        split = normalise_split(pair.split or "")
        if split is None:
            without[number] += 1
            split = UNLISTED if listings[number].has_splits else "train"
        splits.append(split)
    totals = Counter(number for number, _ in pairs)
    notes = []
    for number, count in sorted(without.items()):
        root = sources[number].root
        if listings[number].has_splits:
            notes.append(
                f"{count} of {totals[number]} pairs of {root} are in none of its splits: they are kept in the split "
                f"{UNLISTED}, which is not trained on"
            )
        else:
            notes.append(f"{root} has no splits, so all of its {count} pairs go to train")
    return Assignment(splits=splits, notes=notes)


def _geographic(pairs: list[tuple[Source, Pair]]) -> Assignment:
    from sharding.sources.raster import to_degrees

    splits: list[str | None] = [None] * len(pairs)
    refused: list[Refusal] = []
    by_crs: dict[str, list[tuple[int, tuple[float, float]]]] = {}
    for i, (source, pair) in enumerate(pairs):
        try:
            place = source.centre(pair)
        except PairError as error:
            refused.append(_refusal(pair, error))
            continue
        if place is None:
            raise DataError(
                f"{pair.key} of {source.root} has no coordinates, so --splits geographic cannot place it; "
                "use --splits official or a FILE"
            )
        by_crs.setdefault(place[0], []).append((i, (place[1], place[2])))
    for crs, members in sorted(by_crs.items()):
        try:
            groups = [(members, to_degrees(crs, [point for _, point in members]))]
        except ValueError:  # one bad place fails all of its CRS, so each is asked for alone
            groups = []
            for i, point in members:
                try:
                    groups.append(([(i, point)], to_degrees(crs, [point])))
                except ValueError as error:
                    pair = pairs[i][1]
                    message = f"its centre {point[0]:.10g} {point[1]:.10g} in {crs:.40} is no place on earth ({error})"
                    refused.append(_refusal(pair, PairError(METADATA, pair.s2, message)))
        for group, degrees in groups:
            for (i, _), (lon, lat) in zip(group, degrees, strict=True):
                splits[i] = split_of_cell(*cell(lon, lat))
    return Assignment(splits=splits, refused=refused)


def _refusal(pair: Pair, error: PairError) -> Refusal:
    return Refusal(key=pair.key, source=pair.source, reason=error.reason, file=error.file, message=error.message)


def _read_table(path: str) -> dict[str, str]:
    """A CSV of `key,split`, with or without a header."""
    import fsspec

    try:
        with fsspec.open(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ConfigError(f"there is no {path}; give --splits official, geographic, or a CSV of key,split") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); save it as a CSV in UTF-8") from error
    listed: dict[str, str] = {}
    reader = csv.reader(io.StringIO(text))
    for row in reader:
        cells = [value.strip() for value in row]
        if not any(cells) or (reader.line_num == 1 and cells[:2] == ["key", "split"]):
            continue
        try:
            if len(cells) != 2 or not cells[0]:
                raise ValueError(f"'{','.join(row)}' is not key,split")
            split = normalise_split(cells[1])
            if split is None:
                raise ValueError(f"'{cells[0]}' has no split; write train, val or test")
            if listed.setdefault(cells[0], split) != split:
                raise ValueError(f"'{cells[0]}' is in split {listed[cells[0]]} already")
        except ValueError as error:
            raise DataError(f"{path}, row {reader.line_num}: {error}") from error
    return listed
