"""The rows of a user's table, CSV or Parquet, a few thousand in memory at a time."""

import contextlib
import csv
import datetime
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from sharding.errors import ConfigError, DataError
from sharding.sources.tree import Tree

CSV_SUFFIXES: Final = (".csv",)
PARQUET_SUFFIXES: Final = (".parquet", ".geoparquet", ".pq")
TABLE_SUFFIXES: Final = (*CSV_SUFFIXES, *PARQUET_SUFFIXES)
_BATCH: Final = 4096


@dataclass(frozen=True, kw_only=True)
class TableFile:
    """A table that lies in `tree`; nothing but its header was read."""

    tree: Tree
    path: str
    columns: dict[str, pa.DataType]
    """By name as the file has it, in its order; text in a CSV."""

    @property
    def name(self) -> str:
        """As messages show it."""
        return self.tree.store.name(self.path)

    def rows(self, columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number and cells of each row.

        Rows of a CSV are counted as an editor does, the header being row 1; those of a Parquet file from 1. Cells are
        text in a CSV, what Arrow has in Parquet. DataError when the file cannot be read on.
        """
        if self.path.lower().endswith(CSV_SUFFIXES):
            return self._csv_rows(columns)
        return self._parquet_rows(columns)

    def _csv_rows(self, columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        wanted = [(i, name) for i, name in enumerate(self.columns) if name in columns]
        width, number = len(self.columns), 1
        try:
            with _text(self.tree, self.path) as text:
                reader = csv.reader(text)
                next(reader, None)
                for cells in reader:
                    number = reader.line_num
                    if not cells:
                        continue
                    if len(cells) > width:
                        raise DataError(
                            f"{self.name}, row {number}: it has {len(cells)} cells, the header has {width}; "
                            "put cells with commas in quotes"
                        )
                    yield number, {name: cells[i] if i < len(cells) else "" for i, name in wanted}
        except (UnicodeDecodeError, csv.Error) as error:
            raise _not_csv(self.name, error, number) from error

    def _parquet_rows(self, columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        number = 0
        with _parquet(self.tree, self.path) as file:
            for batch in file.iter_batches(_BATCH, columns=columns):
                for cells in _without_nanoseconds(batch).to_pylist():
                    number += 1
                    yield number, cells


def open_table(tree: Tree, path: str) -> TableFile:
    """The table at `path`; ConfigError when it is not there, DataError when it is no table."""
    if not tree.store.exists(path):
        raise ConfigError(f"there is no {tree.store.name(path)}; give --root a CSV or Parquet table of pairs")
    if path.lower().endswith(CSV_SUFFIXES):
        return TableFile(tree=tree, path=path, columns=_csv_columns(tree, path))
    with _parquet(tree, path) as file:
        schema = file.schema_arrow
        return TableFile(tree=tree, path=path, columns={field.name: field.type for field in schema})


def cell_text(value: Any) -> str:
    """A cell as a CSV would have it: empty for null and NaN, lists with commas, dates in ISO 8601."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, datetime.datetime | datetime.date):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return ",".join(cell_text(item) for item in value)
    return str(value)


def _without_nanoseconds(batch: Any) -> Any:
    """Python's dates end at microseconds."""
    for i, field in enumerate(batch.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            coarse = batch.column(i).cast(pa.timestamp("us", field.type.tz), safe=False)
            batch = batch.set_column(i, field.name, coarse)
    return batch


def _csv_columns(tree: Tree, path: str) -> dict[str, pa.DataType]:
    name = tree.store.name(path)
    try:
        with _text(tree, path) as text:
            header = next(csv.reader(text), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise _not_csv(name, error, 1) from error
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise DataError(f"{name}, row 1: the column {', '.join(twice)} is there twice; keep one")
    return dict.fromkeys(header, pa.string())


def _text(tree: Tree, path: str) -> io.TextIOWrapper:
    raw = tree.store.fs.open(tree.store.full(path), "rb")
    return io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")


def _not_csv(name: str, error: Exception, number: int) -> DataError:
    return DataError(f"{name} is not UTF-8 text in CSV after row {number} ({error}); save it as a CSV in UTF-8")


@contextlib.contextmanager
def _parquet(tree: Tree, path: str) -> Iterator[Any]:
    with tree.store.fs.open(tree.store.full(path), "rb") as raw:
        try:
            yield pq.ParquetFile(raw)
        except (pa.ArrowException, OSError) as error:
            name = tree.store.name(path)
            raise DataError(f"{name} cannot be read as Parquet ({error}); write it again") from error
