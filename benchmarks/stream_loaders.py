"""The rivals that `benchmarks.stream` times, each set up as its documents advise and shuffled as far as it can.

All batches are stacked torch tensors, by torch's own collate, which in a worker process stacks right into the memory
that is handed over. Each has what makes it faster and what keeps it from work that is not reading.
"""

import io
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.stream_data import SHAPES
from benchmarks.stream_readers import SEED, Part, Reader, Task

SHUFFLE_BUFFER = 1000
_NAMES = tuple(SHAPES)


def _part(batch: dict[str, Any], ids: str) -> Part:
    found = batch[ids]
    return Part(len(found), found if isinstance(found, list) else found.tolist(), {n: batch[n] for n in _NAMES})


class WebDataset(Reader):
    """.npy members, decoded by webdataset; shards in random order and a buffer of 1,000 samples."""

    imports = ("torch.utils.data", "webdataset")

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.loader = _web_loader(self._pipeline(), task)

    def _pipeline(self) -> Any:
        import webdataset

        names = [f"{name}.npy" for name in _NAMES]
        pipeline = webdataset.WebDataset(self._urls(), shardshuffle=1000, empty_check=False, seed=SEED)
        pipeline = pipeline.shuffle(SHUFFLE_BUFFER, rng=random.Random(SEED)).decode().to_tuple("__key__", *names)
        return pipeline.batched(self.task.batch, collation_fn=_collate, partial=False)

    def _urls(self) -> list[str]:
        paths = sorted((self.root / "npy").glob("*.tar"))
        if self.task.remote:
            # curl, as webdataset reads http; the bucket is open to all.
            return [f"pipe:curl -s -f {self.task.remote}/bench/npy/{path.name}" for path in paths]
        return [str(path) for path in paths]

    def epoch(self) -> Iterator[Part]:
        for keys, *arrays in self.loader:
            yield Part(len(keys), keys, dict(zip(_NAMES, arrays, strict=True)))

    def resume(self, state: Any) -> Iterator[Part]:
        """There is no state: what was consumed is read again and dropped."""
        batches = self.epoch()
        for _ in range(state // self.task.batch):
            next(batches)
        return batches


class TerraMesh(Reader):
    """As TerraMesh's own loader does: a tar a modality side by side, a zarr.zip opened through fsspec and zarr 2.

    Shards are drawn with replacement, samples from a buffer of 100.
    """

    imports = ("torch.utils.data", "webdataset", "zarr", "fsspec.implementations.zip")

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        import webdataset

        names = sorted(path.name for path in (self.root / "terramesh" / "S1GRD").glob("*.tar"))
        pipeline = webdataset.DataPipeline(
            webdataset.ResampledShards(names, seed=SEED, deterministic=True),
            webdataset.split_by_worker,
            self._join,
            webdataset.shuffle(100),
            webdataset.map(_decode_zarr),
            webdataset.batched(task.batch, collation_fn=_collate, partial=False),
        )
        self.loader = _web_loader(pipeline, task)

    def _join(self, shards: Iterator[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], ...]]:
        import webdataset

        for shard in shards:
            sides = []
            for modality in ("S1GRD", "S2L2A"):
                path = str(self.root / "terramesh" / modality / shard["url"])
                sides.append(webdataset.tariterators.tarfile_samples([{"url": path}]))
            yield from zip(*sides, strict=True)

    def epoch(self) -> Iterator[Part]:
        for keys, *arrays in self.loader:
            yield Part(len(keys), keys, dict(zip(_NAMES, arrays, strict=True)))


def _decode_zarr(sides: tuple[dict[str, Any], ...]) -> tuple[Any, ...]:
    import fsspec
    import zarr

    arrays = {}
    for side in sides:
        assert side["__key__"] == sides[0]["__key__"]
        files = fsspec.filesystem("zip", fo=io.BytesIO(side["zarr.zip"]), block_size=None)
        group = zarr.open_consolidated(files.get_mapper(""), mode="r")
        arrays.update({name: group[f"bands_{name}"][...] for name in _NAMES if f"bands_{name}" in group})
    return (sides[0]["__key__"], *(arrays[name] for name in _NAMES))


