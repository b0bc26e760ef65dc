"""STAC items in GeoParquet as rows of the `folder` source's table: assets by their bands, properties by their names.

An item with assets of S1 and of S2 is a pair. Items of one half each are a pair when they have the same `pair_id`. The
table may have our own columns too (`s1_units`, `split`, `attr_…`); what they say counts before what the item says.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from sharding.sources.base import MISSING_HALF
from sharding.sources.eo_bands import level_in
from sharding.sources.listing import Refusal
from sharding.sources.pair_table import (
    KEY_PATTERN,
    MAX_KEY,
    OPTIONAL,
    REQUIRED,
    TableRow,
    WrongRows,
    attribute_types,
    attributes_of,
    own_cell,
    row_of,
)
from sharding.sources.stac_assets import DEM_ASSETS, LABEL_ASSETS, Asset, assets_of, halves_of, shared_fact
from sharding.sources.table_file import TableFile, cell_text
from sharding.sources.wkb import centre_of_box, centre_of_wkb

_PROPERTIES: Final = (
    "id", "collection", "assets", "bbox", "geometry", "datetime", "start_datetime", "pair_id", "processing:level",
    "s2:product_type", "s2:processing_baseline", "earthsearch:boa_offset_applied", "eo:cloud_cover",
)  # fmt: skip
_UNITS: Final = {
    "db": "dB", "decibel": "dB", "decibels": "dB",
    "1": "linear", "linear": "linear", "power": "linear",
}  # fmt: skip
_LINEAR_COLLECTIONS: Final = ("sentinel-1-rtc",)
"""Whose S1 is linear power by their publisher's word, though their items do not say it."""
_BASELINE: Final = 4.0
_OFFSET: Final = "-1000"
_DIGEST: Final = 8


@dataclass(kw_only=True)
class _Item:
    """What a row says of the halves that it has, as cells of our own table."""

    number: int
    name: str
    halves: tuple[str, ...]
    cells: dict[str, str]
    attributes: dict[str, Any]


