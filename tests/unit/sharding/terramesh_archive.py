"""A small TerraMesh archive, written with the real zarr and tarfile, for tests of its source."""

import io
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numcodecs
import numpy as np
import zarr

L1C = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
L2A = tuple(band for band in L1C if band != "B10")
SIDE = 40
NOON = 1_590_000_000 * 10**9
"""2020-05-20T18:40:00, in nanoseconds."""

_WRITTEN: dict[tuple, bytes] = {}


def zipped_zarr(arrays: dict[str, np.ndarray], attributes: dict[str, dict] | None = None, **options) -> bytes:
    """A Zarr v2 group, consolidated, in a ZIP; `options` are those of its array `bands`."""
    store: dict = {}
    group = zarr.open_group(zarr.storage.MemoryStore(store), mode="w", zarr_format=2)
    for name, data in arrays.items():
        data = np.asarray(data)
        own = {"compressors": numcodecs.Blosc("lz4"), **(options if name == "bands" else {})}
        array = group.create_array(name, shape=data.shape, dtype=data.dtype, **({"chunks": data.shape} | own))
        array[...] = data
        array.attrs.update((attributes or {}).get(name, {}))
    zarr.consolidate_metadata(group.store, zarr_format=2)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in sorted(store.items()):
            archive.writestr(name, content.to_bytes())
    return buffer.getvalue()


@dataclass
class Tile:
    """One place in all modalities: (1, bands, height, width) by modality, and what stands beside them."""

    name: str
    bands: dict[str, np.ndarray]
    beside: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """More arrays, or others than the usual, by modality."""

    def member(self, modality: str, centre: tuple[float, float] = (9.8, 57.2)) -> bytes:
        arrays = {
            "bands": self.bands[modality],
            "center_lon": np.float64(centre[0]),
            "center_lat": np.float64(centre[1]),
            "crs": np.int64(32632),
            "time": np.int64(0 if modality == "DEM" else NOON),
        }
        if modality.startswith("S2"):
            arrays["cloud_mask"] = np.tile(np.uint8([0, 1]), (1, SIDE, SIDE // 2))
        arrays |= self.beside.get(modality, {})
        # zarr takes a while to write a group, and most tests write the same ones.
        written = tuple((name, data.dtype.str, data.shape, data.tobytes()) for name, data in arrays.items())
        if written not in _WRITTEN:
            _WRITTEN[written] = zipped_zarr(arrays)
        return _WRITTEN[written]


def make_tile(name: str, seed: int, s1: str = "S1RTC", l1c_offset: int = 0, l2a_offset: int = 0) -> Tile:
    """Bare ground, bright enough that level 2A alone does not tell its offset, with noise of its own."""
    rng = np.random.default_rng(seed)
    ground = rng.uniform(1200, 2600, (SIDE, SIDE))
    l1c = np.stack([ground * rng.uniform(0.9, 1.1) + 150 for _ in L1C])
    l1c[L1C.index("B10")] = rng.uniform(8, 20, (SIDE, SIDE))
    l2a = np.stack([l1c[L1C.index(band)] * 1.1 - 60 + rng.normal(0, 10, (SIDE, SIDE)) for band in L2A])
    bands = {
        s1: rng.normal([[[-11.0]], [[-18.0]]], 2.0, (2, SIDE, SIDE)).astype(np.float16),
        "S2L1C": (l1c + l1c_offset).astype(np.int16),
        "S2L2A": (l2a + l2a_offset).astype(np.int16),
        "DEM": rng.integers(0, 400, (1, SIDE, SIDE)).astype(np.int16),
        "NDVI": rng.uniform(-0.2, 0.8, (1, SIDE, SIDE)).astype(np.float16),
        "LULC": rng.integers(0, 10, (1, SIDE, SIDE)).astype(np.uint8),
    }
    return Tile(name, {modality: data[None] for modality, data in bands.items()})


def write_tar(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]], **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_archive(
    root: Path,
    tiles: list[Tile],
    split: str = "val",
    shard: str = "majortom_shard_000001",
    without: tuple[str, ...] = (),
) -> None:
    """One tar a modality."""
    for modality in tiles[0].bands:
        if modality not in without:
            members = {f"{tile.name}.zarr.zip": tile.member(modality) for tile in tiles}
            write_tar(root / split / modality / f"{shard}.tar", members)
