"""BigEarthNet-MM v1.0 as ConfigILM reads it: an LMDB, an S2 patch's name -> the pickle of both halves and their labels.

    ROOT/BigEarthNetEncoded.lmdb/data.mdb    or any other folder of that kind, or ROOT/data.mdb
    ROOT/{train,val,test}.csv                and the other lists of `sharding.sources.bigearthnet_v1_lists`

The LMDB knows neither coordinates nor S1 names, and S2 names of version 1.0 lack the tile: place, grid and the date of
S1 follow from the S1 patch's name, where the list of partners (`s1_s2_name_country_season.csv`) gives it.
"""

import functools
import os
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sharding.bands import ARRAY_GSD_M, S1_BANDS, array_of
from sharding.errors import ConfigError, DataError
from sharding.sources.base import (
    CORRUPT,
    METADATA,
    MISSING_HALF,
    PairError,
    Sample,
    Source,
    SourceFile,
    SourceOptions,
)
from sharding.sources.bigearthnet import listing_table, refuse, require_level, sample_of
from sharding.sources.bigearthnet_v1_lists import PARTNERS, Lists, read_lists
from sharding.sources.labels import LABELS_19, to_19
from sharding.sources.listing import Listing, Pair, Refusal
from sharding.sources.name_columns import centres, parse_column, same_place
from sharding.sources.names import BANDS_12, PATCH_M, S1_PATTERN, S2_V1_PATTERN, parse_s1, patch_corner
from sharding.sources.patch_pickle import PickledPatch, load_patch
from sharding.sources.raster import Grid, Raster
from sharding.sources.tree import Tree

DATA: Final = "data.mdb"


class ConfigILMV1(Source):
    """The LMDB; a pair's key is its S2 patch. Labels are in the pickles, so the listing has none."""

    name = "configilm-v1"
    version = "1.0"
    arrays = ("s1", "s2_10m", "s2_20m", "s2_60m")
    vocabulary = LABELS_19

    def __init__(self, root: str, options: SourceOptions | None = None) -> None:
        super().__init__(root, options)
        require_level(self)
        self.tree = Tree(root)

    @functools.cached_property
    def folder(self) -> str:
        """Where the LMDB lies below the root; empty when it is the root."""
        if not self.tree.store.is_local:
            raise ConfigError(f"{self.root} is to hold an LMDB, which is read from a disk only; copy it first")
        found = [folder for folder in ("", *self.tree.folders()) if DATA in self.tree.files(folder)]
        if len(found) != 1:
            what = f"{len(found)} LMDBs ({', '.join(found)})" if found else f"no folder with {DATA}"
            raise ConfigError(f"{self.root} has {what}; give --root the folder that holds ConfigILM's LMDB")
        return found[0]

    def list(self) -> Listing:
        """Pairs by the keys of the LMDB and the lists beside it."""
        self.tree.require()
        lists = read_lists(self.tree, (self.folder,))
        keys = pa.array(sorted(self._keys()), pa.string())
        partners = lists.partners.take(pc.index_in(keys, value_set=lists.partners["s2_name"].combine_chunks()))
        rows = pa.table(
            {"key": keys, "s1": partners["s1_name"], "country": partners["country"], "season": partners["season"]}
        )
        refused: list[Refusal] = []
        rows = refuse(rows, ~parse_column(keys, S2_V1_PATTERN).valid, self._no_patch, refused)
        s1 = parse_column(rows["s1"].combine_chunks(), S1_PATTERN)
        s2 = parse_column(rows["key"].combine_chunks(), S2_V1_PATTERN)
        named = pc.is_valid(rows["s1"]).to_numpy()
        rows = refuse(rows, named & ~same_place(s1, s2), self._elsewhere, refused)
        return Listing(
            table=_table(rows, lists),
            refused=refused,
            notes=[*lists.notes, *_notes(rows, lists, self.root)],
            has_splits=len(lists.split_patches) > 0,
        )

    def files(self, pair: Pair) -> tuple[SourceFile, ...]:
        """The one file that holds all."""
        path = f"{self.folder}/{DATA}" if self.folder else DATA
        file = self.tree.file(path)
        if file is None:
            raise PairError(MISSING_HALF, path, "the LMDB is missing; fetch it again")
        return (file,)

    def read(self, pair: Pair) -> Sample:
        """Both halves and the labels, out of one pickle."""
        path = self._path(pair.key)
        patch = load_patch(self._value(pair.key, path), path)
        labels = _labels_19(patch, path)
        name = parse_s1(pair.s1)
        corner = patch_corner(name) if name else None
        rasters = {band: _raster(patch.planes[band], band, corner, path) for band in (*S1_BANDS, *BANDS_12)}
        attributes: dict[str, Any] = {"s1_name": pair.s1} if name else {}
        if patch.labels is not None:
            attributes["labels_43"] = list(patch.labels)
        return sample_of(self, pair, rasters, labels=labels, attributes={**attributes, **pair.attributes})

    def centre(self, pair: Pair) -> tuple[str, float, float] | None:
        """Unknown: the listing says all that names tell."""
        return None

    def _path(self, key: str) -> str:
        """As a message names it."""
        return f"{self.folder or '.'}/{key}"

    @property
    def _environment(self) -> Any:
        # By where links lead: the same LMDB under another name would be opened a second time.
        return _open_lmdb(os.path.realpath(str(self.tree.local(self.folder))))

    def _keys(self) -> Iterable[str]:
        import lmdb

        try:
            with self._environment.begin() as transaction:
                keys = transaction.cursor().iternext(keys=True, values=False)
                return [key.decode(errors="replace") for key in keys]
        except lmdb.Error as error:
            raise DataError(f"{self.tree.store.name(self.folder)} cannot be read as an LMDB ({error})") from error

    def _value(self, key: str, path: str) -> bytes:
        import lmdb

        try:
            with self._environment.begin() as transaction:
                value = transaction.get(key.encode())
        except lmdb.Error as error:
            raise PairError(CORRUPT, path, f"the LMDB cannot be read there ({error}); fetch it again") from error
        if value is None:
            raise PairError(MISSING_HALF, path, "the LMDB has no such key; fetch it again")
        return bytes(value)

    def _no_patch(self, row: dict[str, Any]) -> Refusal:
        message = "its key is no name of an S2 patch of BigEarthNet v1.0"
        return self._refusal(row["key"], self._path(row["key"]), message)

    def _elsewhere(self, row: dict[str, Any]) -> Refusal:
        message = f"its S1 patch is said to be '{row['s1']}', which is no patch of this place"
        return self._refusal(row["key"], self._path(row["key"]), message)

    def _refusal(self, key: str, file: str, message: str) -> Refusal:
        return Refusal(key=key, source=self.name, reason=METADATA, file=file, message=message)


