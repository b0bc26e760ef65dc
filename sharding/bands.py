"""Bands of Sentinel-1 GRD and Sentinel-2 MSI, and the arrays in which a sample stores them.

Names as ESA writes them. Ground sampling distances: Sentinel-2 User Handbook, table 1; Sentinel-1 GRD is
delivered on the 10 m grid of its Sentinel-2 partner.
"""

from typing import Final

S1_BANDS: Final = ("VV", "VH")
S2_BANDS: Final = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
"""Spectral order. B10 (cirrus) exists in level 1C only."""

ARRAY_BANDS: Final[dict[str, tuple[str, ...]]] = {
    "s1": S1_BANDS,
    "s2_10m": ("B02", "B03", "B04", "B08"),
    "s2_20m": ("B05", "B06", "B07", "B8A", "B11", "B12"),
    "s2_60m": ("B01", "B09", "B10"),
}
"""The arrays of a sample, each at its native resolution, and the order of bands inside."""

ARRAY_GSD_M: Final[dict[str, int]] = {"s1": 10, "s2_10m": 10, "s2_20m": 20, "s2_60m": 60}

ALL_BANDS: Final[tuple[str, ...]] = tuple(band for bands in ARRAY_BANDS.values() for band in bands)
"""Every band in storage order; bit i of a sample's presence mask belongs to `ALL_BANDS[i]`."""

MODALITY_ARRAYS: Final[dict[str, tuple[str, ...]]] = {"s1": ("s1",), "s2": ("s2_10m", "s2_20m", "s2_60m")}


def array_of(band: str) -> str:
    """The array that stores `band`; KeyError if there is no such band."""
    for array, bands in ARRAY_BANDS.items():
        if band in bands:
            return array
    raise KeyError(band)


def presence_mask(bands: tuple[str, ...] | list[str]) -> int:
    """The bit mask (over `ALL_BANDS`) of the bands that a sample has."""
    return sum(1 << ALL_BANDS.index(band) for band in set(bands))


def present_bands(mask: int, array: str) -> tuple[str, ...]:
    """The bands of `array` that a sample with presence `mask` stores, in storage order."""
    return tuple(band for band in ARRAY_BANDS[array] if mask >> ALL_BANDS.index(band) & 1)
