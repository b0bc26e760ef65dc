"""Real BigEarthNet pairs as an archive of any size: the demo's pairs, written again under other names."""

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ConfigError
from sharding.sources import open_source
from sharding.sources.base import Sample

SAMPLES = Path("demo/data")
_SOURCES = (("bigearthnet-v1", "bigearthnet-v1"), ("reben", "reben-0.6.0"), ("reben", "reben-0.6.10"))
_TILE, _CRS, _WEST, _NORTH = "33UUP", "EPSG:32633", 300_000, 5_400_000
_DATES = ("20170613T165043", "20170613T101031")


def read_pairs(samples: Path = SAMPLES) -> list[Sample]:
    """The pairs with all 12 bands that `make setup` has fetched; ConfigError when it has not."""
    if not all((samples / folder).is_dir() for _, folder in _SOURCES):
        raise ConfigError(f"{samples} has no sample pairs; run make setup first")
    found: dict[str, Sample] = {}
    for name, folder in _SOURCES:
        source = open_source(name, str(samples / folder))
        for pair in source.list().pairs:
            sample = source.read(pair)
            if len(sample.bands) == 14:
                found.setdefault(sample.key, sample)
    return list(found.values())


def write_archive(root: Path, num_pairs: int, samples: Path = SAMPLES) -> int:
    """`num_pairs` in reBEN's layout, as uncompressed GeoTIFFs like the official ones; returns their bytes."""
    pairs = read_pairs(samples)
    rows = []
    for number in range(num_pairs):
        sample = pairs[number % len(pairs)]
        column, row = number % 90, number // 90
        key = f"S2A_MSIL2A_{_DATES[1]}_N9999_R022_T{_TILE}_{column:02d}_{row:02d}"
        s1 = f"S1A_IW_GRDH_1SDV_{_DATES[0]}_{_TILE}_{column}_{row}"
        corner = (_WEST + 1200 * column, _NORTH - 1200 * row)
        for band, plane in planes_of(sample):
            is_s1 = band in ("VV", "VH")
            folder = (
                root / "BigEarthNet-S1" / s1.rsplit("_", 3)[0] / s1
                if is_s1
                else root / "BigEarthNet-S2" / key.rsplit("_", 2)[0] / key
            )
            _write(folder / f"{s1 if is_s1 else key}_{band}.tif", plane, corner)
        rows.append({"patch_id": key, "labels": list(sample.labels), "split": "train", "s1_name": s1})
    pq.write_table(pa.Table.from_pylist(rows), root / "metadata.parquet")
    return sum(path.stat().st_size for path in root.rglob("*.tif"))


def planes_of(sample: Sample) -> Iterator[tuple[str, np.ndarray]]:
    """Each band and its pixels, at native resolution."""
    for array in sample.arrays.values():
        if array.bands[0] in ("VV", "VH") or array.units == "DN":
            yield from zip(array.bands, array.data, strict=True)


def _write(path: Path, plane: np.ndarray, corner: tuple[int, int]) -> None:
    import rasterio
    from rasterio.transform import Affine

    path.parent.mkdir(parents=True, exist_ok=True)
    gsd = 1200 / plane.shape[0]
    with (
        warnings.catch_warnings(),
        rasterio.open(
            path,
            "w",
            driver="GTiff",
            dtype=plane.dtype,
            count=1,
            height=plane.shape[0],
            width=plane.shape[1],
            crs=_CRS,
            transform=Affine(gsd, 0, corner[0], 0, -gsd, corner[1]),
        ) as file,
    ):
        file.write(plane, 1)


def copy_bytes(root: Path, target: Path) -> None:
    """Every raster of the archive read and written once, into one file, onto the disk."""
    import os

    with target.open("wb") as out:
        for path in sorted(root.rglob("*.tif")):
            with path.open("rb") as file:
                shutil.copyfileobj(file, out, 1 << 20)
        out.flush()
        os.fsync(out.fileno())
