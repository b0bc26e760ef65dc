"""The lists that go with BigEarthNet v1.0: splits, S1 and S2 partners, snow and clouds; as .csv or .csv.bz2.

They may lie in ROOT, in ROOT/splits or in another folder of ROOT:

    {train,val,test}.csv, bigearthnet-{train,val,test}.csv    S2 patches, or `S2 patch,S1 patch`
    s1_s2_name_country_season.csv                             with this header
    patches_with_seasonal_snow.csv, patches_with_cloud_and_shadow.csv, patches_with_no_19_class_targets.csv
"""

import bz2
import io
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sharding.errors import DataError
from sharding.sources.name_columns import parse_column
from sharding.sources.names import S1_PATTERN, S2_V1_PATTERN
from sharding.sources.tree import Tree

SPLITS: Final = ("train", "val", "test")
PARTNERS: Final = "s1_s2_name_country_season"
PARTNER_COLUMNS: Final = ("s1_name", "s2_name", "country", "season")
FLAGS: Final = {
    "contains_seasonal_snow": "patches_with_seasonal_snow",
    "contains_cloud_or_shadow": "patches_with_cloud_and_shadow",
    "no_19_class_target": "patches_with_no_19_class_targets",
}
"""Attribute of a patch -> the list that has it."""
_SUFFIXES: Final = (".csv", ".csv.bz2")
_LINE: Final = r"^\s*(?P<s2>[^,\s]*)\s*(?:,\s*(?P<s1>[^,\s]*)\s*)?$"
_NO_DELIMITER: Final = "\x1f"


@dataclass(kw_only=True)
class Lists:
    """What the lists say, by column; S2 patches of a split are those of train, then val, then test."""

    partners: pa.Table
    """`s1_name`, `s2_name`, `country`, `season`, the last two null where only a split names the partners."""
    split_patches: pa.Array
    split: pa.Array
    flagged: dict[str, pa.Array] = field(default_factory=dict)
    """S2 patches of each list of `FLAGS` that is there."""
    num_twice: int = 0
    """Patches in two splits."""
    notes: list[str] = field(default_factory=list)

    def split_of(self, patches: pa.Array) -> pa.Array:
        """The split of each S2 patch, the first that has it; null without one."""
        return self.split.take(pc.index_in(patches, value_set=self.split_patches))


def read_lists(tree: Tree, halves: tuple[str, ...]) -> Lists:
    """All lists of an archive whose patches are in the folders `halves`; those that are not there are empty."""
    paths = _find(tree, halves)
    notes: list[str] = []
    tables = [_partners(tree, paths[PARTNERS])] if PARTNERS in paths else []
    patches, splits, per_split = [], [], []
    for split in SPLITS:
        path = paths.get(split) or paths.get(f"bigearthnet-{split}")
        if path is None:
            continue
        s2, s1 = _patches(tree, path, notes)
        patches.append(s2)
        splits.append(pa.array([split]).take(pa.array(np.zeros(len(s2), np.int8))))
        per_split.append(pc.unique(s2))
        named = pc.is_valid(s1)
        tables.append(pa.table({"s1_name": s1.filter(named), "s2_name": s2.filter(named)}))
    flagged = {flag: _patches(tree, paths[name], notes)[0] for flag, name in FLAGS.items() if name in paths}
    empty = pa.table({name: pa.array([], pa.string()) for name in PARTNER_COLUMNS})
    every = _joined(per_split)
    return Lists(
        partners=pa.concat_tables([empty, *tables], promote_options="default").combine_chunks(),
        split_patches=_joined(patches),
        split=_joined(splits),
        flagged=flagged,
        num_twice=pc.sum(pc.greater(pc.value_counts(every).field("counts"), 1)).as_py() or 0,
        notes=notes,
    )


def _joined(arrays: list[pa.Array]) -> pa.Array:
    return pa.chunked_array(arrays, pa.string()).combine_chunks()


def _find(tree: Tree, halves: tuple[str, ...]) -> dict[str, str]:
    """Path of each list by its name without suffix."""
    wanted = {*SPLITS, *(f"bigearthnet-{split}" for split in SPLITS), PARTNERS, *FLAGS.values()}
    folders = [folder for folder in tree.folders() if folder not in halves]
    folders.sort(key=lambda folder: folder != "splits")
    found: dict[str, str] = {}
    for folder in (*folders[:1], "", *folders[1:]) if "splits" in folders else ("", *folders):
        names = tree.files(folder)
        for suffix in _SUFFIXES:
            for name in names:
                stem = name.removesuffix(suffix)
                if name.endswith(suffix) and stem in wanted:
                    found.setdefault(stem, f"{folder}/{name}" if folder else name)
    return found


def _content(tree: Tree, path: str) -> bytes:
    content = tree.read(path)
    try:
        return bz2.decompress(content) if path.endswith(".bz2") else content
    except (OSError, ValueError) as error:
        raise DataError(f"{tree.store.name(path)} cannot be read ({error}); fetch it again") from error


def _partners(tree: Tree, path: str) -> pa.Table:
    import pyarrow.csv as pc_csv

    name = tree.store.name(path)
    options = pc_csv.ConvertOptions(column_types=dict.fromkeys(PARTNER_COLUMNS, pa.string()))
    try:
        table = pc_csv.read_csv(io.BytesIO(_content(tree, path)), convert_options=options)
    except pa.ArrowException as error:
        raise DataError(f"{name} cannot be read as a CSV ({error}); fetch it again") from error
    missing = [column for column in PARTNER_COLUMNS if column not in table.column_names]
    if missing:
        raise DataError(f"{name} has no column {', '.join(missing)}; its header is {','.join(PARTNER_COLUMNS)}")
    return table.select(PARTNER_COLUMNS)


def _patches(tree: Tree, path: str, notes: list[str]) -> tuple[pa.Array, pa.Array]:
    """S2 patches, and their S1 partners (null without one), of lines with one of them or both."""
    found = pc.extract_regex(_lines(tree, path), _LINE)
    s2, s1 = (pc.struct_field(found, half) for half in ("s2", "s1"))
    s1 = pc.if_else(pa.array(parse_column(s1, S1_PATTERN).valid), s1, pa.scalar(None, pa.string()))
    named = parse_column(s2, S2_V1_PATTERN).valid
    num_odd = int((~named[1:]).sum())  # the first line may be a header
    if num_odd:
        notes.append(f"{num_odd} lines of {path} name no patch of BigEarthNet v1.0 and are passed over")
    return s2.filter(pa.array(named)), s1.filter(pa.array(named))


def _lines(tree: Tree, path: str) -> pa.Array:
    import pyarrow.csv as pc_csv

    content = _content(tree, path)
    if not content.strip():
        return pa.array([], pa.string())
    try:
        table = pc_csv.read_csv(
            io.BytesIO(content),
            read_options=pc_csv.ReadOptions(column_names=["line"]),
            parse_options=pc_csv.ParseOptions(delimiter=_NO_DELIMITER, quote_char=False),
            convert_options=pc_csv.ConvertOptions(column_types={"line": pa.string()}),
        )
    except pa.ArrowException as error:
        raise DataError(f"{tree.store.name(path)} cannot be read as text ({error}); fetch it again") from error
    return table["line"].combine_chunks()
