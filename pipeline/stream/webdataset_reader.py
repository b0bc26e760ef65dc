"""The same stream read by webdataset and zarr alone: `data.reader: webdataset`, the oracle of `pipeline.stream`.

webdataset iterates the tars, zipfile checks each member's CRC-32 and the real zarr decodes it; of our own formats only
the manifest is used, no index. Since a tar can only be read from its start, a shard's members stay in memory once they
were read, up to `cache_gib`; a split that is larger than that makes each batch read many shards again, entirely. Each
rank reads all shards.
"""

import io
import tarfile
import time
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import zarr
from webdataset.tariterators import group_by_keys, tar_file_expander
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from pipeline.stream.batch import Batch
from pipeline.stream.exact import ExactStream, StreamConfig, read_image_manifest
from pipeline.stream.fetching import open_store
from pipeline.stream.ring import Job
from sharding.errors import ConfigError, DataError, StorageError
from sharding.manifest import ShardSpec

_MEMBER = "zarr.zip"
_Members = list[tuple[str, bytes]]


class WebDatasetStream(ExactStream):
    """The batches of `Stream`, bit for bit, through webdataset; slow. A yielded batch has memory of its own."""

    def __init__(self, config: StreamConfig, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(config, rank, world_size, read_image_manifest(config.url))
        if self.manifest.subset:
            raise ConfigError(
                f"{config.url} is a subset, and webdataset reads whole shards; read it with data.reader=exact"
            )
        if any(shard.parts for shard in self.manifest.shards):
            raise ConfigError(
                f"{config.url} was indexed as it lies, and data.reader=webdataset reads only what sharding.build made; "
                "read it with data.reader=exact"
            )
        self._store = open_store(config.url)
        self._shards = self.manifest.shards_of(config.split)
        self._first_sample = np.cumsum([0] + [shard.samples for shard in self._shards])
        self._cache: OrderedDict[int, _Members] = OrderedDict()
        self._iteration = 0

    def __iter__(self) -> Iterator[Batch]:
        self._halt()
        return self._batches(self._jobs(), self._iteration)

    def close(self) -> None:
        """End the iterator and forget the shards."""
        super().close()
        self._cache.clear()

    def _halt(self) -> None:
        self._iteration += 1

    def _batches(self, jobs: Iterator[Job], iteration: int) -> Iterator[Batch]:
        for job in jobs:
            began = time.perf_counter()
            if iteration != self._iteration:
                raise RuntimeError("this iterator was ended: the stream was moved, closed or iterated anew")
            batch = self._batch(job, began)
            self.samples_seen += self.config.global_batch
            yield batch

    def _batch(self, job: Job, began: float) -> Batch:
        ids = job.samples.sample_id
        specs = self.manifest.arrays
        arrays = {a.name: np.zeros((len(ids), len(a.bands), a.height, a.width), a.dtype) for a in specs}
        present = {a.name: np.zeros((len(ids), len(a.bands)), np.bool_) for a in specs}
        offsets = np.zeros((len(ids), len(specs)), np.float32)
        labels = np.zeros((len(ids), len(self.manifest.labels)), np.bool_)
        keys = []
        for row, sample in enumerate(ids.tolist()):
            shard = int(np.searchsorted(self._first_sample, sample, side="right")) - 1
            key, member = self._members(shard)[sample - int(self._first_sample[shard])]
            keys.append(key)
            try:
                attributes, stored = read_member(member)
            except (zipfile.BadZipFile, EOFError, KeyError, ValueError, RuntimeError) as error:
                where = f"sample {key} in shard {self._store.name(self._shards[shard].path)}"
                raise DataError(f"{where} is damaged: {error}; fetch this shard again") from error
            for word in attributes.get("labels") or ():
                labels[row, self.manifest.labels.index(word)] = True
            for column, spec in enumerate(specs):
                if spec.name in stored:
                    planes, about = stored[spec.name]
                    into = [spec.bands.index(band) for band in about["bands"]]
                    arrays[spec.name][row, into] = planes
                    present[spec.name][row, into] = True
                    offsets[row, column] = about.get("offset", 0.0)
        return Batch(
            step=job.step,
            keys=keys,
            sample_id=torch.from_numpy(ids),
            epoch=torch.from_numpy(job.samples.epoch),
            position=torch.from_numpy(job.samples.position),
            arrays={name: torch.from_numpy(array) for name, array in arrays.items()},
            present={name: torch.from_numpy(mask) for name, mask in present.items()},
            radiometric_offset=torch.from_numpy(offsets),
            labels=torch.from_numpy(labels),
            wait_s=time.perf_counter() - began,
        )

    def _members(self, shard: int) -> _Members:
        """Key and bytes of each member of a shard, in the order of the tar."""
        if shard in self._cache:
            self._cache.move_to_end(shard)
            return self._cache[shard]
        spec = self._shards[shard]
        room = self.config.cache_gib * 2**30 - spec.num_bytes
        while self._cache and sum(self._shards[held].num_bytes for held in self._cache) > room:
            self._cache.popitem(last=False)
        members = self._cache[shard] = self._read_shard(spec)
        return members

    def _read_shard(self, spec: ShardSpec) -> _Members:
        name = self._store.name(spec.path)
        try:
            # Opened by us: webdataset knows no s3://, and leaves its own files open.
            with self._store.fs.open(self._store.full(spec.path), "rb") as tar:
                samples = group_by_keys(tar_file_expander([{"url": name, "stream": tar}]))
                members = [(sample["__key__"], sample[_MEMBER]) for sample in samples]
        except FileNotFoundError as error:
            raise DataError(f"shard {name} is missing; fetch or build it again") from error
        except (tarfile.TarError, KeyError, ValueError, EOFError) as error:
            raise DataError(f"shard {name} cannot be read by webdataset: {error}; fetch it again") from error
        except OSError as error:
            raise StorageError(f"cannot read shard {name}: {error}") from error
        if len(members) != spec.samples:
            # webdataset takes a tar that was cut, or one with a broken header, for a shorter one.
            raise DataError(
                f"shard {name} gave {len(members)} samples, its manifest says {spec.samples}: it is cut or damaged, "
                "fetch or build it again"
            )
        return members


def read_member(member: bytes) -> tuple[dict[str, Any], dict[str, tuple[npt.NDArray[Any], dict[str, Any]]]]:
    """A `KEY.zarr.zip` decoded by zarr: the group's attributes and, by name, each array and its attributes."""
    prototype = default_buffer_prototype()
    with zipfile.ZipFile(io.BytesIO(member)) as archive:
        content = {name: prototype.buffer.from_bytes(archive.read(name)) for name in archive.namelist()}
    group = zarr.open_group(MemoryStore(content), mode="r")
    arrays = {name: (np.asarray(array[...]), dict(array.attrs)) for name, array in group.arrays()}
    return dict(group.attrs), arrays
