"""One self-contained page of a data set: thumbnails with filters, a map of footprints, histograms of each band.

Nothing is fetched when it is looked at. The filters stand in the page's address (`#split=test&label=Pastures`), so a
choice can be sent to somebody else.
"""

import hashlib
import json
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from sharding.dataset import open_dataset
from sharding.manifest import ALL_SPLITS, Manifest
from sharding.moments import CLASS, DECIBEL, Moments
from sharding.pictures import pair_pictures, webp_uri
from sharding.read_sample import READERS, Located, read_indexes, read_lines, read_sample
from sharding.sample_facts import dates_text, place_text
from sharding.statistics import parse_statistics
from sharding.store import Store

_THUMBNAIL: Final = 120
_BARS: Final = 48
_CLASSES: Final = 4
"""That are told in words."""
_MAP_WIDTH: Final = 640
_MAP_POINTS: Final = 4000
_STEPS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30)


def make_gallery(url: str, max_samples: int, split: str = "") -> tuple[str, int, int]:
    """The page, how many samples it shows, and how many there are (of `split`, if one is given)."""
    import jinja2

    store, manifest = open_dataset(url)
    shards = manifest.shards_of(split) if split else manifest.shards
    located = [
        Located(shard=shard, arrays=index.arrays, record=record, number=number, checksum=index.checksum)
        for shard, index in read_indexes(store, shards)
        for number, record in enumerate(index.records)
    ]
    chosen = _choose(located, max_samples)
    lines = read_lines(store, manifest, chosen)
    with ThreadPoolExecutor(READERS) as executor:
        cards = list(executor.map(lambda sample: _card(store, manifest, sample, lines[sample.key]), chosen))
    data = [{name: value for name, value in card.items() if name != "pictures"} for card in cards]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sharding"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("gallery.html.j2").render(
        url=url,
        manifest=manifest,
        split=split,
        total=len(located),
        cards=cards,
        # No `<` at all: both `</script` and `<!--` would mean something in a script.
        data=json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        map=_map(located),
        histograms=_histograms(store, manifest, split),
    )
    return page, len(cards), len(located)


