"""SEN12MS's scene labels: shares of the 17 IGBP classes a patch, in a pickle, which is read as plain numbers only.

Source: Schmitt et al., SEN12MS (2019) and its repository: the 17 classes are merged into the 10 of the 2020 Data Fusion
Contest by adding their shares, and a scene has every class with a share of 0.1 or more. Where one class a scene is
asked for, it is the one with the largest share, the first of equal ones.
"""

import io
import pickle
from typing import Any, Final, NamedTuple

import numpy as np

from sharding.errors import DataError
from sharding.sources.patch_pickle import BROKEN

CLASSES: Final = (
    "Forest",
    "Shrubland",
    "Savanna",
    "Grassland",
    "Wetlands",
    "Croplands",
    "Urban/Built-up",
    "Snow/Ice",
    "Barren",
    "Water",
)
"""Of the 2020 Data Fusion Contest, in its order."""
IGBP_TO_CLASS: Final = (1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 6, 8, 9, 10)
"""Of IGBP class 1 to 17: the number in `CLASSES`, counted from 1."""
THRESHOLD: Final = 0.1

_NUMPY: Final = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
}


class SceneLabels(NamedTuple):
    """What is in a patch."""

    classes: tuple[str, ...]
    """With a share of `THRESHOLD` or more, in the order of `CLASSES`."""
    dominant: str
    """The one with the largest share."""


def parse_labels(content: bytes, path: str) -> dict[str, SceneLabels]:
    """Labels by the name of a patch (as the lists have it, without .tif); DataError when it is anything else."""
    try:
        table = _Unpickler(io.BytesIO(content)).load()
    except (*BROKEN, ModuleNotFoundError) as error:
        raise DataError(
            f"{path} is no pickle of plain numbers ({error}); fetch it again, and do not trust it"
        ) from error
    if not isinstance(table, dict):
        raise DataError(f"{path} is a pickle of {type(table).__name__}, not of shares by patch; fetch it again")
    return {str(name).removesuffix(".tif"): _classes(shares, str(name), path) for name, shares in table.items()}


def _classes(shares: Any, name: str, path: str) -> SceneLabels:
    vector = np.asarray(shares).reshape(-1)
    if vector.shape != (len(IGBP_TO_CLASS),) or vector.dtype.kind not in "fiu":
        raise DataError(f"{path} has {vector.size} numbers for {name}, {len(IGBP_TO_CLASS)} were expected")
    merged = np.zeros(len(CLASSES))
    np.add.at(merged, np.array(IGBP_TO_CLASS) - 1, vector.astype(np.float64))
    classes = tuple(CLASSES[i] for i in np.flatnonzero(merged >= THRESHOLD))
    return SceneLabels(classes, CLASSES[int(merged.argmax())])


class _Unpickler(pickle.Unpickler):
    """Knows how an array of numbers is made, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NUMPY:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and nothing was run")
        return super().find_class(module, name)
