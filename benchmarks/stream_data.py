"""The data of `benchmarks.stream`: the same pairs in every system's own format, made once and kept.

`python -m benchmarks.stream_data FORMAT FOLDER PAIRS` makes one format; those of the rivals run in their environment.
`arrays` holds the pixels as plain arrays. It is the memory-mapped rival, the source of all other formats but ours, and
the truth that every contender's batches are compared with; ours are made by the real builder from the same pixels.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SHAPES = {"s1": (2, 120, 120), "s2_10m": (4, 120, 120), "s2_20m": (6, 60, 60), "s2_60m": (2, 20, 20)}
DTYPES = {"s1": "float32", "s2_10m": "uint16", "s2_20m": "uint16", "s2_60m": "uint16"}
SAMPLE_BYTES = sum(int(np.prod(SHAPES[name])) * np.dtype(DTYPES[name]).itemsize for name in SHAPES)
SHARD_MIB = 64
GEOTIFF_PAIRS = 512
_PER_TILE = 90 * 90
_TILES = ("33UUP", "33UVP", "33UUQ", "33UVQ", "34UDU", "34UEU", "34UDV", "34UEV")
_DATES = ("20170613T165043", "20170613T101031")
_BANDS = {
    "s1": ("VV", "VH"),
    "s2_10m": ("B02", "B03", "B04", "B08"),
    "s2_20m": ("B05", "B06", "B07", "B8A", "B11", "B12"),
    "s2_60m": ("B01", "B09"),
}


class Truth:
    """The pixels of all pairs, memory-mapped, by row; `keys[row]` names the pair."""

    def __init__(self, folder: Path) -> None:
        root = folder / "arrays"
        self.keys = (root / "keys.txt").read_text().split()
        self.arrays = {name: np.load(root / f"{name}.npy", mmap_mode="r") for name in SHAPES}

    def __len__(self) -> int:
        return len(self.keys)

    def sample(self, row: int) -> dict[str, np.ndarray]:
        return {name: np.array(array[row]) for name, array in self.arrays.items()}


def names_of(number: int) -> tuple[str, str]:
    """The S2 and the S1 name of a made-up pair, as reBEN writes them."""
    tile, (row, column) = _TILES[number // _PER_TILE], divmod(number % _PER_TILE, 90)
    key = f"S2A_MSIL2A_{_DATES[1]}_N9999_R022_T{tile}_{column:02d}_{row:02d}"
    return key, f"S1A_IW_GRDH_1SDV_{_DATES[0]}_{tile}_{column}_{row}"


def make(name: str, folder: Path, num_pairs: int) -> None:
    """Make a format unless it is there; it appears whole or not at all."""
    if (folder / name).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    FORMATS[name](folder, partial, num_pairs)
    partial.rename(folder / name)


def _index(folder: Path, out: Path, num_pairs: int) -> None:
    """reBEN's table for made-up pairs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [names_of(number) for number in range(num_pairs)]
    rows = [{"patch_id": key, "labels": ["Pastures"], "split": "train", "s1_name": s1} for key, s1 in names]
    pq.write_table(pa.Table.from_pylist(rows), out / "metadata.parquet")


def _arrays(folder: Path, out: Path, num_pairs: int) -> None:
    from benchmarks.synthetic import SyntheticReBEN
    from sharding.sources.listing import Pair

    source = SyntheticReBEN(str(folder / "index"))
    files = {
        name: np.lib.format.open_memmap(out / f"{name}.npy", "w+", DTYPES[name], (num_pairs, *SHAPES[name]))
        for name in SHAPES
    }
    keys = []
    for row in range(num_pairs):
        key, s1 = names_of(row)
        sample = source.read(Pair(key=key, s1=s1, s2=key, labels=(), split="train", attributes={}))
        for name, array in sample.arrays.items():
            files[name][row] = array.data
        keys.append(key)
    for file in files.values():
        file.flush()
    (out / "keys.txt").write_text("\n".join(keys))


def _ours(codec: str) -> Callable[[Path, Path, int], None]:
    def build_it(folder: Path, out: Path, num_pairs: int) -> None:
        from sharding.builder import Means, build
        from sharding.plan import Settings
        from sharding.sources import SOURCES

        SOURCES["reben"] = ("benchmarks.synthetic:SyntheticReBEN", "reBEN's index with made-up pixels")
        settings = Settings(sources=(("reben", str(folder / "index")),), codec=codec, shard_mib=SHARD_MIB)
        build(settings, str(out), means=Means(workers=1))

    return build_it


def _rows(folder: Path, num_pairs: int) -> Iterator[tuple[int, str, dict[str, np.ndarray]]]:
    """Row, key and arrays of every pair, in an order as random as that of our shards."""
    truth = Truth(folder)
    for row in np.random.default_rng(0).permutation(num_pairs).tolist():
        yield row, truth.keys[row], truth.sample(row)


def _npy(folder: Path, out: Path, num_pairs: int) -> None:
    """WebDataset tars, a .npy member an array."""
    import webdataset

    with webdataset.ShardWriter(f"{out}/%06d.tar", maxsize=SHARD_MIB << 20, verbose=0, mtime=0) as writer:
        for _, key, arrays in _rows(folder, num_pairs):
            writer.write({"__key__": key, **{f"{name}.npy": array for name, array in arrays.items()}})


