"""The pairs of SSL4EO-S12 v1.1: files by name, samples by id, timestamps by date."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sharding.errors import ConfigError
from sharding.sources.base import CLOUDY, DAYS, METADATA, MISSING_HALF, PairError, SourceOptions
from sharding.sources.listing import Listing, Pair, Refusal
from sharding.sources.nearest import days_apart, match_nearest
from sharding.sources.ssl4eo_v11_file import Contents, cloud_shares, read_contents
from sharding.sources.tree import Tree
from sharding.sources.zarr_zip_part import GroupFile

NAME: Final = "ssl4eo-s12-v1.1"
SPLITS: Final = ("train", "val")
S1_FOLDER: Final = "S1GRD"
S2_FOLDERS: Final = {"L2A": "S2L2A", "L1C": "S2L1C"}
EXTENSION: Final = ".zarr.zip"
_LISTS: Final = "splits"
_THREADS: Final = 16
_SHOWN: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Files:
    """The two files that have the same samples."""

    split: str | None
    s1: str
    s2: str


def half(path: str, row: int, time: int) -> str:
    """How a pair says where a half lies: the file, the sample's row in it and its timestamp."""
    return f"{path}#{row}/{time}"


def parse_half(text: str) -> tuple[str, int, int]:
    """The inverse of `half`."""
    path, _, place = text.rpartition("#")
    row, _, time = place.partition("/")
    return path, int(row), int(time)


def find_level(tree: Tree, wanted: str) -> str:
    """The level of S2 to be read; ConfigError when the archive does not have it."""
    if wanted and wanted not in S2_FOLDERS:
        raise ConfigError(f"'{wanted}' is no level of SSL4EO-S12; there are {', '.join(S2_FOLDERS)}")
    folders = [set(tree.folders(split)) for split in SPLITS]
    for level, folder in S2_FOLDERS.items():
        if wanted in ("", level) and any({S1_FOLDER, folder} <= found for found in folders):
            return level
    needed = S2_FOLDERS[wanted] if wanted else " or ".join(S2_FOLDERS.values())
    raise ConfigError(
        f"{tree.store.url} has no {S1_FOLDER} and {needed} in train or val; give --root the folder that holds train "
        "and val of SSL4EO-S12 v1.1"
    )


def find_files(tree: Tree, level: str, listing: Listing) -> list[Files]:
    """The files of both halves by name; what has no partner is refused, what no list of a split names is not in it."""
    lists = _lists(tree)
    found, others = [], []
    for split in SPLITS:
        folders = [f"{split}/{name}" for name in (S1_FOLDER, S2_FOLDERS[level])]
        halves = [{n for n in tree.files(folder) if n.endswith(EXTENSION)} for folder in folders]
        others += [f"{folder}/{n}" for folder in folders for n in tree.files(folder) if not n.endswith(EXTENSION)]
        for folder, other, alone in (
            (*folders, halves[0] - halves[1]),
            (*reversed(folders), halves[1] - halves[0]),
        ):
            for name in sorted(alone):
                message = f"there is no {other}/{name} with its other half; fetch it or remove this one"
                listing.refused.append(refusal(_stem(name), MISSING_HALF, f"{folder}/{name}", message))
        both = sorted(halves[0] & halves[1])
        named = lists.get(split)
        found += [
            Files(
                split=split if named is None or name in named else None,
                s1=f"{folders[0]}/{name}",
                s2=f"{folders[1]}/{name}",
            )
            for name in both
        ]
        if named is not None and (absent := len(named.difference(both))):
            listing.notes.append(f"{absent} of the {len(named)} files that {_LISTS} has for {split} are not there")
    if others and not found:
        raise ConfigError(
            f"{tree.store.url} holds no *{EXTENSION} but {', '.join(others[:_SHOWN])}: this is another edition of "
            "SSL4EO-S12 v1.1 (its tars have no +1000 in S2); get the one in Zarr, SSL4EO-S12-v1.1-Zarr"
        )
    if others:
        listing.notes.append(f"{len(others)} files are no *{EXTENSION} and are not read: {', '.join(others[:_SHOWN])}")
    unlisted = sum(files.split is None for files in found)
    if unlisted:
        listing.notes.append(f"{unlisted} files are in no list of {_LISTS}, so their pairs are in no split")
    return found


def _lists(tree: Tree) -> dict[str, set[str]]:
    """Names of files by split, from `splits/ssl4eos12_train.txt` and the like."""
    lists: dict[str, set[str]] = {}
    for name in tree.files(_LISTS):
        split = name.removesuffix(".txt").rpartition("_")[2]
        if name.endswith(".txt") and split in SPLITS:
            lists.setdefault(split, set()).update(tree.read(f"{_LISTS}/{name}").decode("utf-8", "replace").split())
    return lists