def _choose(samples: list[Located], count: int) -> list[Located]:
    """The same samples each time, a share from every split, in the order of split and key."""

    def rank(sample: Located) -> bytes:
        return hashlib.blake2b(sample.key.encode(), digest_size=8).digest()

    by_split: dict[str, list[Located]] = {}
    for sample in sorted(samples, key=rank):
        by_split.setdefault(sample.shard.split, []).append(sample)
    share = max(1, count // max(len(by_split), 1))
    chosen = [sample for some in by_split.values() for sample in some[:share]]
    rest = sorted((sample for some in by_split.values() for sample in some[share:]), key=rank)
    chosen = (chosen + rest)[:count]
    order = list(dict.fromkeys(sample.shard.split for sample in samples))
    return sorted(chosen, key=lambda sample: (order.index(sample.shard.split), sample.key))


def _card(store: Store, manifest: Manifest, sample: Located, line: dict[str, Any]) -> dict[str, Any]:
    pictures = pair_pictures(read_sample(store, manifest, sample))
    optical = next((p for p in pictures if p.name not in ("VV", "VH", "nir")), None)
    radar = next((p for p in pictures if p.name in ("VV", "VH")), None)
    facts = {
        "When": dates_text(line),
        "Where": place_text(line),
        "Source": line["source"],
        "S2 level": line["level"],
        "Bands": " ".join(line["bands"]),
        **{name: value for name, value in line["attributes"].items() if isinstance(value, str | int | float | bool)},
    }
    return {
        "key": sample.key,
        "split": sample.shard.split,
        "country": str(line["attributes"].get("country") or ""),
        "labels": line["labels"],
        "facts": {name: str(value) for name, value in facts.items() if value != ""},
        "pictures": [
            {"title": picture.title, "src": webp_uri(picture.rgb, _THUMBNAIL)}
            for picture in (optical, radar)
            if picture is not None
        ],
    }


def _map(samples: list[Located]) -> dict[str, Any] | None:
    """Footprints' centres as points of an SVG, degrees on both axes alike at the middle latitude."""
    places = [(float(s.record["lon"]), float(s.record["lat"]), s.shard.split) for s in samples]
    known = [place for place in places if math.isfinite(place[0]) and math.isfinite(place[1])]
    if not known:
        return None
    step = max(1, len(known) // _MAP_POINTS)
    lons, lats = [place[0] for place in known], [place[1] for place in known]
    margin = max(max(lons) - min(lons), max(lats) - min(lats), 0.05) * 0.08
    west, east = min(lons) - margin, max(lons) + margin
    south, north = max(min(lats) - margin, -90.0), min(max(lats) + margin, 90.0)
    shrink = max(math.cos(math.radians((south + north) / 2)), 0.05)
    scale = _MAP_WIDTH / ((east - west) * shrink)
    height = min((north - south) * scale, 1.2 * _MAP_WIDTH)
    scale_y = height / (north - south)

    def x(lon: float) -> float:
        return round((lon - west) * shrink * scale, 1)

    def y(lat: float) -> float:
        return round((north - lat) * scale_y, 1)

    degrees = next((s for s in _STEPS if max(east - west, north - south) / s <= 8), _STEPS[-1])
    return {
        "width": _MAP_WIDTH,
        "height": round(height, 1),
        "points": [{"x": x(lon), "y": y(lat), "split": split} for lon, lat, split in known[::step]],
        "shown": len(known[::step]),
        "known": len(known),
        "meridians": [{"x": x(v), "text": _degrees(v, "E", "W")} for v in _ticks(west, east, degrees)],
        "parallels": [{"y": y(v), "text": _degrees(v, "N", "S")} for v in _ticks(south, north, degrees)],
    }


def _ticks(low: float, high: float, step: float) -> list[float]:
    first = math.ceil(low / step)
    return [round(i * step, 6) for i in range(first, math.floor(high / step) + 1)]


def _degrees(value: float, positive: str, negative: str) -> str:
    return f"{abs(value):g}°{positive if value >= 0 else negative}"


def _histograms(store: Store, manifest: Manifest, split: str) -> list[dict[str, Any]]:
    """Bars of each band between its 0.1 and 99.9 percentiles, over the split or over everything."""
    name = store.name(manifest.statistics_path)
    statistics = parse_statistics(store.read(manifest.statistics_path), name)
    chosen = split if split in statistics else ALL_SPLITS
    units = {band: spec.units for spec in manifest.arrays for band in spec.bands}
    found = []
    for band in manifest.bands:
        told, moments = manifest.statistics[chosen].get(band), statistics[chosen].get(band)
        if told is None or moments is None or not moments.count:
            continue
        bars, low, high = _bars(moments)
        found.append(
            {
                "band": band,
                "units": f"{units[band]}, drawn in dB" if moments.bins_of == DECIBEL else units[band],
                "bars": bars,
                "low": f"{low:.5g}",
                "high": f"{high:.5g}",
                "figures": _class_shares(moments)
                if moments.bins_of == CLASS
                else f"mean {told.mean:.5g}, std {told.std:.4g}, median {told.percentiles['50']:.5g}",
            }
        )
    return found


def _class_shares(moments: Moments) -> str:
    """The most frequent classes."""
    ordered = sorted(moments.histogram, key=lambda found: (-found[1], found[0]))
    told = [f"{code}: {100 * count / moments.count:.3g} %" for code, count in ordered[:_CLASSES]]
    more = [f"{len(ordered) - _CLASSES} more classes"] if len(ordered) > _CLASSES else []
    return ", ".join([*told, *more])


def _bars(moments: Moments) -> tuple[list[int], float, float]:
    """Heights of 0 to 100, and the ends of the axis; tails of a thousandth are left out. A bar a class."""
    if moments.bins_of == CLASS:
        numbers, counts = zip(*moments.histogram, strict=True)
        return [max(1, round(100 * count / max(counts))) for count in counts], numbers[0], numbers[-1]
    total, seen = sum(count for _, count in moments.histogram), 0
    kept = []
    for number, count in moments.histogram:
        if seen + count >= total * 0.001 and seen <= total * 0.999:
            kept.append((number, count))
        seen += count
    first, last = kept[0][0], kept[-1][0] + 1
    bars = [0.0] * min(_BARS, last - first)
    for number, count in kept:
        bars[(number - first) * len(bars) // (last - first)] += count
    top = max(bars)
    return [round(100 * bar / top) for bar in bars], first * moments.bin_width, last * moments.bin_width
