"""The arrays of a sample as pictures: colours stretched from the 2nd to the 98th percentile, radar in dB, classes."""

import base64
import colorsys
import io
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sharding.bands import ALL_BANDS, S1_BANDS, S2_BANDS, are_classes
from sharding.read_sample import SampleArray

Rgb = npt.NDArray[np.uint8]
"""(height, width, 3)."""
Arrays = dict[str, SampleArray]
Plane = npt.NDArray[np.float64]

TRUE_COLOUR: Final = ("B04", "B03", "B02")
FALSE_COLOUR: Final = ("B08", "B04", "B03")
_PERCENTILES: Final = (2.0, 98.0)
_NO_DATA: Final = (110, 110, 118)
_NO_POWER: Final = 1e-10
_GOLDEN_ANGLE: Final = 0.381966
_QUALITY: Final = 80
_ELEVATION: Final = ((0.0, (38, 89, 74)), (0.35, (140, 158, 94)), (0.7, (168, 128, 92)), (1.0, (245, 243, 240)))
_VEGETATION: Final = ((0.0, (140, 102, 66)), (0.5, (240, 232, 200)), (1.0, (24, 104, 48)))


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture and what its colours mean."""

    name: str
    """`rgb`, `nir`, or the band."""
    title: str
    rgb: Rgb
    gsd_m: float
    range: tuple[float, float] | None = None
    """The values that are black and white, in `units`."""
    units: str = ""
    classes: dict[int, tuple[float, tuple[int, int, int]]] = field(default_factory=dict)
    """By code: share of the pixels, and colour; the most frequent first."""


def pair_pictures(arrays: Arrays) -> list[Picture]:
    """True and false colour of S2 and each band of S1; of an S2 that lacks bands for colours, one band in grey."""
    pictures = []
    if _has(arrays, TRUE_COLOUR):
        pictures.append(_colours(arrays, TRUE_COLOUR, "rgb", "S2 true colour"))
    if _has(arrays, FALSE_COLOUR):
        pictures.append(_colours(arrays, FALSE_COLOUR, "nir", "S2 false colour"))
    if not pictures:
        found = [array for array in arrays.values() if not set(array.bands).isdisjoint(S2_BANDS)]
        pictures += [_grey(array, array.bands[0], "S2 ") for array in found[:1]]
    pictures += [_radar(array, band) for array in arrays.values() for band in array.bands if band in S1_BANDS]
    return pictures


def rider_pictures(arrays: Arrays) -> list[Picture]:
    """One picture for each band that rides along."""
    riding = {band: array for array in arrays.values() for band in array.bands if band not in (*S1_BANDS, *S2_BANDS)}
    return [
        _classes(riding[band], band) if _is_classes(riding[band]) else _ramp(riding[band], band)
        for band in sorted(riding, key=ALL_BANDS.index)
    ]


def stretch(values: Plane) -> tuple[npt.NDArray[np.uint8], tuple[float, float]]:
    """Values as 0 to 255, and the two percentiles that became these; one value everywhere is mid grey."""
    measured = values[np.isfinite(values)]
    if not measured.size:
        return np.zeros(values.shape, np.uint8), (0.0, 0.0)
    low, high = (float(value) for value in np.percentile(measured, _PERCENTILES))
    if high <= low:
        return np.full(values.shape, 127, np.uint8), (low, high)
    scaled = np.clip((np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) / (high - low), 0, 1)
    return np.round(scaled * 255).astype(np.uint8), (low, high)


def webp_uri(rgb: Rgb, side: int) -> str:
    """The picture as a compact data URI, at most `side` pixels wide and high."""
    from PIL import Image

    image = Image.fromarray(rgb)
    if max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=_QUALITY, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def class_colour(code: int) -> tuple[int, int, int]:
    """The same colour for a code in every picture; neighbouring codes differ clearly."""
    hue = (0.33 + code * _GOLDEN_ANGLE) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.55, 0.75, 0.4)[code % 3], (0.85, 0.62, 0.95)[code // 3 % 3])
    return round(red * 255), round(green * 255), round(blue * 255)


def _has(arrays: Arrays, bands: tuple[str, ...]) -> bool:
    holding = [array for array in arrays.values() if not set(array.bands).isdisjoint(bands)]
    stored = {band for array in holding for band in array.bands}
    # In archives that are read as they lie each band may be an array of its own, and then of another size.
    return stored.issuperset(bands) and len({array.data.shape[1:] for array in holding}) == 1


def _array_with(arrays: Arrays, band: str) -> SampleArray:
    return next(array for array in arrays.values() if band in array.bands)


def _colours(arrays: Arrays, bands: tuple[str, ...], name: str, title: str) -> Picture:
    array = _array_with(arrays, bands[0])
    planes = [_array_with(arrays, band).values(band) for band in bands]
    rgb = np.stack([stretch(plane)[0] for plane in planes], axis=-1)
    missing = ~np.isfinite(np.stack(planes)).all(axis=0)
    rgb[missing] = _NO_DATA
    return Picture(name=name, title=f"{title} ({' '.join(bands)})", rgb=rgb, gsd_m=array.spec.gsd_m)


def _grey(array: SampleArray, band: str, prefix: str) -> Picture:
    return _in_grey(array, band, array.values(band), f"{prefix}{band}", array.spec.units)


def _radar(array: SampleArray, band: str) -> Picture:
    values = array.values(band)
    if array.spec.units == "linear":
        values = 10 * np.log10(np.maximum(values, _NO_POWER))
    return _in_grey(array, band, values, f"S1 {band}", "dB")


def _in_grey(array: SampleArray, band: str, values: Plane, title: str, units: str) -> Picture:
    grey, limits = stretch(values)
    rgb = np.repeat(grey[..., None], 3, axis=-1)
    rgb[~np.isfinite(values)] = _NO_DATA
    return Picture(name=band, title=title, rgb=rgb, gsd_m=array.spec.gsd_m, range=limits, units=units)


def _ramp(array: SampleArray, band: str) -> Picture:
    values = array.values(band)
    grey, limits = stretch(values)
    stops = _VEGETATION if band == "NDVI" else _ELEVATION
    places = [place * 255 for place, _ in stops]
    channels = [np.interp(grey, places, [colour[i] for _, colour in stops]) for i in range(3)]
    rgb = np.round(np.stack(channels, axis=-1)).astype(np.uint8)
    rgb[~np.isfinite(values)] = _NO_DATA
    units = "" if array.spec.units == "index" else array.spec.units
    return Picture(name=band, title=band, rgb=rgb, gsd_m=array.spec.gsd_m, range=limits, units=units)


def _is_classes(array: SampleArray) -> bool:
    return are_classes(array.bands, array.spec.units)


def _classes(array: SampleArray, band: str) -> Picture:
    values = array.values(band)
    measured = np.isfinite(values)
    codes, counts = np.unique(values[measured], return_counts=True)
    rgb = np.empty((*values.shape, 3), np.uint8)
    rgb[:] = _NO_DATA
    classes: dict[int, tuple[float, tuple[int, int, int]]] = {}
    order: list[Any] = np.argsort(-counts, kind="stable").tolist()
    for i in order:
        code = int(codes[i])
        classes[code] = (float(counts[i]) / values.size, class_colour(code))
        rgb[values == codes[i]] = classes[code][1]
    return Picture(name=band, title=band, rgb=rgb, gsd_m=array.spec.gsd_m, units="class", classes=classes)