def _table(rows: pa.Table, lists: Lists) -> pa.Table:
    key = rows["key"].combine_chunks()
    s1 = parse_column(rows["s1"].combine_chunks(), S1_PATTERN)
    lon, lat = np.full(len(key), np.nan), np.full(len(key), np.nan)
    if s1.valid.any():
        lon[s1.valid], lat[s1.valid] = centres(s1.filter(s1.valid))
    columns = {
        "key": key,
        # Both halves are in one value: without the name of S1 its half is called as the whole.
        "s1": pc.coalesce(rows["s1"].combine_chunks(), key),
        "split": lists.split_of(key).dictionary_encode(),
        "lon": pa.array(lon),
        "lat": pa.array(lat),
        "s1_date": s1.date,
        "s2_date": parse_column(key, S2_V1_PATTERN).date,
        **{name: rows[name] for name in ("country", "season") if rows[name].null_count < len(rows)},
        **{flag: pc.is_in(key, value_set=patches) for flag, patches in lists.flagged.items()},
    }
    return listing_table(columns)


def _notes(rows: pa.Table, lists: Lists, root: str) -> list[str]:
    notes = []
    if rows["s1"].null_count:
        notes.append(
            f"{rows['s1'].null_count} of {len(rows)} patches have no coordinates and no date of S1, for no list names "
            f"their S1 patch; lay {PARTNERS}.csv beside the LMDB"
        )
    listed = pc.unique(lists.split_patches)
    num_absent = len(listed) - pc.is_in(listed, value_set=rows["key"].combine_chunks()).true_count
    if num_absent:
        notes.append(f"{num_absent} patches of the split files are not in {root}")
    if lists.num_twice:
        notes.append(f"{lists.num_twice} patches are in two split files; train counts before val and test")
    return notes


def _labels_19(patch: PickledPatch, path: str) -> tuple[str, ...]:
    """By the 43 classes, or those of the 19 that the patch has itself; it may not contradict itself."""
    try:
        mapped = to_19(list(patch.labels or ()))
        told = to_19(list(patch.new_labels or ()))
    except KeyError as error:
        raise PairError(METADATA, path, f"the label {error} is in no nomenclature of BigEarthNet") from error
    if patch.labels is not None and patch.new_labels is not None and mapped != told:
        raise PairError(
            METADATA, path, f"its labels are {', '.join(mapped)} by the 43 classes, but {', '.join(told)} by the 19"
        )
    return mapped if patch.labels is not None else told


def _raster(plane: Any, band: str, corner: tuple[str, int, int] | None, path: str) -> Raster:
    height, width = plane.shape
    if corner is None:
        return Raster(path=path, data=plane[None], grid=Grid(crs="", transform=None, height=height, width=width))
    crs, left, top = corner
    gsd_m = ARRAY_GSD_M[array_of(band)]
    side = PATCH_M // gsd_m
    transform = (float(gsd_m), 0.0, float(left), 0.0, -float(gsd_m), float(top))
    return Raster(path=path, data=plane[None], grid=Grid(crs=crs, transform=transform, height=side, width=side))


@functools.cache
def _open_lmdb(path: str) -> Any:
    # A process may open an environment only once; it stays open until the process ends.
    import lmdb

    try:
        return lmdb.open(path, readonly=True, lock=False, readahead=False, create=False)
    except lmdb.Error as error:
        raise DataError(f"{path} cannot be opened as an LMDB ({error}); fetch it again") from error
