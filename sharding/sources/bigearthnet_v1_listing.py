"""The listing of BigEarthNet v1.0 made of names and lists, column by column; JSON is read only where no list helps."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sharding.errors import DataError
from sharding.sources.base import METADATA, MISSING_HALF, PairError
from sharding.sources.bigearthnet import listing_table, refuse
from sharding.sources.bigearthnet_v1_lists import Lists
from sharding.sources.listing import Listing, Refusal
from sharding.sources.name_columns import Mask, centres, parse_column, same_place
from sharding.sources.names import S1_PATTERN, S2_V1_PATTERN, parse_s1, parse_s2_v1
from sharding.sources.tree import Tree

SOURCE: Final = "bigearthnet-v1"
JSON_SUFFIX: Final = "_labels_metadata.json"
PARTNER: Final = "corresponding_s2_patch"
_THREADS: Final = 16
_BATCH: Final = 4096


@dataclass(frozen=True, kw_only=True)
class Folders:
    """The two halves of an archive."""

    tree: Tree
    s1: str
    s2: str

    def json_path(self, s1: str) -> str:
        """The JSON of an S1 patch."""
        return f"{self.s1}/{s1}/{s1}{JSON_SUFFIX}"


def listing_of_folders(folders: Folders, lists: Lists) -> Listing:
    """Every S1 patch with its S2 patch; halves without a partner are refused."""
    s1_patches = pa.array(folders.tree.folders(folders.s1), pa.string())
    s2_patches = pa.array(folders.tree.folders(folders.s2), pa.string())
    refused: list[Refusal] = []
    rows = _with_partners(s1_patches, folders, lists, refused)
    orphans = s2_patches.filter(pc.invert(pc.is_in(s2_patches, value_set=rows["key"].combine_chunks())))
    rows = _without_contradictions(rows, folders, refused)
    has_s2 = pc.is_in(rows["key"], value_set=s2_patches).to_numpy()
    rows = refuse(rows, ~has_s2, lambda row: _without_s2(row, folders), refused)
    for name in orphans.to_pylist():
        message = f"no patch in {folders.s1} names it; fetch its S1 half or remove it"
        refused.append(_refusal(name, MISSING_HALF, f"{folders.s2}/{name}", message))
    return Listing(
        table=_table(rows, lists),
        refused=refused,
        notes=[*lists.notes, *_notes(rows["key"], lists, folders.tree.store.url)],
        has_splits=len(lists.split_patches) > 0,
    )


def read_json(tree: Tree, path: str) -> dict[str, Any]:
    """The JSON of a patch; PairError when it is none."""
    try:
        record = json.loads(tree.read(path))
    except (ValueError, DataError) as error:
        raise PairError(METADATA, path, f"it cannot be read as JSON: {error}; fetch it again") from error
    if not isinstance(record, dict):
        raise PairError(METADATA, path, "it is no JSON object; fetch it again")
    return record


def _with_partners(s1_patches: pa.Array, folders: Folders, lists: Lists, refused: list[Refusal]) -> pa.Table:
    """`s1`, its S2 patch as `key`, and what the lists say of both, sorted by key."""
    listed = lists.partners.take(pc.index_in(s1_patches, value_set=lists.partners["s1_name"].combine_chunks()))
    key = listed["s2_name"].combine_chunks()
    unlisted = pc.is_null(key)
    if pc.any(unlisted).as_py():
        told = _by_json(s1_patches.filter(unlisted).to_pylist(), folders, refused)
        key = pc.replace_with_mask(key, unlisted, pa.array(told, pa.string()))
    rows = pa.table({"key": key, "s1": s1_patches, "country": listed["country"], "season": listed["season"]})
    rows = rows.filter(pc.is_valid(rows["key"]))
    return rows.take(pc.sort_indices(rows, sort_keys=[("key", "ascending"), ("s1", "ascending")]))


def _by_json(patches: list[str], folders: Folders, refused: list[Refusal]) -> Iterator[str | None]:
    """The S2 partner of each S1 patch; None where its JSON names none, which is refused."""

    def partner(name: str) -> str | PairError:
        path = folders.json_path(name)
        try:
            told = read_json(folders.tree, path).get(PARTNER)
        except PairError as error:
            return error
        if isinstance(told, str) and parse_s2_v1(told):
            return told
        return PairError(METADATA, path, f"it names no {PARTNER}; fetch it again")

    with ThreadPoolExecutor(_THREADS) as threads:
        for start in range(0, len(patches), _BATCH):
            batch = patches[start : start + _BATCH]
            for name, told in zip(batch, threads.map(partner, batch), strict=True):
                if isinstance(told, PairError):
                    refused.append(_refusal(name, told.reason, told.file, told.message))
                yield None if isinstance(told, PairError) else told


def _without_contradictions(rows: pa.Table, folders: Folders, refused: list[Refusal]) -> pa.Table:
    """The rows whose names agree, and of several with one S2 patch the first."""
    s1 = parse_column(rows["s1"].combine_chunks(), S1_PATTERN)
    s2 = parse_column(rows["key"].combine_chunks(), S2_V1_PATTERN)
    rows = refuse(rows, ~same_place(s1, s2), lambda row: _elsewhere(row, folders), refused)
    return refuse(rows, ~_first(rows["key"]), lambda row: _taken(row, folders), refused)


def _first(keys: pa.ChunkedArray) -> Mask:
    numbers = keys.combine_chunks().dictionary_encode().indices.to_numpy()
    first = np.zeros(len(keys), np.bool_)
    first[np.unique(numbers, return_index=True)[1]] = True
    return first


def _table(rows: pa.Table, lists: Lists) -> pa.Table:
    key = rows["key"].combine_chunks()
    s1 = parse_column(rows["s1"].combine_chunks(), S1_PATTERN)
    lon, lat = centres(s1)
    columns = {
        "key": key,
        "s1": rows["s1"],
        "split": lists.split_of(key).dictionary_encode(),
        "lon": pa.array(lon),
        "lat": pa.array(lat),
        "s1_date": s1.date,
        "s2_date": parse_column(key, S2_V1_PATTERN).date,
        **{name: rows[name] for name in ("country", "season") if rows[name].null_count < len(rows)},
        **{flag: pc.is_in(key, value_set=patches) for flag, patches in lists.flagged.items()},
    }
    return listing_table(columns)


def _notes(keys: pa.ChunkedArray, lists: Lists, root: str) -> Iterator[str]:
    listed = pc.unique(lists.split_patches)
    num_absent = len(listed) - pc.is_in(listed, value_set=keys.combine_chunks()).true_count
    if num_absent:
        yield f"{num_absent} patches of the split files are not in {root}"
    if lists.num_twice:
        yield f"{lists.num_twice} patches are in two split files; train counts before val and test"


def _refusal(key: str, reason: str, file: str, message: str) -> Refusal:
    return Refusal(key=key, source=SOURCE, reason=reason, file=file, message=message)


def _elsewhere(row: dict[str, Any], folders: Folders) -> Refusal:
    key, s1 = row["key"], row["s1"]
    message = f"its S2 patch is said to be {key}, which is another place"
    if parse_s1(s1) is None:
        message = f"'{s1}' is no name of an S1 patch of BigEarthNet"
    elif parse_s2_v1(key) is None:
        message = f"its S2 patch is said to be '{key}', which is no name of a patch of BigEarthNet v1.0"
    return _refusal(key, METADATA, f"{folders.s1}/{s1}", message)


def _taken(row: dict[str, Any], folders: Folders) -> Refusal:
    message = f"its S2 patch is said to be {row['key']}, which another S1 patch has already"
    return _refusal(row["key"], METADATA, f"{folders.s1}/{row['s1']}", message)


def _without_s2(row: dict[str, Any], folders: Folders) -> Refusal:
    message = f"the S2 half of {row['s1']} is missing; fetch it or remove {folders.s1}/{row['s1']}"
    return _refusal(row["key"], MISSING_HALF, f"{folders.s2}/{row['key']}", message)
