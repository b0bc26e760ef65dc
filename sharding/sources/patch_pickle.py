"""Patches of `bigearthnet_patch_interface` out of their pickles, without running anything that a pickle asks for.

A pickle may name any function to be called while it is read. Here each name must be one of the few that a patch needs,
and even these are replaced by containers of our own: no class of the interface and no function of numpy is called. The
containers are made anew for each pickle, so that one cannot change what the next one meets. Any other name is refused.
"""

import io
import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sharding.sources.base import BANDS, CORRUPT, METADATA, MISSING_BAND, MISSING_HALF, WRONG_SIZE, PairError
from sharding.sources.names import BANDS_12

_INTERFACE: Final = "bigearthnet_patch_interface"
_PATCH_CLASSES: Final = {
    (f"{_INTERFACE}.merged_interface", "BigEarthNet_S1_S2_Patch"),
    (f"{_INTERFACE}.s1_interface", "BigEarthNet_S1_Patch"),
    (f"{_INTERFACE}.s2_interface", "BigEarthNet_S2_Patch"),
    *(
        (f"{_INTERFACE}.band_interface", name)
        for name in ("BenS1_Band", "BenS2_10mBand", "BenS2_20mBand", "BenS2_60mBand")
    ),
}
_BOTH: Final = "BigEarthNet_S1_S2_Patch"
_DTYPE: Final = re.compile(r"[iuf][1248]")
_LONGEST_SIDE: Final = 4096
_HALVES: Final = {
    "s1_patch": {"VV": "bandVV", "VH": "bandVH"},
    "s2_patch": {band: f"band{band.removeprefix('B')}" for band in BANDS_12},
}
"""Attribute of a patch -> band -> attribute of its half."""
BROKEN: Final = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    MemoryError,
    RecursionError,
)
"""What reading a pickle that is cut short or was made to break things raises."""


@dataclass(frozen=True, kw_only=True)
class PickledPatch:
    """What a patch holds."""

    planes: dict[str, npt.NDArray[Any]]
    """By band: VV, VH and the 12 of Sentinel-2; (height, width), as stored."""
    labels: tuple[str, ...] | None
    """Of the 43 classes; None where it has none."""
    new_labels: tuple[str, ...] | None
    """Of the 19 classes."""


def load_patch(content: bytes, path: str) -> PickledPatch:
    """The patch in a pickle; PairError that names `path` when it is no patch, or asks for anything else."""
    try:
        patch = _Unpickler(io.BytesIO(content)).load()
    except _Forbidden as error:
        raise PairError(
            CORRUPT,
            path,
            f"its pickle asks for {error}, which no patch needs; nothing was run, do not trust this file",
        ) from error
    except BROKEN as error:
        raise PairError(CORRUPT, path, f"it is no pickle of a patch ({error!r}); fetch it again") from error
    if not isinstance(patch, _Container):
        raise PairError(CORRUPT, path, f"it is a pickle of {type(patch).__name__}, not of a patch; fetch it again")
    if patch.kind != _BOTH:
        raise PairError(MISSING_HALF, path, f"it is a {patch.kind}; both halves are in a {_BOTH}")
    planes = {
        band: _plane(patch.fields.get(half), band, attribute, path)
        for half, bands in _HALVES.items()
        for band, attribute in bands.items()
    }
    labels, new_labels = (_labels(patch.fields.get(name), name, path) for name in ("labels", "new_labels"))
    return PickledPatch(planes=planes, labels=labels, new_labels=new_labels)


class _Forbidden(pickle.UnpicklingError):
    """A name that is not on the list."""


class _Container:
    """Stands for an object of the interface: its class and its attributes."""

    kind = ""
    fields: Mapping[str, Any] = MappingProxyType({})

    def __setstate__(self, state: Any) -> None:
        # pydantic's bands keep their attributes one level down.
        fields = state["__dict__"] if isinstance(state, dict) and "__dict__" in state else state
        if not isinstance(fields, dict):
            raise pickle.UnpicklingError(f"the state of a {self.kind} is {type(fields).__name__}")
        self.fields = fields


