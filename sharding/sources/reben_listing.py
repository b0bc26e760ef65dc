"""The listing of reBEN made from its metadata, column by column: the official half million rows take seconds."""

from collections.abc import Callable
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from sharding.errors import DataError
from sharding.sources.base import METADATA, MISSING_HALF
from sharding.sources.bigearthnet import listing_table, refuse
from sharding.sources.labels import to_19, to_19_column
from sharding.sources.listing import Listing, Refusal
from sharding.sources.name_columns import centres, map_distinct, parse_column, same_place
from sharding.sources.names import S1_PATTERN, S2_V2_PATTERN, parse_s2_v2
from sharding.sources.pair_table import normalise_split
from sharding.sources.reben_metadata import OPTIONAL
from sharding.sources.reben_store import PatchStore

SOURCE: Final = "reben"


def listing_of_metadata(rows: pa.Table, path_of: Callable[[str], str] = str) -> Listing:
    """All rows of `sharding.sources.reben_metadata.read_metadata` as pairs, as if the pixels of each were there.

    A row that contradicts itself is refused; `path_of` an S2 patch is how the message names its place.
    """
    has_splits = rows["split"].null_count < len(rows)
    rows = rows.take(pc.sort_indices(rows["patch_id"]))
    s2 = parse_column(rows["patch_id"].combine_chunks(), S2_V2_PATTERN)
    s1 = parse_column(rows["s1_name"].combine_chunks(), S1_PATTERN)
    labels, unknown = to_19_column(rows["labels"].combine_chunks())
    good = same_place(s1, s2) & ~unknown
    refused: list[Refusal] = []
    if not good.all():
        rows = refuse(rows, ~good, lambda row: _wrong_row(row, path_of(row["patch_id"])), refused)
        s1, s2, labels = s1.filter(good), s2.filter(good), labels.filter(pa.array(good))
    lon, lat = centres(s2)
    columns = {
        "key": rows["patch_id"],
        "s1": rows["s1_name"],
        "split": _splits(rows["split"].combine_chunks()),
        "labels": labels,
        "lon": pa.array(lon),
        "lat": pa.array(lat),
        "s1_date": s1.date,
        "s2_date": s2.date,
        **{column: _plain(rows[column]) for column in OPTIONAL if column in rows.column_names},
    }
    return Listing(table=listing_table(columns), refused=refused, has_splits=has_splits)


def listing_of_store(rows: pa.Table, store: PatchStore, root: str) -> Listing:
    """The rows of which `store` has both halves; halves without a partner, or without a row, are refused."""
    s1_patches, s2_patches = store.s1_patches(), store.s2_patches()
    has_s2 = pc.is_in(rows["patch_id"], value_set=s2_patches).combine_chunks()
    whole = has_s2.true_count == len(rows)
    listing = listing_of_metadata(rows if whole else rows.filter(has_s2), store.s2_path)
    listing.has_splits = rows["split"].null_count < len(rows)
    has_s1 = pc.is_in(listing.table["s1"], value_set=s1_patches).to_numpy()
    listing.table = refuse(listing.table, ~has_s1, lambda row: _without_s1(row, store), listing.refused)

    others = rows.select(["patch_id", "s1_name"]).filter(pc.invert(has_s2))
    only_s1 = pc.is_in(others["s1_name"], value_set=s1_patches).to_numpy()
    others = refuse(others, only_s1, lambda row: _without_s2(row, store), listing.refused)
    for name in _not_in(s2_patches, rows["patch_id"]):
        message = "the metadata has no row for it, so its S1 half is unknown"
        listing.refused.append(_refusal(name, METADATA, store.s2_path(name), message))
    for name in _not_in(s1_patches, rows["s1_name"]):
        message = "the metadata has no row for it; fetch its S2 half or remove this one"
        listing.refused.append(_refusal(name, MISSING_HALF, store.s1_path(name), message))
    if len(others):
        listing.notes.append(f"{len(others)} of {len(rows)} patches of the metadata have no pixels in {root}")
    return listing


def _not_in(patches: pa.Array, known: pa.ChunkedArray) -> list[str]:
    found: list[str] = patches.filter(pc.invert(pc.is_in(patches, value_set=known.combine_chunks()))).to_pylist()
    return found


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column


def _splits(names: pa.Array) -> pa.Array:
    def ours(name: str) -> str | None:
        try:
            return normalise_split(name)
        except ValueError as error:
            raise DataError(f"the column split of the metadata is wrong: {error}") from error

    return map_distinct(names, ours).dictionary_encode()


def _refusal(key: str, reason: str, file: str, message: str) -> Refusal:
    return Refusal(key=key, source=SOURCE, reason=reason, file=file, message=message)


def _wrong_row(row: dict[str, Any], path: str) -> Refusal:
    key = row["patch_id"]
    message = f"the metadata pairs it with '{row['s1_name'] or ''}', which is another place"
    if parse_s2_v2(key) is None:
        message = f"'{key}' is no name of a patch of BigEarthNet v2.0"
    else:
        try:
            to_19(row["labels"] or [])
        except KeyError as error:
            message = f"its label {error} is not in the nomenclature of BigEarthNet"
    return _refusal(key, METADATA, path, message)


def _without_s1(row: dict[str, Any], store: PatchStore) -> Refusal:
    message = f"the S1 half of {row['key']} is missing; fetch it or remove the S2 half"
    return _refusal(row["key"], MISSING_HALF, store.s1_path(row["s1"]), message)


def _without_s2(row: dict[str, Any], store: PatchStore) -> Refusal:
    message = f"its S2 half {row['patch_id']} is missing; fetch it or remove this one"
    return _refusal(row["patch_id"], MISSING_HALF, store.s1_path(row["s1_name"]), message)
