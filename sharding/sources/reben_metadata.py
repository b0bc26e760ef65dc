"""The table of reBEN's patches: labels, split, S1 name, flags; from metadata.parquet or ConfigILM's older CSV files."""

import csv
import io
from dataclasses import dataclass, field
from typing import Any, Final

from sharding.errors import DataError
from sharding.sources.tree import Tree

PARQUET: Final = ("metadata.parquet", "metadata_for_patches_with_snow_cloud_or_shadow.parquet")
CSV_COLUMNS: Final = {"label": "labels", "s1": "s1_name", "split": "split", "country": "country"}
FLAGS: Final = ("contains_seasonal_snow", "contains_cloud_or_shadow")


@dataclass(kw_only=True)
class Row:
    """What the table says of one patch."""

    s1_name: str = ""
    split: str | None = None
    labels: list[str] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)


def read_metadata(tree: Tree, folder: str) -> dict[str, Row] | None:
    """The rows by S2 patch from the files in `folder`; None when there are none."""
    names = tree.files(folder)
    prefix = f"{folder}/" if folder else ""
    tables = [name for name in PARQUET if name in names]
    if tables:
        rows: dict[str, Row] = {}
        for name in tables:
            rows.update(_parquet(tree, prefix + name))
        return rows
    if f"patch_id_{next(iter(CSV_COLUMNS))}_mapping.csv" in names:
        return _mappings(tree, prefix, set(names))
    return None


def _parquet(tree: Tree, path: str) -> dict[str, Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = tree.store.name(path)
    try:
        table = pq.read_table(io.BytesIO(tree.read(path)))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name} cannot be read as Parquet ({error}); fetch it again") from error
    missing = [column for column in ("patch_id", "labels", "split", "s1_name") if column not in table.column_names]
    if missing:
        raise DataError(f"{name} has no column {', '.join(missing)}; it is not reBEN's metadata")
    extra = [column for column in ("country", *FLAGS) if column in table.column_names]
    columns = {column: table[column].to_pylist() for column in ("patch_id", "labels", "split", "s1_name", *extra)}
    rows = {}
    for i, patch in enumerate(columns["patch_id"]):
        rows[patch] = Row(
            s1_name=columns["s1_name"][i] or "",
            split=columns["split"][i],
            labels=columns["labels"][i] or [],
            attributes={column: columns[column][i] for column in extra},
        )
    return rows


def _mappings(tree: Tree, prefix: str, names: set[str]) -> dict[str, Row]:
    """ConfigILM up to 0.6.0: one CSV a column, of `patch_id,value`; the one of labels has a line a label."""
    rows: dict[str, Row] = {}
    for kind, column in CSV_COLUMNS.items():
        file = f"patch_id_{kind}_mapping.csv"
        if file not in names:
            continue
        reader = csv.reader(io.StringIO(tree.read(prefix + file).decode()))
        header = next(reader, [])
        if len(header) != 2 or header[0] != "patch_id":
            raise DataError(f"{tree.store.name(prefix + file)} begins with {header}, 'patch_id,{kind}' was expected")
        for patch, value in (row for row in reader if len(row) == 2):
            row = rows.setdefault(patch, Row())
            if column == "labels":
                row.labels.append(value)
            elif column == "country":
                row.attributes["country"] = value
            else:
                setattr(row, column, value)
    return rows
