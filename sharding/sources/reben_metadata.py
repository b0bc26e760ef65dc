"""The table of reBEN's patches: labels, split, S1 name, flags; from metadata.parquet or ConfigILM's older CSV files."""

import io
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sharding.errors import DataError
from sharding.sources.tree import Tree

PARQUET: Final = ("metadata.parquet", "metadata_for_patches_with_snow_cloud_or_shadow.parquet")
CSV_COLUMNS: Final = {"label": "labels", "s1": "s1_name", "split": "split", "country": "country"}
FLAGS: Final = ("contains_seasonal_snow", "contains_cloud_or_shadow")
_WORD: Final = pa.dictionary(pa.int32(), pa.string())
REQUIRED: Final = {"patch_id": pa.string(), "s1_name": pa.string(), "split": _WORD, "labels": pa.list_(_WORD)}
OPTIONAL: Final = {"country": _WORD, "s2v1_name": pa.string(), **dict.fromkeys(FLAGS, pa.bool_())}


def read_metadata(tree: Tree, folder: str) -> pa.Table | None:
    """The rows of the tables in `folder`, with the columns `REQUIRED` and those of `OPTIONAL` that they have.

    None when there are no tables.
    """
    names = tree.files(folder)
    prefix = f"{folder}/" if folder else ""
    tables = [_parquet(tree, prefix + name) for name in PARQUET if name in names]
    if tables:
        return pa.concat_tables(tables, promote_options="default")
    if f"patch_id_{next(iter(CSV_COLUMNS))}_mapping.csv" in names:
        return _mappings(tree, prefix, set(names))
    return None


def _parquet(tree: Tree, path: str) -> pa.Table:
    import pyarrow.parquet as pq

    name = tree.store.name(path)
    try:
        content = pa.BufferReader(tree.read(path))
        leaves = [column.path for column in pq.ParquetFile(content).schema]
        # Decoded as words of a dictionary, half a million lists of labels take a tenth of the memory.
        words = [leaf for leaf in leaves if leaf.partition(".")[0] in ("labels", "split", "country")]
        with pq.ParquetFile(content, read_dictionary=words, pre_buffer=False) as file:
            present = file.schema_arrow.names
            missing = [column for column in REQUIRED if column not in present]
            if missing:
                raise DataError(f"{name} has no column {', '.join(missing)}; it is not reBEN's metadata")
            types = {column: kind for column, kind in {**REQUIRED, **OPTIONAL}.items() if column in present}
            return file.read(columns=list(types)).select(list(types)).cast(pa.schema(types))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name} cannot be read as reBEN's metadata in Parquet ({error}); fetch it again") from error


def _mappings(tree: Tree, prefix: str, names: set[str]) -> pa.Table:
    """ConfigILM up to 0.6.0: one CSV a column, of `patch_id,value`; the one of labels has a line a label."""
    found = {
        column: _mapping(tree, f"{prefix}{file}", kind)
        for kind, column in CSV_COLUMNS.items()
        if (file := f"patch_id_{kind}_mapping.csv") in names
    }
    patches = pc.unique(pa.chunked_array([chunk for ids, _ in found.values() for chunk in ids.chunks], pa.string()))
    columns: dict[str, Any] = {"patch_id": patches}
    for column, (ids, values) in found.items():
        if column == "labels":
            columns[column] = _lists(pc.index_in(ids, value_set=patches), values, len(patches))
        else:
            columns[column] = values.take(pc.index_in(patches, value_set=ids.combine_chunks()))
    types = {column: kind for column, kind in {**REQUIRED, **OPTIONAL}.items() if column in {**REQUIRED, **columns}}
    columns = {column: columns.get(column, pa.nulls(len(patches), kind)) for column, kind in types.items()}
    return pa.table(columns).cast(pa.schema(types))


def _mapping(tree: Tree, path: str, kind: str) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    import pyarrow.csv as pc_csv

    name = tree.store.name(path)
    try:
        table = pc_csv.read_csv(
            io.BytesIO(tree.read(path)),
            read_options=pc_csv.ReadOptions(autogenerate_column_names=True),
            convert_options=pc_csv.ConvertOptions(column_types={"f0": pa.string(), "f1": pa.string()}),
        )
    except pa.ArrowException as error:
        raise DataError(f"{name} cannot be read as a CSV ({error}); fetch it again") from error
    header = [column[0].as_py() for column in table.columns]
    if len(header) != 2 or header[0] != "patch_id":
        raise DataError(f"{name} begins with {header}, 'patch_id,{kind}' was expected")
    return table["f0"].slice(1), table["f1"].slice(1)


def _lists(rows: pa.ChunkedArray, values: pa.ChunkedArray, num_rows: int) -> pa.Array:
    """A list a row of the values that belong to it, in their order."""
    numbers = rows.to_numpy()
    offsets = np.concatenate([[0], np.cumsum(np.bincount(numbers, minlength=num_rows))]).astype(np.int32)
    ordered = values.combine_chunks().dictionary_encode().take(pa.array(np.argsort(numbers, kind="stable")))
    return pa.ListArray.from_arrays(pa.array(offsets), ordered)
