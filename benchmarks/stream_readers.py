"""What `benchmarks.stream` times, each behind the same small interface: ours, the limits, and readers of plain files.

The rivals with loaders of their own are in `benchmarks.stream_loaders`.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.stream_data import DTYPES, GEOTIFF_PAIRS, SHAPES, Truth, bands_of

CHUNK_BYTES: Final = 4 << 20
SEED: Final = 1
WINDOW_GIB: Final = 1.5
REMOTE_CACHE_GIB: Final = 1.6
"""Of memory for fetched runs: little more than the window, so that later epochs are fetched too."""
"""Of ours: below the size of the data, so that an epoch is not one window."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One run of one contender."""

    reader: str
    folder: str
    """Where all formats lie; below a URL of a bucket for the part s3."""
    workers: int = 0
    """Worker processes of the rivals' DataLoader; our threads."""
    batch: int = 64
    codec: str = "none"
    verify_checksums: bool = True
    remote: str = ""
    """Endpoint of the S3 server that holds the formats in the bucket `bench`; empty: `folder` holds them."""
    client: str = "s3fs"
    cache: str = ""
    """An empty local folder, for those who copy what they stream."""


@dataclass(frozen=True)
class Part:
    """A batch, or for the limits, some samples' bytes."""

    num_samples: int
    ids: Sequence[str | int] | None = None
    """Keys or rows of the truth."""
    arrays: dict[str, Any] | None = None
    """torch tensors or numpy arrays, (batch, bands, height, width)."""


class Reader:
    """A contender: `epoch` iterates once over all pairs, or on and on."""

    imports: tuple[str, ...] = ()
    """What is imported before the clock starts."""
    warms_up = True
    """Whether the first batches of an epoch are not counted."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.root = Path(task.folder)

    @property
    def num_pairs(self) -> int:
        """Pairs of an epoch."""
        return len(Truth(self.root))

    def epoch(self) -> Iterator[Part]:
        raise NotImplementedError

    def bytes_fetched(self) -> int | None:
        """So far, from a store; None when nobody counts."""
        return None

    def state(self) -> Any:
        """What continues behind the last batch of `epoch`, as JSON."""
        raise NotImplementedError

    def resume(self, state: Any) -> Iterator[Part]:
        """The batches behind `state`, in a new process."""
        raise NotImplementedError


class Ours(Reader):
    imports = ("torch", "pipeline.stream.exact")

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        from pipeline.stream import Stream, StreamConfig

        url = f"s3://bench/{task.codec}" if task.remote else str(self.root / task.codec)
        self.stream = Stream(
            StreamConfig(
                url=url,
                global_batch=task.batch,
                threads=max(task.workers, 1),
                verify_checksums=task.verify_checksums,
                seed=SEED,
                window_gib=WINDOW_GIB,
                **({"cache_gib": REMOTE_CACHE_GIB} if task.remote else {}),
                client="obstore" if task.client == "obstore" else "fsspec",
            )
        )

    def epoch(self) -> Iterator[Part]:
        for batch in self.stream:
            yield Part(len(batch.keys), batch.keys, batch.arrays)

    def bytes_fetched(self) -> int:
        return self.stream.instruments().bytes_fetched

    def state(self) -> Any:
        return self.stream.state_dict()

    def resume(self, state: Any) -> Iterator[Part]:
        self.stream.load_state_dict(state)
        return self.epoch()


class RawRead(Reader):
    """The limit: all bytes of our uncompressed tars in order, into one buffer."""

    warms_up = False

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        from sharding.dataset import open_dataset

        store, manifest = open_dataset(str(self.root / "none"))
        self.shards = [(store.full(shard.path), shard.samples) for shard in manifest.shards_of("train")]
        self.buffer = bytearray(CHUNK_BYTES)

    def epoch(self) -> Iterator[Part]:
        for path, num_samples in self.shards:
            with open(path, "rb", buffering=0) as file:
                while file.readinto(self.buffer):
                    pass
            yield Part(num_samples)


class Memcpy(Reader):
    """The other limit: the arrays, memory-mapped and touched before, copied in order into one batch."""

    warms_up = False

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.truth = Truth(self.root)
        self.slots = {name: np.empty((task.batch, *shape), DTYPES[name]) for name, shape in SHAPES.items()}
        for _ in self.epoch():
            pass

    def epoch(self) -> Iterator[Part]:
        size = self.task.batch
        for first in range(0, len(self.truth) - size + 1, size):
            for name, slot in self.slots.items():
                np.copyto(slot, self.truth.arrays[name][first : first + size])
            yield Part(size)


class Sampled(Reader):
    """A map-style data set through torch's DataLoader, shuffled."""

    imports = ("torch.utils.data",)

    def dataset(self) -> Any:
        raise NotImplementedError

    def epoch(self, skip: int = 0) -> Iterator[Part]:
        if not hasattr(self, "_dataset"):
            self._dataset = self.dataset()
        for ids, arrays in _loader(self._dataset, self.task, _Permutation(len(self._dataset), skip)):
            yield Part(len(ids), ids.tolist(), arrays)

    def resume(self, state: Any) -> Iterator[Part]:
        return self.epoch(skip=state)


