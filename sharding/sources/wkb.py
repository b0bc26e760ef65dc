"""The middle of a bounding box, and of a geometry in well-known binary (ISO or EWKB): points, lines and polygons."""

import math
import struct
from typing import Final

_KINDS: Final = {1: "point", 2: "line", 3: "polygon", 4: "several", 5: "several", 6: "several", 7: "several"}
_Z, _M, _SRID = 0x80000000, 0x40000000, 0x20000000
_LARGEST: Final = 1 << 22


def centre_of_box(west: float, south: float, east: float, north: float) -> tuple[float, float]:
    """Longitude and latitude of the middle; a box whose west lies east of its east crosses the date line."""
    if west > east:
        east += 360
    lon = (west + east) / 2
    return lon - 360 if lon > 180 else lon, (south + north) / 2


def centre_of_wkb(content: bytes) -> tuple[float, float]:
    """The middle of a geometry's envelope; ValueError when it is not well-known binary."""
    xs: list[float] = []
    ys: list[float] = []
    try:
        _read(content, 0, xs, ys)
    except struct.error as error:
        raise ValueError(f"the geometry is no WKB ({error})") from error
    measured = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
    if not measured:
        raise ValueError("the geometry is empty")
    west, east = min(x for x, _ in measured), max(x for x, _ in measured)
    south, north = min(y for _, y in measured), max(y for _, y in measured)
    return (west + east) / 2, (south + north) / 2


def _read(content: bytes, at: int, xs: list[float], ys: list[float]) -> int:
    """Adds the coordinates of the geometry at byte `at`; returns where it ends."""
    order = {0: ">", 1: "<"}.get(content[at] if at < len(content) else -1)
    if order is None:
        raise ValueError("the geometry is no WKB (its byte order is neither 0 nor 1)")
    (code,) = struct.unpack_from(f"{order}I", content, at + 1)
    at += 5 + (4 if code & _SRID else 0)
    plain = code & 0x0FFFFFFF
    kind = _KINDS.get(plain % 1000)
    if kind is None:
        raise ValueError(f"the geometry is of the kind {plain}, which is no point, line or polygon")
    size = 2 + _extra(code, plain)
    if kind == "point":
        return _points(content, at, order, size, 1, xs, ys)
    (count,) = struct.unpack_from(f"{order}I", content, at)
    at += 4
    if count > _LARGEST:
        raise ValueError(f"the geometry has {count} parts; it is broken")
    if kind == "line":
        return _points(content, at, order, size, count, xs, ys)
    for _ in range(count):
        if kind == "several":
            at = _read(content, at, xs, ys)
        else:
            (points,) = struct.unpack_from(f"{order}I", content, at)
            at = _points(content, at + 4, order, size, points, xs, ys)
    return at


def _extra(code: int, plain: int) -> int:
    """Coordinates of a point beyond x and y."""
    thousands = plain // 1000
    return bool(code & _Z) + bool(code & _M) + {0: 0, 1: 1, 2: 1, 3: 2}.get(thousands, 0)


def _points(content: bytes, at: int, order: str, size: int, count: int, xs: list[float], ys: list[float]) -> int:
    if count > _LARGEST:
        raise ValueError(f"the geometry has {count} points; it is broken")
    numbers = struct.unpack_from(f"{order}{count * size}d", content, at)
    xs.extend(numbers[0::size])
    ys.extend(numbers[1::size])
    return at + 8 * count * size