def _web_loader(pipeline: Any, task: Task) -> Any:
    import webdataset

    return webdataset.WebLoader(pipeline, batch_size=None, num_workers=task.workers)


def _collate(samples: list[tuple[Any, ...]]) -> list[Any]:
    from torch.utils.data import default_collate

    keys, *arrays = zip(*samples, strict=True)
    return [list(keys), *(default_collate(list(array)) for array in arrays)]


class _StatefulLoader(Reader):
    """A rival's own loader, which has a state."""

    loader: Any

    def epoch(self) -> Iterator[Part]:
        for batch in self.loader:
            yield _part(batch, "row")

    def state(self) -> Any:
        return self.loader.state_dict()

    def resume(self, state: Any) -> Iterator[Part]:
        self.loader.load_state_dict(state)
        return self.epoch()


class MDS(_StatefulLoader):
    """MosaicML Streaming, shuffled by its default algorithm, uncompressed, without hashes."""

    imports = ("torch.utils.data",)

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        from streaming import StreamingDataLoader, StreamingDataset

        where: dict[str, Any] = {"local": str(self.root / "mds")}
        if task.remote:
            os.environ["S3_ENDPOINT_URL"] = task.remote
            where = {"remote": "s3://bench/mds", "local": str(Path(task.cache) / "mds")}
        self.dataset = StreamingDataset(**where, shuffle=True, batch_size=task.batch, shuffle_seed=SEED)
        self.loader = StreamingDataLoader(self.dataset, batch_size=task.batch, num_workers=task.workers, drop_last=True)


class LitData(_StatefulLoader):
    """LitData, shuffled, decoding item by item: its default decodes windows of which its own shuffle uses little."""

    imports = ("torch.utils.data", "litdata")

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        os.environ.setdefault("LITDATA_BATCH_DECODE", "0")
        import litdata
        import litdata.streaming.dataset

        # It would ask PyPI for a newer version.
        litdata.streaming.dataset._check_version_and_prompt_upgrade = lambda version: None
        where: dict[str, Any] = {"input_dir": str(self.root / "litdata")}
        if task.remote:
            import litdata.streaming.downloader

            litdata.streaming.downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # of its options, none says so
            where = {
                "input_dir": "s3://bench/litdata",
                "cache_dir": str(Path(task.cache) / "litdata"),
                "storage_options": {"endpoint_url": task.remote},
            }
        self.dataset = litdata.StreamingDataset(**where, shuffle=True, drop_last=True, seed=SEED)
        self.loader = litdata.StreamingDataLoader(
            self.dataset, batch_size=task.batch, num_workers=task.workers, drop_last=True
        )


class Energon(Reader):
    """Megatron-Energon over the tars of .npy, a buffer of 1,000 samples."""

    imports = ("torch.utils.data", "megatron.energon")

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        from megatron.energon import WorkerConfig, get_savable_loader, get_train_dataset

        from benchmarks.stream_energon import PairEncoder

        dataset = get_train_dataset(
            str(self.root / "energon"),
            worker_config=WorkerConfig(rank=0, world_size=1, num_workers=task.workers),
            batch_size=task.batch,
            batch_drop_last=True,
            shuffle_buffer_size=SHUFFLE_BUFFER,
            max_samples_per_sequence=100,
            task_encoder=PairEncoder(),
        )
        self.loader = get_savable_loader(dataset)

    def epoch(self) -> Iterator[Part]:
        for batch in self.loader:
            yield _part(batch, "keys")

    def state(self) -> Any:
        import base64
        import pickle

        return base64.b64encode(pickle.dumps(self.loader.save_state_rank())).decode()

    def resume(self, state: Any) -> Iterator[Part]:
        import base64
        import pickle

        self.loader.restore_state_rank(pickle.loads(base64.b64decode(state)))  # written by this benchmark
        return self.epoch()