class Lister:
    """Makes pairs of files, and tells a listing what it leaves out."""

    def __init__(self, tree: Tree, options: SourceOptions, listing: Listing) -> None:
        self.tree, self.options, self.listing = tree, options, listing
        self._undated = self._misdated = self._unmasked = 0

    def pairs(self, files: list[Files]) -> Iterator[Pair]:
        """The pairs of all files, in their order; several threads read them, for each read is short."""
        with ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, len(files), 8 * _THREADS):
                some = files[start : start + 8 * _THREADS]
                for both, read in zip(some, pool.map(self._read, some), strict=True):
                    if isinstance(read, PairError):
                        message = f"{read.message}; all of its samples are left out"
                        self._refuse(
                            both.s2.rpartition("/")[2].removesuffix(EXTENSION), read.reason, read.file, message
                        )
                    else:
                        yield from self._joined(both, *read)
        self._note()

    def _read(self, files: Files) -> tuple[Contents, Contents, npt.NDArray[np.float64] | None] | PairError:
        try:
            s1, s2 = (_opened(self.tree, path) for path in (files.s1, files.s2))
            shares = None
            if self.options.max_cloud < 1 and "cloud_mask" in s2:
                shares = cloud_shares(s2.array("cloud_mask"))
            return read_contents(s1), read_contents(s2), shares
        except PairError as error:
            return error

    def _joined(self, files: Files, s1: Contents, s2: Contents, shares: Any) -> Iterator[Pair]:
        """The pairs of two files: samples by id, and of each the timestamps whose dates are nearest."""
        self._misdated += s1.misdated + s2.misdated
        self._unmasked += self.options.max_cloud < 1 and shares is None
        by_number = not any(date for contents in (s1, s2) for dates in contents.dates for date in dates)
        self._undated += by_number
        if by_number and self.options.max_days is not None:
            message = "it does not date its samples, so none can be judged by --max-days; leave that out"
            self._refuse(_stem(files.s2), METADATA, files.s2, message)
            return
        rows = {name: row for row, name in enumerate(s1.ids)}
        for path, other, alone in (
            (files.s1, files.s2, rows.keys() - set(s2.ids)),
            (files.s2, files.s1, set(s2.ids) - rows.keys()),
        ):
            for name in sorted(alone):
                self._refuse(name, MISSING_HALF, path, f"{other} has no sample {name}; fetch both files again")
        for s2_row, name in enumerate(s2.ids):
            if name not in rows:
                continue
            s1_row = rows[name]
            s1_dates, s2_dates = s1.dates[s1_row], s2.dates[s2_row]
            if by_number:
                matches = [(i, s1.numbers.index(number)) for i, number in enumerate(s2.numbers) if number in s1.numbers]
            elif all(s1_dates) and all(s2_dates):
                matches = match_nearest(s2_dates, s1_dates, None)
            else:
                message = f"not all timestamps of {name} are dated in both halves, so they cannot be paired"
                self._refuse(name, METADATA, files.s2, message)
                continue
            matched = {i for i, _ in matches}
            for number in (number for i, number in enumerate(s2.numbers) if i not in matched):
                message = f"{files.s1} has no timestamp of {name} left for it; fetch both files again"
                self._refuse(f"{name}_{number}", MISSING_HALF, files.s2, message)
            for i, j in matches:
                pair = Pair(
                    key=f"{name}_{s2.numbers[i]}",
                    s1=half(files.s1, s1_row, j),
                    s2=half(files.s2, s2_row, i),
                    split=files.split,
                    lon=s2.lon[s2_row],
                    lat=s2.lat[s2_row],
                    s1_date=s1_dates[j],
                    s2_date=s2_dates[i],
                )
                if self._is_wanted(pair, None if shares is None else float(shares[s2_row, i])):
                    yield pair

    def _is_wanted(self, pair: Pair, cloud_share: float | None) -> bool:
        limit = self.options.max_days
        if limit is not None and (days := days_apart(pair.s1_date, pair.s2_date)) > limit:
            message = f"the nearest S1, {pair.s1_date}, is {days:.1f} days away, at most {limit:g} are allowed"
            self._refuse(pair.key, DAYS, pair.s2, message)
            return False
        if cloud_share is not None and cloud_share > self.options.max_cloud:
            message = f"{cloud_share:.3f} of it are clouds, at most {self.options.max_cloud:g} are allowed"
            self._refuse(pair.key, CLOUDY, pair.s2, message)
            return False
        return True

    def _refuse(self, key: str, reason: str, file: str, message: str) -> None:
        self.listing.refused.append(refusal(key, reason, file, message))

    def _note(self) -> None:
        if self._misdated:
            self.listing.notes.append(
                f"in {self._misdated} samples 'time_' has other dates than the products that 'file_id' names (S1 of "
                "the published files is so); the products' dates are used"
            )
        if self._undated:
            self.listing.notes.append(
                f"{self._undated} files do not date their samples; timestamps are paired by their numbers"
            )
        if self._unmasked:
            self.listing.notes.append(
                f"{self._unmasked} files have no mask of clouds, so --max-cloud leaves them alone"
            )


def _stem(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(EXTENSION)


def _opened(tree: Tree, path: str) -> GroupFile:
    file = tree.file(path)
    if file is None:
        raise PairError(MISSING_HALF, path, "the file is gone; fetch it again")
    return GroupFile(tree, file)


def refusal(key: str, reason: str, file: str, message: str) -> Refusal:
    """A refusal of this source."""
    return Refusal(key=key, source=NAME, reason=reason, file=file, message=message)