class Memmap(Sampled):
    def dataset(self) -> Any:
        return _Memmapped(self.root)


class H5(Sampled):
    imports = ("torch.utils.data", "h5py")

    def dataset(self) -> Any:
        return _H5Pairs(self.root)


class GeoTIFF(Sampled):
    imports = ("torch.utils.data", "rasterio")

    @property
    def num_pairs(self) -> int:
        return min(super().num_pairs, GEOTIFF_PAIRS)

    def dataset(self) -> Any:
        return _Rasters(self.root)


class _Permutation:
    """Rows in the same random order in every process, from a position on."""

    def __init__(self, num_rows: int, skip: int) -> None:
        self.rows = np.random.default_rng(SEED).permutation(num_rows)[skip:]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows.tolist())


def _loader(dataset: Any, task: Task, sampler: _Permutation) -> Any:
    from torch.utils.data import DataLoader

    return DataLoader(
        dataset,
        batch_size=task.batch,
        sampler=sampler,
        num_workers=task.workers,
        drop_last=True,
        collate_fn=getattr(dataset, "collate", None),
    )


class _Memmapped:
    """A sample is views of the map; the DataLoader's own collate copies them into the batch, once."""

    def __init__(self, root: Path) -> None:
        import torch

        num_rows = len(Truth(root))
        # Copy on write, for torch refuses to view what is read-only without a warning.
        maps = {name: np.load(root / "arrays" / f"{name}.npy", mmap_mode="c") for name in SHAPES}
        self.arrays = {name: torch.from_numpy(array) for name, array in maps.items()}
        self.num_rows = num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, row: int) -> Any:
        return row, {name: array[row] for name, array in self.arrays.items()}


class _H5Pairs:
    """Whole batches, each array put into its place."""

    def __init__(self, root: Path) -> None:
        import h5py

        self.path, self.file = root / "h5" / "pairs.h5", None
        with h5py.File(self.path) as file:
            self.rows = file["row"][:]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, places: list[int]) -> Any:
        import h5py
        import torch

        if self.file is None:  # in the worker: HDF5 does not survive a fork
            self.file = h5py.File(self.path)
            self.sets = {name: self.file[name] for name in SHAPES}
        batch = {}
        in_worker = torch.utils.data.get_worker_info() is not None
        for name, dataset in self.sets.items():
            tensor = torch.empty((len(places), *SHAPES[name]), dtype=getattr(torch, DTYPES[name]))
            if in_worker:
                tensor.share_memory_()
            out = tensor.numpy()
            for slot, place in enumerate(places):
                out[slot] = dataset[place]  # read_direct saves this copy and costs four times as much
            batch[name] = tensor
        return torch.from_numpy(self.rows[places]), batch

    @staticmethod
    def collate(batch: Any) -> Any:
        return batch


class _Rasters:
    """A file a band, as BigEarthNet comes."""

    def __init__(self, root: Path) -> None:
        self.root, self.keys = root / "geotiff", Truth(root).keys[:GEOTIFF_PAIRS]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> Any:
        import rasterio
        import torch

        arrays = {}
        for name in SHAPES:
            planes = []
            for band in bands_of(name):
                with rasterio.open(self.root / self.keys[row] / f"{band}.tif") as file:
                    planes.append(file.read(1))
            arrays[name] = torch.from_numpy(np.stack(planes))
        return row, arrays


_HERE: Final = "benchmarks.stream_readers"
_LOADERS: Final = "benchmarks.stream_loaders"
READERS: Final = {
    "ours": f"{_HERE}:Ours",
    "raw": f"{_HERE}:RawRead",
    "memcpy": f"{_HERE}:Memcpy",
    "memmap": f"{_HERE}:Memmap",
    "h5py": f"{_HERE}:H5",
    "geotiff": f"{_HERE}:GeoTIFF",
    "webdataset": f"{_LOADERS}:WebDataset",
    "terramesh": f"{_LOADERS}:TerraMesh",
    "mds": f"{_LOADERS}:MDS",
    "litdata": f"{_LOADERS}:LitData",
    "energon": f"{_LOADERS}:Energon",
    "ranges": "benchmarks.stream_ranges:Ranges",
}


def reader_class(name: str) -> Callable[[Task], Reader]:
    module, _, cls = READERS[name].partition(":")
    found: Callable[[Task], Reader] = getattr(importlib.import_module(module), cls)
    return found
