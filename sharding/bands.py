"""Bands of Sentinel-1 GRD and Sentinel-2 MSI, of what rides along, and the arrays in which a sample stores them.

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
    "dem": ("DEM",),
    "ndvi": ("NDVI",),
    "lulc": ("LULC",),
    "cloud_mask": ("CLOUD",),
    "reference_map": ("CLC",),
    "land_cover": ("IGBP", "LCCS_LC", "LCCS_LU", "LCCS_HYDRO"),
    "label_map": ("LABEL",),
}
"""The arrays of a sample, each at its native resolution, and the order of bands inside.

After S1 and S2 come the arrays that ride along when a source has them: elevation in metres (`dem`), NDVI, classes of
land cover (TerraMesh's `lulc`, the CORINE codes of reBEN's `reference_map`, the four schemes of SEN12MS), clouds of
S2 (`cloud_mask`), and any other raster of classes (`label_map`). Names are only ever added, at the end.
"""

ARRAY_GSD_M: Final[dict[str, int]] = {
    **dict.fromkeys(ARRAY_BANDS, 10),
    "s2_20m": 20,
    "s2_60m": 60,
}

ALL_BANDS: Final[tuple[str, ...]] = tuple(band for bands in ARRAY_BANDS.values() for band in bands)
"""Every band in storage order; bit i of a sample's presence mask belongs to `ALL_BANDS[i]`."""

MODALITY_ARRAYS: Final[dict[str, tuple[str, ...]]] = {"s1": ("s1",), "s2": ("s2_10m", "s2_20m", "s2_60m")}
"""What a pair is made of. Every other array rides along."""

RIDERS: Final[tuple[str, ...]] = tuple(
    array for array in ARRAY_BANDS if not any(array in arrays for arrays in MODALITY_ARRAYS.values())
)

CLASS_ARRAYS: Final = ("lulc", "cloud_mask", "reference_map", "land_cover", "label_map")
"""Riders whose numbers are classes: counted one by one, never averaged."""

_CLASS_BANDS: Final = frozenset(band for array in CLASS_ARRAYS for band in ARRAY_BANDS[array])


def array_of(band: str) -> str:
    """The array that stores `band`; KeyError if there is no such band."""
    for array, bands in ARRAY_BANDS.items():
        if band in bands:
            return array
    raise KeyError(band)


def are_classes(bands: tuple[str, ...], units: str) -> bool:
    """Whether the numbers of an array are classes; its name does not tell, for archives have names of their own."""
    return units == "class" or _CLASS_BANDS.issuperset(bands)


def presence_mask(bands: tuple[str, ...] | list[str]) -> int:
    """The bit mask (over `ALL_BANDS`) of the bands that a sample has."""
    return sum(1 << ALL_BANDS.index(band) for band in set(bands))


def present_bands(mask: int, array: str) -> tuple[str, ...]:
    """The bands of `array` that a sample with presence `mask` stores, in storage order."""
    return tuple(band for band in ARRAY_BANDS[array] if mask >> ALL_BANDS.index(band) & 1)
