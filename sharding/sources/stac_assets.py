"""The assets of a STAC item, sorted by the bands that they hold."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sharding.sources.eo_bands import eo_band, half_of, named_gsd_m, own_gsd_m

_RASTERS: Final = (".tif", ".tiff", ".jp2", ".vrt")
_PICTURES: Final = ("visual", "preview", "rendered_preview", "thumbnail", "overview", "tci")
"""Assets made to look at; catalogues give them the names of the bands they are made of."""
LABEL_ASSETS: Final = ("label", "labels", "label_map")
DEM_ASSETS: Final = ("dem", "elevation")


@dataclass(frozen=True, kw_only=True)
class Asset:
    """A raster of an item."""

    name: str
    href: str
    bands: tuple[str, ...]
    """In the order of the file; empty when it holds no band of S1 or S2."""
    facts: Mapping[str, Any]
    """`unit`, `scale`, `offset`, `nodata`, where the item tells them."""


def assets_of(struct: Mapping[str, Any] | None) -> list[Asset]:
    """All rasters among the assets of an item."""
    found = []
    for name, fields in (struct or {}).items():
        href = (fields or {}).get("href")
        if href and name.lower() not in _PICTURES and _is_raster(href, fields):
            described = _first_list(fields, "bands", "eo:bands")
            found.append(Asset(name=name, href=href, bands=_bands(name, described), facts=_facts(fields, described)))
    return found


def halves_of(assets: list[Asset]) -> dict[str, list[Asset]]:
    """`s1` and `s2`: the assets to be read, each band once; ValueError when it is not clear which.

    Of several rasters of one band a GeoTIFF is taken before others, then the one at the band's own resolution, and
    files of one band before those of many.
    """
    singles: dict[str, list[Asset]] = {}
    for asset in assets:
        if len(asset.bands) == 1:
            singles.setdefault(asset.bands[0], []).append(asset)
    chosen = {band: _best(band, candidates) for band, candidates in singles.items()}
    taken = [chosen[band] for band in sorted(chosen)]
    held = set(chosen)
    for asset in assets:
        if len(asset.bands) < 2 or held.issuperset(asset.bands):
            continue
        again = [band for band in asset.bands if band in held]
        if again:
            raise ValueError(f"the asset '{asset.name}' holds {', '.join(again)}, which another one holds too")
        held.update(asset.bands)
        taken.append(asset)
    halves: dict[str, list[Asset]] = {}
    for asset in taken:
        kinds = {half_of(band) for band in asset.bands}
        if len(kinds) > 1:
            raise ValueError(f"the asset '{asset.name}' holds bands of S1 and of S2; put them into files of their own")
        halves.setdefault(kinds.pop(), []).append(asset)
    return halves


def shared_fact(assets: list[Asset], fact: str) -> Any:
    """What all assets say of themselves under `fact`; None when they say nothing; ValueError when they differ."""
    told = {asset.name: asset.facts[fact] for asset in assets if fact in asset.facts}
    if len(set(told.values())) > 1:
        shown = ", ".join(f"{name} {value}" for name, value in list(told.items())[:4])
        raise ValueError(f"the assets have different values of {fact}: {shown}; a sample holds one")
    return next(iter(told.values()), None)


def _is_raster(href: str, fields: Mapping[str, Any]) -> bool:
    kind = str(fields.get("type") or "")
    return href.partition("?")[0].lower().endswith(_RASTERS) or kind.startswith(("image/tiff", "image/jp2"))


def _first_list(fields: Mapping[str, Any], *names: str) -> list[Mapping[str, Any]]:
    lists = (fields.get(name) for name in names)
    return next(([item or {} for item in items] for items in lists if items is not None and len(items)), [])


def _bands(name: str, described: list[Mapping[str, Any]]) -> tuple[str, ...]:
    """As the item describes them; else by the asset's own name."""
    bands = [
        eo_band(str(item.get("name") or ""))
        or eo_band(str(item.get("eo:common_name") or item.get("common_name") or ""))
        for item in described
    ]
    known = [band for band in bands if band]
    if known and len(known) == len(bands):
        return tuple(known)
    own = eo_band(name) if len(bands) < 2 else None
    return (own,) if own else ()


def _facts(fields: Mapping[str, Any], described: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the bands, or of the asset as a whole (STAC 1.1 and the extension `raster` of 1.0)."""
    places = [*described[:1], *_first_list(fields, "raster:bands")[:1], fields]
    facts: dict[str, Any] = {}
    for place in places:
        for fact in ("unit", "scale", "offset", "nodata"):
            value = place.get(fact, place.get(f"raster:{fact}"))
            if value is None or fact in facts:
                continue
            if fact == "unit":
                facts[fact] = str(value).lower()
            elif isinstance(value, int | float) and math.isfinite(value):
                facts[fact] = float(value)
    return facts


def _best(band: str, candidates: list[Asset]) -> Asset:
    def rank(asset: Asset) -> tuple[bool, int]:
        gsd = named_gsd_m(asset.name) or own_gsd_m(band)
        tiff = asset.href.partition("?")[0].lower().endswith((".tif", ".tiff"))
        return not tiff, abs(gsd - own_gsd_m(band))

    first, *others = sorted(candidates, key=rank)
    if others and rank(others[0]) == rank(first):
        raise ValueError(f"the assets '{first.name}' and '{others[0].name}' are both {band}; keep one")
    return first
