"""Bands by the names that catalogues and cubes give them: ESA's, or the common names of STAC's extension `eo`."""

import re
from typing import Final

from sharding.bands import ARRAY_GSD_M, S1_BANDS, array_of
from sharding.sources.band_names import band_name

COMMON_NAMES: Final = {
    "coastal": "B01", "blue": "B02", "green": "B03", "red": "B04",
    "rededge1": "B05", "rededge071": "B05", "rededge2": "B06", "rededge075": "B06", "rededge3": "B07",
    "rededge078": "B07", "nir": "B08", "nir08": "B8A", "nir09": "B09", "cirrus": "B10", "swir16": "B11",
    "swir22": "B12",
}  # fmt: skip
_LEVEL: Final = re.compile(r"(?:L|LEVEL[-_ ]?|MSI)(1C|2A)(?![0-9A-Z])", re.IGNORECASE)
_RESOLUTION: Final = re.compile(r"[_-](10|20|60)m$", re.IGNORECASE)


def eo_band(name: str) -> str | None:
    """The band of `B02`, `S2-L2A-B02`, `b2`, `vv`, `B02_10m` or `blue`; None when it is none."""
    bare = _RESOLUTION.sub("", name.strip())
    return band_name(bare) or COMMON_NAMES.get(bare.lower())


def named_gsd_m(name: str) -> int | None:
    """The resolution that a name ends with (`B02_20m`); None without one."""
    found = _RESOLUTION.search(name.strip())
    return int(found[1]) if found else None


def own_gsd_m(band: str) -> int:
    """The resolution at which the satellite sees `band`."""
    return ARRAY_GSD_M[array_of(band)]


def half_of(band: str) -> str:
    """`s1` or `s2`."""
    return "s1" if band in S1_BANDS else "s2"


def level_in(text: str) -> str:
    """`L1C` or `L2A`, where a name or description of S2 says so (`S2_L2A_10m`, `Level-1C`, `S2MSI2A`); else empty."""
    found = _LEVEL.search(text)
    return f"L{found[1].upper()}" if found else ""
