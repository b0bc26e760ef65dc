"""A sheet of samples: S2 in true colour over S1 as a composite, the query first, read from the data set."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError, DataError
from sharding.dataset import open_dataset
from sharding.pictures import Arrays, Rgb, pair_pictures, stretch
from sharding.read_sample import READERS, Located, read_indexes, read_sample
from sharding.store import Store

_COLUMNS: Final = 6
_CELL_INCHES: Final = 1.7
_DPI: Final = 120
_KEY_CHARACTERS: Final = 24
_LEAST_POWER: Final = 1e-10
_EMPTY: Final = np.full((8, 8, 3), 235, np.uint8)


def write_sheet(path: str, url: str, fingerprint: str, keys: Sequence[str], captions: Sequence[str]) -> None:
    """A PNG at `path`, which may be a URL, of the samples `keys` of the data set at `url`, each with its caption.

    Raises ConfigError when the data set is another one than the store's, DataError when a sample is not there.
    """
    store, manifest = open_dataset(url)
    if manifest.fingerprint != fingerprint:
        raise ConfigError(
            f"the data set at {url} has the fingerprint {manifest.fingerprint[:12]}, the embeddings are of "
            f"{fingerprint[:12]}; say where that one lies: --data URL"
        )
    wanted = {key.encode() for key in keys}
    found: dict[str, Located] = {}
    for shard, index in read_indexes(store, manifest.shards):
        for number in np.flatnonzero(np.isin(index.records["key"], list(wanted))).tolist():
            record = index.records[number]
            sample = Located(shard=shard, arrays=index.arrays, record=record, number=number, checksum=index.checksum)
            found.setdefault(sample.key, sample)
    if missing := [key for key in keys if key not in found]:
        raise DataError(f"{url} has no sample '{missing[0]}', which the store of embeddings names")
    with ThreadPoolExecutor(READERS) as executor:
        arrays = list(executor.map(lambda key: read_sample(store, manifest, found[key]), keys))
    folder, _, name = path.rpartition("/")
    Store(folder or ".").write(name, _drawn([_pair(one) for one in arrays], keys, captions))


def composite(arrays: Arrays) -> Rgb | None:
    """S1 as colours: VV red, VH green, VV - VH in dB blue, each stretched; None without both."""
    holding = {band: array for array in arrays.values() for band in array.bands if band in ("VV", "VH")}
    if len(holding) < 2:
        return None
    planes = {band: _decibels(array.values(band), array.spec.units) for band, array in holding.items()}
    if planes["VV"].shape != planes["VH"].shape:
        return None
    return np.stack([stretch(plane)[0] for plane in (planes["VV"], planes["VH"], planes["VV"] - planes["VH"])], axis=-1)


def _decibels(values: npt.NDArray[np.float64], units: str) -> npt.NDArray[np.float64]:
    return 10 * np.log10(np.maximum(values, _LEAST_POWER)) if units == "linear" else values


def _pair(arrays: Arrays) -> tuple[Rgb, Rgb]:
    """What is shown of S2 and of S1; grey where a half has nothing to show."""
    pictures = pair_pictures(arrays)
    optical = next((p.rgb for p in pictures if p.name not in ("VV", "VH", "nir")), None)
    radar = composite(arrays)
    if radar is None:
        radar = next((p.rgb for p in pictures if p.name in ("VV", "VH")), None)
    return (_EMPTY if optical is None else optical), (_EMPTY if radar is None else radar)


def _drawn(pairs: list[tuple[Rgb, Rgb]], keys: Sequence[str], captions: Sequence[str]) -> bytes:
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(pairs))
    lines = math.ceil(len(pairs) / columns)
    figure = Figure(figsize=(columns * _CELL_INCHES, lines * (2 * _CELL_INCHES + 0.5)), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(2 * lines, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for place, ((optical, radar), key, caption) in enumerate(zip(pairs, keys, captions, strict=True)):
        line, column = divmod(place, columns)
        for offset, rgb in enumerate((optical, radar)):
            axes[2 * line + offset][column].imshow(rgb, interpolation="nearest")
        short = key if len(key) <= _KEY_CHARACTERS else f"…{key[-_KEY_CHARACTERS + 1 :]}"
        axes[2 * line][column].set_title(f"{caption}\n{short}", fontsize=6)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
