"""Which pair goes into which split: the source's own, by cells of the earth, or by a file."""

import csv
import hashlib
import io
import math
from typing import Final

from sharding.errors import ConfigError, DataError
from sharding.sources.base import Pair, Source
from sharding.sources.pair_table import normalise_split

SPLITS: Final = ("train", "val", "test")
OFFICIAL: Final = "official"
GEOGRAPHIC: Final = "geographic"
CELL_KM: Final = 25.0
_KM_PER_DEGREE: Final = 111.32
_SHARES: Final = (("train", 0.8), ("val", 0.9), ("test", 1.0))
_SHOWN: Final = 5


def assign_splits(pairs: list[tuple[Source, Pair]], rule: str) -> tuple[list[str], int]:
    """The split of each pair, and how many went to train for want of an official one."""
    if rule == OFFICIAL:
        named = [normalise_split(pair.split or "") for _, pair in pairs]
        return [split or "train" for split in named], sum(split is None for split in named)
    if rule == GEOGRAPHIC:
        return _geographic(pairs), 0
    listed = _read_table(rule)
    unlisted = [pair.key for _, pair in pairs if pair.key not in listed]
    if unlisted:
        more = ", …" if len(unlisted) > _SHOWN else ""
        raise DataError(
            f"{rule} has no row for {len(unlisted)} of {len(pairs)} keys ({', '.join(unlisted[:_SHOWN])}{more})"
        )
    return [listed[pair.key] for _, pair in pairs], 0


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


def _geographic(pairs: list[tuple[Source, Pair]]) -> list[str]:
    from sharding.sources.raster import to_degrees

    by_crs: dict[str, list[tuple[int, tuple[float, float]]]] = {}
    for i, (source, pair) in enumerate(pairs):
        place = source.centre(pair)
        if place is None:
            raise DataError(
                f"{pair.key} of {source.root} has no coordinates, so --splits geographic cannot place it; "
                "use --splits official or a FILE"
            )
        by_crs.setdefault(place[0], []).append((i, (place[1], place[2])))
    splits = [""] * len(pairs)
    for crs, members in sorted(by_crs.items()):
        degrees = to_degrees(crs, [point for _, point in members])
        for (i, _), (lon, lat) in zip(members, degrees, strict=True):
            splits[i] = split_of_cell(*cell(lon, lat))
    return splits


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
