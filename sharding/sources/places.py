"""Where the patches of a listing lie that its names and tables do not tell: asked of the source, one by one."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sharding.errors import DataError
from sharding.sources.base import METADATA, PairError, Source
from sharding.sources.listing import Pair, Refusal, own_columns, pairs_of
from sharding.sources.raster import to_degrees


def places_of(
    table: pa.Table, sources: list[Source], refused: list[Refusal], *, required: bool
) -> npt.NDArray[np.float64]:
    """Longitude and latitude of the pairs of a plan's rows, (rows, 2).

    NaN where the place cannot be read (then the pair is added to `refused`), and where a source knows none; with
    `required` that is a DataError.
    """
    found = np.full((len(table), 2), np.nan)
    by_crs: dict[str, list[tuple[int, Pair, tuple[float, float]]]] = {}
    for number in np.unique(table["source"].to_numpy()).tolist():
        source = sources[number]
        rows = np.flatnonzero(table["source"].to_numpy() == number)
        for row, pair in zip(rows.tolist(), pairs_of(own_columns(table.take(rows), number)), strict=True):
            try:
                place = source.centre(pair)
            except PairError as error:
                refused.append(refusal_of(pair, source, error))
                continue
            if place is None and required:
                raise DataError(
                    f"{pair.key} of {source.root} has no coordinates, so --splits geographic cannot place it; "
                    "use --splits official or a FILE"
                )
            if place is not None:
                by_crs.setdefault(place[0], []).append((row, pair, place[1:]))
    for crs, members in sorted(by_crs.items()):
        try:
            found[[row for row, _, _ in members]] = to_degrees(crs, [point for _, _, point in members])
        except ValueError:  # one bad place fails all of its CRS, so each is asked for alone
            for row, pair, point in members:
                try:
                    found[row] = to_degrees(crs, [point])[0]
                except ValueError as error:
                    source = sources[int(table["source"][row].as_py())]
                    message = f"its centre {point[0]:.10g} {point[1]:.10g} in {crs:.40} is no place on earth ({error})"
                    refused.append(refusal_of(pair, source, PairError(METADATA, pair.s2, message)))
    return found


def refusal_of(pair: Pair, source: Source, error: PairError) -> Refusal:
    """As the list of refused pairs keeps it."""
    return Refusal(key=pair.key, source=source.name, reason=error.reason, file=error.file, message=error.message)