@dataclass(kw_only=True)
class StacRows:
    """The pairs of a table of items; `refused` and `notes` are whole once `rows` has come to its end."""

    table: TableFile
    source: str
    refused: list[Refusal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def attribute_types(self) -> dict[str, pa.DataType]:
        """Attributes of its samples."""
        own = {"attr_s1_item": pa.string(), "attr_s2_item": pa.string(), "attr_cloud_cover": pa.float64()}
        return {**own, **attribute_types(self.table)}

    def rows(self) -> Iterator[TableRow]:
        """The pairs; at the end DataError if any item was wrong."""
        own = [name for name in self.table.columns if name in (*REQUIRED, *OPTIONAL)]
        extra = attribute_types(self.table)
        read = [name for name in self.table.columns if name in _PROPERTIES]
        wrong = WrongRows(self.table.name)
        waiting: dict[str, _Item] = {}
        num_others = num_unclear = 0
        for number, raw in self.table.rows([*read, *own, *extra]):
            try:
                item = _item(number, raw, own, attributes_of(raw, extra))
                if not item.halves:
                    num_others += 1
                    continue
                num_unclear += "s2" in item.halves and "s2_offset" not in item.cells
                if len(item.halves) == 1:
                    partner = self._partner(item, cell_text(raw.get("pair_id")), waiting)
                    if partner is None:
                        continue
                    item = _joined(partner, item, cell_text(raw["pair_id"]))
                row = row_of(number, item.cells, item.attributes)
            except ValueError as error:
                wrong.add(number, f"(item {cell_text(raw['id'])}) {error}")
            else:
                yield row
        wrong.raise_if_any()
        for key, item in waiting.items():
            self._refuse(item, f"no other row has the pair_id '{key}'")
        self._note(num_others, num_unclear)

    def _partner(self, item: _Item, key: str, waiting: dict[str, _Item]) -> _Item | None:
        """The other half, seen before; None when this one is kept for it, or refused."""
        if not key:
            self._refuse(item, "its item has no assets of the other half and no pair_id")
            return None
        partner = waiting.get(key)
        if partner is None:
            waiting[key] = item
            return None
        if partner.halves == item.halves:
            half = item.halves[0].upper()
            raise ValueError(f"the pair_id '{key}' has {half} in row {partner.number} already")
        del waiting[key]
        return partner

    def _refuse(self, item: _Item, message: str) -> None:
        half = item.halves[0]
        self.refused.append(
            Refusal(
                key=item.cells["key"],
                source=self.source,
                reason=MISSING_HALF,
                file=item.cells[f"{half}_path"].split("|")[0],
                message=f"the {'S2' if half == 's1' else 'S1'} half is missing: {message} (row {item.number})",
            )
        )

    def _note(self, num_others: int, num_unclear: int) -> None:
        if num_others:
            self.notes.append(f"{num_others} items of {self.table.path} have no asset of a band of S1 or S2")
        if num_unclear:
            self.notes.append(
                f"{num_unclear} items of {self.table.path} say neither s2:processing_baseline nor an offset: their S2 "
                "is taken as free of the +1000 of baseline 04.00; say otherwise in a column s2_offset"
            )


def is_stac(table: TableFile) -> bool:
    """Whether the rows are STAC items."""
    return {"id", "assets"} <= table.columns.keys()


def _item(number: int, raw: dict[str, Any], own: list[str], attributes: dict[str, Any]) -> _Item:
    name = cell_text(raw["id"])
    assets = assets_of(raw["assets"])
    halves = halves_of(assets)
    cells = {"key": _key(name), **_place(raw)}
    for column, names in (("label_path", LABEL_ASSETS), ("dem_path", DEM_ASSETS)):
        hrefs = [asset.href for asset in assets if asset.name.lower() in names]
        cells |= {column: hrefs[0]} if hrefs else {}
    for half, files in halves.items():
        cells[f"{half}_path"] = "|".join(_href(asset) for asset in files)
        cells[f"{half}_bands"] = "|".join(",".join(asset.bands) for asset in files)
        nodata = shared_fact(files, "nodata")
        cells |= {f"{half}_nodata": f"{nodata!r}"} if nodata is not None else {}
        attributes[f"attr_{half}_item"] = name
    if "s1" in halves:
        cells |= _s1_cells(halves["s1"], raw)
    if "s2" in halves:
        cells |= _s2_cells(halves["s2"], raw)
        cloud = raw.get("eo:cloud_cover")
        if cloud is not None and math.isfinite(cloud):
            attributes["attr_cloud_cover"] = float(cloud)
    moment = cell_text(raw.get("datetime")) or cell_text(raw.get("start_datetime"))
    if moment and halves:
        cells["s2_date" if "s2" in halves else "s1_date"] = moment
    told = {column: own_cell(column, raw[column]) for column in own}
    cells |= {column: text for column, text in told.items() if text}
    return _Item(number=number, name=name, halves=tuple(halves), cells=cells, attributes=attributes)


def _joined(first: _Item, second: _Item, key: str) -> _Item:
    s1, s2 = (first, second) if first.halves == ("s1",) else (second, first)
    # What one item says of the other's half would be a mistake; what it says of the pair may stand in either.
    of_s1 = {column: text for column, text in s1.cells.items() if not column.startswith("s2_")}
    of_s2 = {column: text for column, text in s2.cells.items() if not column.startswith("s1_")}
    return _Item(
        number=second.number,
        name=s2.name,
        halves=("s1", "s2"),
        cells={**of_s1, **of_s2, "key": _key(key)},
        attributes={**s1.attributes, **s2.attributes},
    )


def _s1_cells(files: list[Asset], raw: Mapping[str, Any]) -> dict[str, str]:
    cells = {}
    unit = shared_fact(files, "unit")
    if unit in _UNITS:
        cells["s1_units"] = _UNITS[unit]
    elif cell_text(raw.get("collection")) in _LINEAR_COLLECTIONS:
        cells["s1_units"] = "linear"
    if shared_fact(files, "offset"):
        raise ValueError("the assets of S1 have an offset, which cannot be kept; write S1 as floating point")
    scale = shared_fact(files, "scale")
    return {**cells, "s1_scale": f"{scale!r}"} if scale else cells


def _s2_cells(files: list[Asset], raw: Mapping[str, Any]) -> dict[str, str]:
    """Level and offset, as far as the item tells them."""
    cells = {}
    for column in ("processing:level", "s2:product_type", "collection", "id"):
        if level := level_in(cell_text(raw.get(column))):
            cells["s2_level"] = level
            break
    offset, scale = shared_fact(files, "offset"), shared_fact(files, "scale")
    baseline = cell_text(raw.get("s2:processing_baseline"))
    if raw.get("earthsearch:boa_offset_applied"):
        cells["s2_offset"] = "0"
    elif offset is not None:
        # In stored numbers; the catalogue gives it in reflectance.
        cells["s2_offset"] = f"{round(offset / (scale or 1.0), 6)!r}"
    elif baseline:
        try:
            cells["s2_offset"] = _OFFSET if float(baseline) >= _BASELINE else "0"
        except ValueError:
            raise ValueError(f"s2:processing_baseline is '{baseline}'; it looks like 05.09") from None
    return cells


def _place(raw: Mapping[str, Any]) -> dict[str, str]:
    """Longitude and latitude from the bounding box, or else from the geometry."""
    box, geometry = raw.get("bbox"), raw.get("geometry")
    if isinstance(box, Mapping) and all(box.get(name) is not None for name in ("xmin", "ymin", "xmax", "ymax")):
        lon, lat = centre_of_box(box["xmin"], box["ymin"], box["xmax"], box["ymax"])
    elif isinstance(box, list) and len(box) in (4, 6):
        lon, lat = centre_of_box(box[0], box[1], box[len(box) // 2], box[len(box) // 2 + 1])
    elif isinstance(geometry, bytes):
        lon, lat = centre_of_wkb(geometry)
    else:
        return {}
    return {"lon": f"{round(lon, 7)!r}", "lat": f"{round(lat, 7)!r}"}


def _href(asset: Asset) -> str:
    if "|" in asset.href:
        raise ValueError(f"the href of '{asset.name}' has a |, which parts files; rename {asset.href}")
    return asset.href


def _key(name: str) -> str:
    """A key made of an id; where characters had to give way, a digest keeps it apart from others."""
    if KEY_PATTERN.fullmatch(name) and len(name) <= MAX_KEY:
        return name
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[: MAX_KEY - _DIGEST - 1]
    return f"{plain}-{hashlib.blake2b(name.encode(), digest_size=_DIGEST // 2).hexdigest()}"
