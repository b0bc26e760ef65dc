"""The pairs of an archive as a table: a row a pair, some hundred bytes each, so that millions fit into memory.

A source with a table of its own fills the columns as a whole (`Listing(table=...)`); one that walks folders gives
its pairs one at a time (`table_of`). Columns beyond `COLUMNS` are the source's own: they come back as the attributes
of a pair, and so into the sample's.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

COLUMNS: Final = pa.schema(
    [
        ("key", pa.string()),
        ("s1", pa.string()),
        ("s2", pa.string()),
        ("split", pa.dictionary(pa.int32(), pa.string())),
        ("labels", pa.list_(pa.string())),
        ("lon", pa.float64()),
        ("lat", pa.float64()),
        ("s1_date", pa.string()),
        ("s2_date", pa.string()),
    ]
)
"""What every listing has. Null or NaN: unknown."""
_BATCH: Final = 1 << 14


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One S1/S2 pair as the listing knows it; holds all that `Source.read` needs."""

    key: str
    """Unique in the archive; letters, digits, `_`, `-` and `/`, 91 at most."""
    s1: str
    """Where the S1 half lies: a path relative to the root, or what else the source understands."""
    s2: str
    split: str | None = None
    """`train`, `val` or `test`; None when the source says none."""
    labels: tuple[str, ...] = ()
    lon: float = math.nan
    """Longitude of the centre in degrees, where it is known without opening a file."""
    lat: float = math.nan
    s1_date: str = ""
    """Acquisition in UTC, ISO 8601; empty when unknown."""
    s2_date: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    """What else goes into the sample's attributes (country, flags) or steers the reading."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A pair that is left out, as `bad.jsonl` lists it."""

    key: str
    source: str
    reason: str
    file: str
    message: str


@dataclass(kw_only=True)
class Listing:
    """All of a source: its pairs, what is refused without opening it, and what a user should know."""

    table: pa.Table
    """`COLUMNS`, and the source's own; sorted by key."""
    refused: list[Refusal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    has_splits: bool = False
    """Whether the source says splits at all, be it of pairs that are not here; then a pair without one was left out."""

    @property
    def pairs(self) -> list[Pair]:
        """Every row as a pair; for listings that are known to be short."""
        return list(pairs_of(self.table))


def table_of(pairs: Iterable[Pair], **columns: pa.DataType) -> pa.Table:
    """The table of `pairs`, sorted by key; `columns` are the names and types of their attributes.

    Taken batch by batch, so that the pairs need not exist all at once.
    """
    schema = pa.schema([*COLUMNS, *columns.items()])
    batches = []
    stream = iter(pairs)
    while batch := list(itertools.islice(stream, _BATCH)):
        values: dict[str, list[Any]] = {name: [getattr(pair, name) for pair in batch] for name in COLUMNS.names}
        for name in ("s1_date", "s2_date"):
            values[name] = [value or None for value in values[name]]
        for pair in batch:
            strange = pair.attributes.keys() - columns.keys()
            assert not strange, f"{pair.key} has the undeclared attributes {strange}"
        values |= {name: [pair.attributes.get(name) for pair in batch] for name in columns}
        batches.append(pa.RecordBatch.from_pydict(values, schema=schema))
    return pa.Table.from_batches(batches, schema=schema).sort_by("key")


def pairs_of(table: pa.Table, start: int = 0, stop: int | None = None) -> Iterator[Pair]:
    """Rows `start` to `stop` of a table as pairs."""
    rows = table.slice(start, None if stop is None else stop - start)
    for batch in rows.to_batches(max_chunksize=_BATCH):
        for row in batch.to_pylist():
            yield _pair(row)


def _pair(row: dict[str, Any]) -> Pair:
    known = {name: row.pop(name) for name in COLUMNS.names}
    known["labels"] = tuple(known["labels"] or ())
    for name in ("s1_date", "s2_date"):
        known[name] = known[name] or ""
    for name in ("lon", "lat"):
        known[name] = math.nan if known[name] is None else known[name]
    return Pair(**known, attributes={name: value for name, value in row.items() if value is not None})


def merge_tables(tables: list[pa.Table]) -> pa.Table:
    """The tables of several sources as one, with the number of the source in the column `source`.

    A source's own columns are kept apart by its number: `0.country`.
    """
    merged = []
    for number, table in enumerate(tables):
        names = [name if name in COLUMNS.names else f"{number}.{name}" for name in table.column_names]
        table = table.rename_columns(names)
        # Dictionaries of several tables would have to be unified; the words are few and short.
        table = table.set_column(names.index("split"), "split", table["split"].cast(pa.string()))
        merged.append(table.append_column("source", pa.array([number] * len(table), pa.int16())))
    return pa.concat_tables(merged, promote_options="default")


def own_columns(table: pa.Table, number: int) -> pa.Table:
    """Rows of `merge_tables` that belong to the source `number`, as its own listing has them."""
    prefix = f"{number}."
    names = [name for name in table.column_names if name in COLUMNS.names or name.startswith(prefix)]
    return table.select(names).rename_columns([name.removeprefix(prefix) for name in names])
