"""The type in which S1 is stored: float32 as a rule, float16 or scaled int16 where bytes count more than digits.

What a source has in a type that takes no more bytes than the one asked for stays as it came: converting it would gain
nothing.
"""

from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sharding.errors import DataError
from sharding.sources.base import NOT_FINITE, PHYSICS, PairError, Sample, StoredArray

S1_KINDS: Final = ("float32", "float16", "int16")

DB_PER_STEP: Final = 0.005
"""Of int16: it reaches from -163.8 to +163.8 dB and is at most 0.0025 dB off."""
INT16_NODATA: Final = -32768
_INT16_REACH: Final = 32767
_FLOAT16_REACH: Final = 65504.0

Values = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def store_s1(sample: Sample, kind: str) -> tuple[Sample, float]:
    """The sample with S1 stored as `kind`, and the most by which that has changed a pixel, in dB.

    float32 leaves S1 as it came, whatever its type; float16 and int16 convert what takes more bytes than they do.
    Pixels without data stay so: their number is rounded to float16, or is -32768. PairError when a value does not
    fit; DataError when int16 is asked for linear power.
    """
    assert kind in S1_KINDS, kind
    array = sample.arrays.get("s1")
    if array is None or kind == "float32":
        return sample, 0.0
    if kind == "int16" and array.units != "dB":
        raise DataError(
            f"S1 of {sample.key} is {array.units}, and int16 has steps of one size, which suit dB alone: build with "
            "--s1 float16 or --s1 float32"
        )
    if array.data.itemsize <= np.dtype(kind).itemsize:
        return sample, 0.0
    missing = _missing(array)
    values = (array.data.astype(np.float64) + array.radiometric_offset) * array.scale
    if not np.isfinite(values[~missing]).all():
        raise PairError(NOT_FINITE, sample.key, "S1 has pixels that are NaN or infinite; leave the pair out")
    convert = _to_float16 if kind == "float16" else _to_int16
    data, scale, nodata = convert(values, missing, array.nodata)
    decoded = data.astype(np.float64) * scale
    error_db = _largest_error_db(values[~missing], decoded[~missing], array.units)
    if not np.isfinite(error_db) or (kind == "int16" and error_db > DB_PER_STEP):
        raise PairError(
            PHYSICS,
            sample.key,
            f"S1 has values that {kind} cannot hold; leave the pair out, or build with --s1 float32",
        )
    if nodata is not None and (data[~missing] == nodata).any():
        raise PairError(
            PHYSICS,
            sample.key,
            f"as {kind}, a value of S1 would be {nodata:g}, which means no data; build with --s1 float32",
        )
    stored = replace(array, data=data, scale=scale, radiometric_offset=0.0, nodata=nodata)
    return replace(sample, arrays={**sample.arrays, "s1": stored}), error_db


def _missing(array: StoredArray) -> Mask:
    if array.nodata is None:
        return np.zeros(array.data.shape, np.bool_)
    missing: Mask = array.data == array.nodata
    if array.nodata != array.nodata:
        missing = np.isnan(array.data)
    return missing


def _to_float16(values: Values, missing: Mask, nodata: float | None) -> tuple[npt.NDArray[Any], float, float | None]:
    number = None if nodata is None else float(np.float16(np.clip(nodata, -_FLOAT16_REACH, _FLOAT16_REACH)))
    with np.errstate(over="ignore"):  # to infinity, which is refused by its error
        data = np.where(missing, 0.0, values).astype(np.float16)
    if number is not None:
        data[missing] = number
    return data, 1.0, number


def _to_int16(values: Values, missing: Mask, nodata: float | None) -> tuple[npt.NDArray[Any], float, float | None]:
    steps = np.rint(np.where(missing, 0.0, values) / DB_PER_STEP)
    # What does not fit is more than a step off at the end of the range, by which it is told.
    data = np.clip(steps, -_INT16_REACH, _INT16_REACH).astype(np.int16)
    if nodata is None:
        return data, DB_PER_STEP, None
    data[missing] = INT16_NODATA
    return data, DB_PER_STEP, float(INT16_NODATA)


def _largest_error_db(values: Values, decoded: Values, units: str) -> float:
    """The most by which a pixel has changed; infinite where one has left the range, or has become or been 0 power."""
    if not values.size:
        return 0.0
    if units == "dB":
        return float(np.abs(decoded - values).max())
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.abs(10.0 * np.log10(decoded / values))
    errors[decoded == values] = 0.0
    return float(np.nan_to_num(errors, nan=np.inf, posinf=np.inf).max())
