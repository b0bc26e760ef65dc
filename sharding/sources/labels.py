"""The nomenclatures of BigEarthNet: 43 CORINE classes of version 1.0 -> the 19 classes of both versions.

Source: Sumbul et al., BigEarthNet-MM (2021), table 1. The 19 in the order of that table; classes mapped to None were
left out of the nomenclature by its authors.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

LABELS_19: Final = (
    "Urban fabric",
    "Industrial or commercial units",
    "Arable land",
    "Permanent crops",
    "Pastures",
    "Complex cultivation patterns",
    "Land principally occupied by agriculture, with significant areas of natural vegetation",
    "Agro-forestry areas",
    "Broad-leaved forest",
    "Coniferous forest",
    "Mixed forest",
    "Natural grassland and sparsely vegetated areas",
    "Moors, heathland and sclerophyllous vegetation",
    "Transitional woodland, shrub",
    "Beaches, dunes, sands",
    "Inland wetlands",
    "Coastal wetlands",
    "Inland waters",
    "Marine waters",
)

LABEL_43_TO_19: Final[dict[str, str | None]] = {
    "Continuous urban fabric": "Urban fabric",
    "Discontinuous urban fabric": "Urban fabric",
    "Industrial or commercial units": "Industrial or commercial units",
    "Road and rail networks and associated land": None,
    "Port areas": None,
    "Airports": None,
    "Mineral extraction sites": None,
    "Dump sites": None,
    "Construction sites": None,
    "Green urban areas": None,
    "Sport and leisure facilities": None,
    "Non-irrigated arable land": "Arable land",
    "Permanently irrigated land": "Arable land",
    "Rice fields": "Arable land",
    "Vineyards": "Permanent crops",
    "Fruit trees and berry plantations": "Permanent crops",
    "Olive groves": "Permanent crops",
    "Pastures": "Pastures",
    "Annual crops associated with permanent crops": "Permanent crops",
    "Complex cultivation patterns": "Complex cultivation patterns",
    "Land principally occupied by agriculture, with significant areas of natural vegetation": (
        "Land principally occupied by agriculture, with significant areas of natural vegetation"
    ),
    "Agro-forestry areas": "Agro-forestry areas",
    "Broad-leaved forest": "Broad-leaved forest",
    "Coniferous forest": "Coniferous forest",
    "Mixed forest": "Mixed forest",
    "Natural grassland": "Natural grassland and sparsely vegetated areas",
    "Moors and heathland": "Moors, heathland and sclerophyllous vegetation",
    "Sclerophyllous vegetation": "Moors, heathland and sclerophyllous vegetation",
    "Transitional woodland/shrub": "Transitional woodland, shrub",
    "Beaches, dunes, sands": "Beaches, dunes, sands",
    "Bare rock": None,
    "Sparsely vegetated areas": "Natural grassland and sparsely vegetated areas",
    "Burnt areas": None,
    "Inland marshes": "Inland wetlands",
    "Peatbogs": "Inland wetlands",
    "Salt marshes": "Coastal wetlands",
    "Salines": "Coastal wetlands",
    "Intertidal flats": None,
    "Water courses": "Inland waters",
    "Water bodies": "Inland waters",
    "Coastal lagoons": "Marine waters",
    "Estuaries": "Marine waters",
    "Sea and ocean": "Marine waters",
}


_UNKNOWN: Final = 1 << len(LABELS_19)
"""The bit behind those of the 19."""


def to_19(labels: list[str]) -> tuple[str, ...]:
    """The labels of the 19 in their order; KeyError naming a label that is in neither nomenclature."""
    mapped = {LABEL_43_TO_19[label] if label in LABEL_43_TO_19 else _known(label) for label in labels}
    return tuple(label for label in LABELS_19 if label in mapped)


def to_19_column(lists: pa.Array) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """`to_19` of each list of a column, and which rows have a label that is in neither nomenclature."""
    encoded = pc.list_flatten(lists).dictionary_encode()
    bits = np.array([*map(_bit, encoded.dictionary.to_pylist()), _UNKNOWN], np.int32)
    of_labels = bits[pc.fill_null(encoded.indices, len(bits) - 1).to_numpy(zero_copy_only=False)]
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    filled = np.flatnonzero(counts)
    of_rows = np.zeros(len(lists), np.int32)
    of_rows[filled] = np.bitwise_or.reduceat(of_labels, (np.cumsum(counts) - counts)[filled])
    # Few sets of labels ever occur, so each is spelt out once.
    distinct, rows = np.unique(of_rows, return_inverse=True)
    spelt = [[label for i, label in enumerate(LABELS_19) if mask >> i & 1] for mask in distinct.tolist()]
    return pa.array(spelt, pa.list_(pa.string())).take(pa.array(rows)), (of_rows & _UNKNOWN) != 0


def _bit(label: str | None) -> int:
    label = LABEL_43_TO_19.get(label or "", label)
    if label is None:
        return 0
    return 1 << LABELS_19.index(label) if label in LABELS_19 else _UNKNOWN


def _known(label: str) -> str:
    if label not in LABELS_19:
        raise KeyError(label)
    return label