class _Dtype:
    """Stands for numpy.dtype: a kind and a size, and then the order of bytes."""

    def __init__(self, name: Any = "", *_: Any) -> None:
        if not isinstance(name, str) or not _DTYPE.fullmatch(name):
            raise pickle.UnpicklingError(f"an array of the type {name!r}")
        self.name = name
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"bytes in the order {state[1]!r}")
        self.order = state[1]


class _Array:
    """Stands for numpy.ndarray: what its pickle says of it, all of which `plane` checks."""

    state: tuple[Any, ...] = ()

    def __init__(self, *_: Any) -> None:
        """Whatever numpy's would be called with."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, content = state
        self.state = shape, dtype, "F" if is_fortran else "C", content

    def plane(self) -> npt.NDArray[Any]:
        """The array; UnpicklingError when it is no image."""
        shape, dtype, order, content = self.state
        if not (
            isinstance(shape, tuple)
            and len(shape) == 2
            and all(isinstance(side, int) and 0 < side <= _LONGEST_SIDE for side in shape)
            and isinstance(dtype, _Dtype)
            and isinstance(content, (bytes, bytearray))
        ):
            raise pickle.UnpicklingError("an array that is no image")
        kind = np.dtype(f"{dtype.order.replace('|', '=')}{dtype.name}")
        if len(content) != math.prod(shape) * kind.itemsize:
            raise pickle.UnpicklingError(f"{len(content)} bytes for {shape[0]}x{shape[1]} pixels of {kind}")
        plane = np.frombuffer(content, kind).reshape(shape, order="F" if order == "F" else "C")
        return np.ascontiguousarray(plane.astype(kind.newbyteorder("="), copy=False))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        array: type[_Array] = type("Array", (_Array,), {})

        def reconstruct(*_: Any) -> _Array:
            return array()

        def from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
            made: _Array = array()
            made.state = shape, dtype, order, content
            return made

        self._known: dict[tuple[str, str], Any] = {
            **{name: type(name[1], (_Container,), {"kind": name[1]}) for name in _PATCH_CLASSES},
            ("numpy", "ndarray"): array,
            ("numpy", "dtype"): type("Dtype", (_Dtype,), {}),
        }
        for core in ("numpy.core", "numpy._core"):
            self._known[f"{core}.multiarray", "_reconstruct"] = reconstruct
            self._known[f"{core}.numeric", "_frombuffer"] = from_buffer

    def find_class(self, module_name: str, global_name: str) -> Any:
        found = self._known.get((module_name, global_name))
        if found is None:
            raise _Forbidden(f"{module_name}.{global_name}")
        return found


def _plane(half: Any, band: str, attribute: str, path: str) -> npt.NDArray[Any]:
    pickled = half.fields.get(attribute) if isinstance(half, _Container) else None
    if not isinstance(pickled, _Container) or not isinstance(pickled.fields.get("data"), _Array):
        raise PairError(MISSING_BAND, path, f"it has no {band}; make the LMDB again")
    if pickled.fields.get("name") != band:
        raise PairError(BANDS, path, f"{band} calls itself {pickled.fields.get('name')!r}; make the LMDB again")
    array: _Array = pickled.fields["data"]
    try:
        return array.plane()
    except (pickle.UnpicklingError, ValueError) as error:
        raise PairError(WRONG_SIZE, path, f"{band} is {error}; make the LMDB again") from error


def _labels(labels: Any, name: str, path: str) -> tuple[str, ...] | None:
    if labels is None:
        return None
    if not isinstance(labels, (list, tuple)) or not all(isinstance(label, str) for label in labels):
        raise PairError(METADATA, path, f"its {name} are no list of words; make the LMDB again")
    return tuple(labels)
