"""What the numbers of a cube mean: units, scale, nodata, level and offset, by attributes and names of the variables."""

import math
import re
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sharding.sources.assemble import Radiometry
from sharding.sources.cube_axes import dates_of
from sharding.sources.cube_layers import Layer
from sharding.sources.cube_store import number_of
from sharding.sources.eo_bands import level_in

_DB: Final = ("db", "decibel", "decibels")
_LINEAR: Final = ("linear", "power", "1", "m2/m2", "m2 m-2")
_LOGARITHMIC: Final = "20*log10(DN)-83"
_GFMAP_S1: Final = re.compile(r"S1-SIGMA0-V[VH]$")
"""How openEO's GFMap, and with it WorldCereal, names backscatter that it keeps as uint16 in this way."""
_GFMAP_S2: Final = re.compile(r"S2-L2A-B\w\w$")
_GFMAP_NODATA: Final = 65535.0
_S2_SCALE: Final = 1e-4
_FLOAT_NODATA: Final = 65535.0


@dataclass(frozen=True, kw_only=True)
class S1Coding:
    """How S1 is stored, and what is kept of it."""

    units: str
    scale: float
    nodata: float | None
    formula: str = ""
    """Where numbers and a scale cannot say it: what was worked out, in float32."""
    add: float = 0.0

    def kept(self, plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The numbers as they came, or what the formula makes of them."""
        if not self.formula:
            return plane
        if self.formula != _LOGARITHMIC:
            values = plane.astype(np.float64) * self.scale + self.add
            missing = np.zeros(plane.shape, np.bool_) if self.nodata is None else plane == self.nodata
        else:
            missing = plane == 0 if self.nodata is None else (plane == 0) | (plane == self.nodata)
            values = 20 * np.log10(np.where(missing, 1, plane).astype(np.float64)) - 83
        return np.where(missing, _FLOAT_NODATA, values).astype(np.float32)


def s1_coding(layers: list[Layer]) -> S1Coding:
    """How the bands of S1 are stored; ValueError when they differ, or do not say it."""
    coding: S1Coding = _shared({layer.variable.name: _s1_coding(layer) for layer in layers}, "stored in different ways")
    return coding


def _s1_coding(layer: Layer) -> S1Coding:
    variable = layer.variable
    attributes = variable.attributes
    units = _s1_units(layer)
    scale, add = number_of(attributes.get("scale_factor")), number_of(attributes.get("add_offset")) or 0.0
    nodata = nodata_of(layer)
    whole = variable.dtype.kind in "iu"
    told = str(attributes.get("s1_encoding") or "").replace(" ", "")
    if told == _LOGARITHMIC or (whole and scale is None and _GFMAP_S1.search(variable.name)):
        if variable.dtype.kind != "u" and variable.dtype.itemsize < 4:
            raise ValueError(
                f"{variable.name} is {variable.dtype}, into which {_LOGARITHMIC} does not fit; write it as uint16"
            )
        return S1Coding(units="dB", scale=1.0, nodata=nodata, formula=_LOGARITHMIC)
    if whole and scale is None:
        raise ValueError(
            f"{variable.name} is {variable.dtype} and says no scale_factor; add the attribute, or write floating point"
        )
    if add:
        return S1Coding(units=units, scale=scale or 1.0, nodata=nodata, formula=f"DN*{scale or 1.0:g}{add:+g}", add=add)
    return S1Coding(units=units, scale=scale or 1.0, nodata=nodata)


def _s1_units(layer: Layer) -> str:
    told = layer.variable.attributes.get("units") or layer.group.attribute("s1_units")
    lower = str(told or "dB").strip().lower()
    if lower in _DB:
        return "dB"
    if lower in _LINEAR:
        return "linear"
    raise ValueError(f"the units of {layer.variable.name} are '{told}'; write dB or linear")


def radiometry_of(s1: S1Coding, layers: dict[str, Layer]) -> Radiometry:
    """What `sharding.sources.assemble` needs to know, but S2's offset; ValueError when the bands of S2 differ."""
    units = _shared({layer.variable.name: _s2_units(layer) for layer in layers.values()}, "in different units")
    nodata = _shared(
        {layer.variable.name: nodata_of(layer) for layer in layers.values()},
        "of different fill values",
    )
    return Radiometry(
        s1_units=s1.units,
        s1_scale=1.0 if s1.formula else s1.scale,
        s1_nodata=_FLOAT_NODATA if s1.formula else s1.nodata,
        s2_units=units,
        s2_nodata=nodata,
    )


def _s2_units(layer: Layer) -> str:
    variable = layer.variable
    if variable.dtype.kind in "iu":
        scale = number_of(variable.attributes.get("scale_factor"))
        if scale is not None and not math.isclose(scale, _S2_SCALE, rel_tol=1e-3) and scale != 1.0:
            raise ValueError(
                f"the scale_factor of {variable.name} is {scale:g}; digital numbers of S2 are 1/10000 each"
            )
        return "DN"
    told = str(variable.attributes.get("units") or layer.group.attribute("s2_units") or "").strip().lower()
    if variable.dtype.kind == "f" and told in ("reflectance", "1"):
        return "reflectance"
    raise ValueError(
        f"{variable.name} is {variable.dtype} in the units '{told}'; write digital numbers as uint16, or reflectance "
        "as floating point with the attribute units: reflectance"
    )


def offsets_of(layers: dict[str, Layer], dates: tuple[str, ...]) -> tuple[dict[str, float], bool]:
    """What is to be added to the digital numbers of each date, and whether the cube says it at all.

    By a variable `s2_offset` along the time, the attribute of that name, or the `add_offset` of the bands.
    """
    first = next(iter(layers.values()))
    variable = first.group.find("s2_offset")
    if variable is not None and len(variable.dims) == 1:
        coordinate = first.group.find(variable.dims[0])
        times = dates_of(coordinate) if coordinate else ()
        by_date = dict(zip(times, variable.read().astype(np.float64).tolist(), strict=True))
        missing = [date for date in dates if date not in by_date]
        if missing:
            raise ValueError(f"s2_offset has no value for {missing[0]}")
        return {date: by_date[date] for date in dates}, True
    told = number_of(first.group.attribute("s2_offset"))
    if told is None:
        told = _shared({layer.variable.name: _added(layer) for layer in layers.values()}, "of different add_offset")
    return dict.fromkeys(dates, told or 0.0), told is not None


def _added(layer: Layer) -> float | None:
    """In stored numbers; the attribute has it in reflectance."""
    added = number_of(layer.variable.attributes.get("add_offset"))
    if added is None:
        return None
    return round(added / (number_of(layer.variable.attributes.get("scale_factor")) or 1.0), 6)


def level_of(layers: dict[str, Layer], wanted: str) -> str:
    """`L1C` or `L2A`: by attributes, else by names, else as the user says; ValueError when nothing says it."""
    for layer in layers.values():
        told = layer.group.attribute("s2_level", "processing_level", "processing:level", "level")
        for text in (str(told or ""), layer.variable.name, layer.group.name, layer.variable.path.rpartition("/")[2]):
            if level := level_in(text):
                return level
    if "B10" in layers:
        return "L1C"
    if wanted:
        return wanted
    raise ValueError("nothing says whether S2 is level 1C or 2A; add the attribute s2_level, or give --s2-level")


def nodata_of(layer: Layer) -> float | None:
    """The stored number that means that nothing was measured; None for NaN, which says so itself."""
    variable = layer.variable
    for name in ("_FillValue", "missing_value", "nodata"):
        value = number_of(variable.attributes.get(name))
        if value is not None:
            return value if math.isfinite(value) else None
    gfmap = _GFMAP_S1.search(variable.name) or _GFMAP_S2.search(variable.name)
    return _GFMAP_NODATA if gfmap and variable.dtype == np.uint16 else None


def _shared(told: dict[str, Any], different: str) -> Any:
    if len(set(told.values())) > 1:
        raise ValueError(f"{', '.join(told)} are {different}; a sample holds one kind")
    return next(iter(told.values()))
