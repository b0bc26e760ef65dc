"""What both versions of BigEarthNet have in common: how a sample is made, and how rows are refused."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sharding.errors import ConfigError
from sharding.sources.assemble import Radiometry, arrays_of, rider
from sharding.sources.base import GRIDS, WRONG_TYPE, PairError, Sample, Source
from sharding.sources.listing import COLUMNS, Pair, Refusal
from sharding.sources.names import PATCH_PIXELS
from sharding.sources.raster import Raster

LEVEL: Final = "L2A"
_RADIOMETRY: Final = Radiometry(s1_units="dB")


def require_level(source: Source) -> None:
    """ConfigError when a level is asked for that BigEarthNet has not."""
    if source.options.s2_level not in ("", LEVEL):
        raise ConfigError(f"{source.name} has Sentinel-2 as {LEVEL} only, not as {source.options.s2_level}")


def sample_of(
    source: Source,
    pair: Pair,
    rasters: dict[str, Raster],
    *,
    labels: tuple[str, ...],
    attributes: dict[str, Any],
    reference_map: Raster | None = None,
) -> Sample:
    """The sample made of one raster a band, 120 pixels a side at 10 m, and of the map of land cover if there is one."""
    arrays = arrays_of(rasters, _RADIOMETRY, pixels_10m=PATCH_PIXELS)
    if reference_map is not None:
        _check_map(reference_map, rasters["VV"])
        arrays["reference_map"] = rider("reference_map", {"CLC": reference_map}, units="class")
    dates = {"s1": pair.s1_date, "s2": pair.s2_date}
    return Sample(
        key=pair.key,
        source=source.name,
        arrays=arrays,
        crs=rasters["VV"].grid.crs,
        level=LEVEL,
        dates={half: date for half, date in dates.items() if date},
        labels=labels,
        split=pair.split,
        attributes=attributes,
    )


def _check_map(raster: Raster, reference: Raster) -> None:
    if raster.data.dtype != np.uint16:
        raise PairError(WRONG_TYPE, raster.path, f"the map is {raster.data.dtype}, codes of CORINE are uint16")
    if raster.grid != reference.grid:
        raise PairError(GRIDS, raster.path, f"the map does not lie on the grid of {reference.path}; fetch it again")


def listing_table(columns: dict[str, Any]) -> pa.Table:
    """The columns of a listing that the source fills itself; s2 is the key, and what is not given is null."""
    num_rows = len(columns["key"])
    columns = {"s2": columns["key"], "labels": pa.nulls(num_rows, COLUMNS.field("labels").type), **columns}
    own = [pa.field(name, column.type) for name, column in columns.items() if name not in COLUMNS.names]
    return pa.table(columns, schema=pa.schema([*COLUMNS, *own]))


def refuse(
    table: pa.Table,
    wrong: npt.NDArray[np.bool_],
    told: Callable[[dict[str, Any]], Refusal],
    refused: list[Refusal],
) -> pa.Table:
    """`table` without the rows that are `wrong`; `refused` gets what `told` makes of each."""
    if not wrong.any():
        return table
    refused += [told(row) for row in table.filter(pa.array(wrong)).to_pylist()]
    return table.filter(pa.array(~wrong))