def _energon(folder: Path, out: Path, num_pairs: int) -> None:
    """Energon's index beside links to the same tars."""
    from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator

    names = sorted(path.name for path in (folder / "npy").glob("*.tar"))
    for name in names:
        (out / name).symlink_to(Path("..") / "npy" / name)
    WebdatasetPreparator.prepare_dataset(out, names, split_parts_ratio=[("train", 1.0)], workers=1)
    text = "__module__: megatron.energon\n__class__: CrudeWebdataset\nsubflavors: {}\n"
    (out / ".nv-meta" / "dataset.yaml").write_text(text)


def _terramesh(folder: Path, out: Path, num_pairs: int) -> None:
    """As TerraMesh is published: a series of tars a modality, a zarr.zip (Zarr v2, consolidated) a member."""
    import webdataset

    modalities = {"S1GRD": ("s1",), "S2L2A": ("s2_10m", "s2_20m", "s2_60m")}
    writers = {}
    for modality in modalities:
        (out / modality).mkdir()
        writers[modality] = webdataset.ShardWriter(
            f"{out}/{modality}/%06d.tar", maxcount=(SHARD_MIB << 20) // SAMPLE_BYTES, verbose=0, mtime=0
        )
    for _, key, arrays in _rows(folder, num_pairs):
        for modality, names in modalities.items():
            content = _zarr_zip({name: arrays[name] for name in names})
            writers[modality].write({"__key__": key, "zarr.zip": content})
    for writer in writers.values():
        writer.close()


def _zarr_zip(arrays: dict[str, np.ndarray]) -> bytes:
    import io
    import zipfile

    import zarr

    tree: dict[str, bytes] = {}
    group = zarr.group(store=tree)
    for name, array in arrays.items():
        group.create_dataset(f"bands_{name}", data=array, chunks=array.shape, compressor=None)
    zarr.consolidate_metadata(tree)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as file:
        for path, chunk in tree.items():
            file.writestr(path, bytes(chunk))
    return content.getvalue()


def _mds(folder: Path, out: Path, num_pairs: int) -> None:
    from benchmarks.stream_rivals import hide_unused_imports

    hide_unused_imports()
    from streaming import MDSWriter

    shapes = {name: ",".join(map(str, shape)) for name, shape in SHAPES.items()}
    columns = {"row": "int", **{name: f"ndarray:{DTYPES[name]}:{shapes[name]}" for name in SHAPES}}
    with MDSWriter(out=str(out), columns=columns, size_limit=SHARD_MIB << 20) as writer:
        for row, _, arrays in _rows(folder, num_pairs):
            writer.write({"row": row, **arrays})


def _litdata(folder: Path, out: Path, num_pairs: int) -> None:
    from litdata.streaming.cache import Cache

    cache = Cache(str(out), chunk_bytes=SHARD_MIB << 20)
    for index, (row, _, arrays) in enumerate(_rows(folder, num_pairs)):
        cache[index] = {"row": row, **arrays}
    cache.done()
    cache.merge()


def _h5(folder: Path, out: Path, num_pairs: int) -> None:
    """One file, one contiguous data set an array."""
    import h5py

    with h5py.File(out / "pairs.h5", "w") as file:
        sets = {name: file.create_dataset(name, (num_pairs, *SHAPES[name]), DTYPES[name]) for name in SHAPES}
        rows = file.create_dataset("row", (num_pairs,), "int64")
        for place, (row, _, arrays) in enumerate(_rows(folder, num_pairs)):
            rows[place] = row
            for name, array in arrays.items():
                sets[name][place] = array


def _geotiff(folder: Path, out: Path, num_pairs: int) -> None:
    """A folder a pair with an uncompressed GeoTIFF a band, as BigEarthNet is published."""
    import rasterio
    from rasterio.transform import Affine

    truth = Truth(folder)
    for row in range(min(num_pairs, GEOTIFF_PAIRS)):
        (out / truth.keys[row]).mkdir()
        for name, array in truth.sample(row).items():
            profile: dict[str, Any] = {
                "driver": "GTiff",
                "dtype": DTYPES[name],
                "count": 1,
                "height": array.shape[1],
                "width": array.shape[2],
                "crs": "EPSG:32633",
                "transform": Affine(1200 / array.shape[2], 0, 300_000, 0, -1200 / array.shape[1], 5_400_000),
            }
            for band, plane in zip(_BANDS[name], array, strict=True):
                with rasterio.open(out / truth.keys[row] / f"{band}.tif", "w", **profile) as file:
                    file.write(plane, 1)


def bands_of(name: str) -> tuple[str, ...]:
    return _BANDS[name]


FORMATS: dict[str, Callable[[Path, Path, int], None]] = {
    "index": _index,
    "arrays": _arrays,
    "none": _ours("none"),
    "lz4": _ours("lz4"),
    "npy": _npy,
    "energon": _energon,
    "terramesh": _terramesh,
    "mds": _mds,
    "litdata": _litdata,
    "h5": _h5,
    "geotiff": _geotiff,
}
"""In the order in which they can be made."""
RIVALS_FORMATS = ("energon", "terramesh", "mds", "litdata")
"""Made, and read, in the rivals' environment."""


def main() -> None:
    name, folder, num_pairs = sys.argv[1:]
    make(name, Path(folder), int(num_pairs))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # some writers leave threads behind


if __name__ == "__main__":
    main()
