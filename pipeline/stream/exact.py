"""The exact stream: this rank's slices of the endless, reproducible sequence of global batches.

    with Stream(StreamConfig(url="s3://bucket/pairs", global_batch=512), rank, world_size) as stream:
        stream.load_state_dict(state)
        for batch in stream:
            ...

What the ranks see together depends on the data set, the split, the seed and the global batch alone, never on the
number of ranks or threads. The state is the number of samples seen; to resume costs nothing.
"""

import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from pipeline.stream.batch import Batch
from pipeline.stream.closing import Finalizer
from pipeline.stream.fetching import Client, Fetcher, open_store
from pipeline.stream.holding import Source
from pipeline.stream.instruments import Instruments, Meter
from pipeline.stream.local_files import LocalFiles
from pipeline.stream.node_cache import NodeCache, warn
from pipeline.stream.order import RUN_BYTES, Order, OrderedSamples, OrderSettings, check_world_size
from pipeline.stream.pieces import Cache
from pipeline.stream.reader import SampleReader
from pipeline.stream.ring import BatchIterator, BatchRing, Job
from pipeline.stream.run_cache import FetchedRuns
from pipeline.stream.stream_config import StreamConfig
from pipeline.stream.table import SampleTable
from sharding.bands import S1_BANDS, S2_BANDS
from sharding.dataset import read_manifest
from sharding.errors import ConfigError
from sharding.foreign_store import data_url
from sharding.manifest import Manifest

__all__ = ["Batch", "ExactStream", "Stream", "StreamConfig", "evaluation_batches"]

_CHANGES_ORDER: Final = {
    "fingerprint": "this is another data set, or one built again with other samples",
    "split": "set the split back",
    "seed": "set the seed back",
    "global_batch": "set the global batch back; ranks and micro-batches may change, their product may not",
}


class ExactStream(ABC):
    """Position, state and order of an endless stream; subclasses read the samples."""

    def __init__(self, config: StreamConfig, rank: int, world_size: int, manifest: Manifest) -> None:
        check_world_size(config.global_batch, rank, world_size)
        self.config = config
        self.rank = rank
        self.world_size = world_size
        self.manifest = manifest
        self.samples_seen = 0
        """Samples of the global batches yielded so far."""
        shards = manifest.shards_of(config.split)
        self._shard_sizes = [shard.samples for shard in shards]
        self.num_samples = sum(self._shard_sizes)
        """Samples of the split: the length of an epoch."""
        settings = OrderSettings.choose(
            self._shard_sizes,
            manifest.sample_bytes(config.split),
            config.global_batch,
            config.seed,
            config.window_gib,
            config.groups,
        )
        self._set_order(settings)

    @property
    def epoch(self) -> int:
        """Epoch of the next sample."""
        return self.samples_seen // self.num_samples

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]:
        """This rank's batches from here on, without end."""

    def set_epoch(self, epoch: int) -> None:
        """Go to the first sample of `epoch`; an iterator that is under way ends."""
        if epoch < 0:
            raise ConfigError(f"epoch is {epoch}; epochs count from 0")
        self._halt()
        self.samples_seen = epoch * self.num_samples

    def state_dict(self) -> dict[str, Any]:
        """All that continues the stream behind the last yielded batch; the same on every rank, below 300 bytes."""
        order = self.order.settings
        return {
            "fingerprint": self.manifest.fingerprint,
            "split": self.config.split,
            "seed": order.seed,
            "samples_seen": self.samples_seen,
            "global_batch": order.global_batch,
            "num_streams": order.num_streams,
            "num_groups": order.num_groups,
            "run_samples": order.run_samples,
            "window": order.window,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken, on any number of ranks; an iterator that is under way ends.

        ConfigError naming what differs when the order would not be the same.
        """
        mine = self.state_dict()
        missing = mine.keys() - state.keys()
        if int(state.get("samples_seen", 0)) < 0:
            raise ConfigError(f"the state of the stream has {state['samples_seen']} samples seen; it is damaged")
        if missing:
            raise ConfigError(f"the state of the stream lacks {', '.join(sorted(missing))}; it is of another program")
        for name, advice in _CHANGES_ORDER.items():
            if state[name] != mine[name]:
                raise ConfigError(
                    f"cannot continue the stream: {name} was {state[name]!r} and is {mine[name]!r}; {advice}, "
                    "or start a new run"
                )
        self._halt()
        names = ("num_streams", "num_groups", "run_samples", "window")
        self._set_order(replace(self.order.settings, **{name: int(state[name]) for name in names}))
        self.samples_seen = int(state["samples_seen"])

    def close(self) -> None:
        """End the iterator and give everything back."""
        self._halt()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _halt(self) -> None:
        """End an iterator that is under way."""

    def _set_order(self, settings: OrderSettings) -> None:
        self.order = Order(self._shard_sizes, settings, self.manifest.fingerprint, self.config.split)

    def _jobs(self) -> Iterator[Job]:
        return _endless_jobs(self.order, self.rank, self.world_size, self.samples_seen)


def _endless_jobs(order: Order, rank: int, world_size: int, seen: int) -> Iterator[Job]:
    for samples in order.slices_from(seen, rank, world_size):
        yield Job(seen // order.settings.global_batch, samples)
        seen += order.settings.global_batch


class Stream(ExactStream):
    """The stream through our own indexes: threads read ahead into batch slots.

    A yielded batch's arrays stay valid until `hold` others have been asked for (`Batch.copy` keeps them). There is one
    iterator at a time; it ends its threads when it is closed, dropped or replaced, and when reading fails.
    """

    def __init__(self, config: StreamConfig, rank: int = 0, world_size: int = 1, riders: Collection[str] = ()) -> None:
        """Of images, and of the arrays named in `riders` that ride along; the order does not depend on these."""
        super().__init__(config, rank, world_size, read_image_manifest(config.url, riders))
        self._iterator: weakref.ref[_StreamIterator] | None = None
        settings = self.order.settings
        runs_of_stream = -(-settings.window // settings.run_samples) + 2
        self._reader = open_reader(config, self.manifest, settings.streams_of_rank(world_size) * runs_of_stream)
        try:
            self._refuse_small_cache()
        except ConfigError:
            self._reader.close()
            raise
        self._say_what_is_fetched_often()
        self._reader_finalizer = Finalizer(self, self._reader.close)

    def __iter__(self) -> "_StreamIterator":
        self._halt()
        if not self._reader_finalizer.alive:
            raise ConfigError("the stream is closed; open a new one")
        source = self._reader.source
        if isinstance(source, FetchedRuns):
            source.set_run_samples(self.order.settings.run_samples)
            source.foresee(_foresight(weakref.ref(self)))
        batch_size = self.config.global_batch // self.world_size
        config = self.config
        ring = BatchRing(self._reader, self._jobs(), batch_size, config.threads, config.slots, config.hold)
        iterator = _StreamIterator(self, ring)
        self._iterator = weakref.ref(iterator)
        return iterator

    def instruments(self) -> Instruments:
        """What was read, fetched and waited for since the stream was opened."""
        return self._reader.meter.read()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken; see `ExactStream`."""
        before = self.state_dict()
        super().load_state_dict(state)
        try:
            self._refuse_small_cache()
        except ConfigError:
            super().load_state_dict(before)
            raise

    def close(self) -> None:
        """End the iterator and the threads, close the shards."""
        super().close()
        self._reader_finalizer()

    def _halt(self) -> None:
        iterator = self._iterator() if self._iterator is not None else None
        if iterator is not None:
            iterator.close()
        self._iterator = None

    def _refuse_small_cache(self) -> None:
        source, settings = self._reader.source, self.order.settings
        if isinstance(source, FetchedRuns):
            nodes = max(self.world_size // ranks_of_node(), 1)
            source.refuse_small_cache(
                settings.streams_of_rank(self.world_size),
                settings.window + 2 * settings.run_samples,
                settings.streams_of_rank(nodes),
            )

    def _say_what_is_fetched_often(self) -> None:
        groups = self.order.settings.num_groups
        often = self._reader.source.is_remote and not self.config.cache_dir and self.world_size > groups
        if often and self.rank == 0:
            warn(
                f"{-(-self.world_size // groups)} ranks fetch each run, every one into its own memory; set cache_dir, "
                "a folder on a local disk that the ranks of a node share, or groups to the number of ranks, "
                f"{self.world_size}"
            )


class _StreamIterator(BatchIterator):
    """Counts what is yielded, so that the state knows nothing of what was read ahead."""

    def __init__(self, stream: Stream, ring: BatchRing) -> None:
        super().__init__(ring)
        self._stream = stream

    def __next__(self) -> Batch:
        if self.is_closed:
            raise RuntimeError("this iterator was ended: the stream was moved, closed or iterated anew")
        batch = super().__next__()
        self._stream.samples_seen += self._stream.config.global_batch
        return batch


def evaluation_batches(
    url: str,
    split: str,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    *,
    threads: int = 2,
    slots: int = 3,
    cache_gib: float = 2.0,
    cache_dir: str = "",
    cache_dir_gib: float = 100.0,
    client: Client = "fsspec",
    verify_checksums: bool = True,
    samples: npt.NDArray[np.int64] | None = None,
    riders: Collection[str] = (),
    batches: Iterable[npt.NDArray[np.int64]] | None = None,
) -> "EvaluationBatches":
    """Each sample of a split exactly once over all ranks, in the order of the index; the last batch may be short.

    With `samples`, numbers of samples of the split, only these N, in their order. With `riders`, names of arrays that
    ride along, those are read as well; a sample that lacks one has zeros that are not present.

    Rank r of W has the samples [r*N/W, (r+1)*N/W): the ranks' numbers of batches may differ by one, so reduce at the
    end and not in every batch. Epoch is 0 and position the sample's number.

    With `batches`, the numbers of each batch's samples, at most `batch_size`: just these batches, whatever the rank.
    """
    return EvaluationBatches(
        StreamConfig(
            url=url,
            split=split,
            global_batch=batch_size * world_size,
            threads=threads,
            slots=slots,
            cache_gib=cache_gib,
            cache_dir=cache_dir,
            cache_dir_gib=cache_dir_gib,
            client=client,
            verify_checksums=verify_checksums,
        ),
        rank,
        world_size,
        samples,
        riders,
        batches,
    )


def read_image_manifest(url: str, riders: Collection[str] = ()) -> Manifest:
    """The manifest at `url` with the arrays of S1 and S2, and of what rides along only those named in `riders`.

    What is not in it is neither read nor decoded. The riders come last.
    """
    manifest = read_manifest(url)
    images = {*S1_BANDS, *S2_BANDS}
    own = [spec for spec in manifest.arrays if not images.isdisjoint(spec.bands)]
    along = [spec for spec in manifest.arrays if images.isdisjoint(spec.bands) and spec.name in riders]
    return replace(manifest, arrays=(*own, *along))


class EvaluationBatches(BatchIterator):
    """What `evaluation_batches` returns: an iterator, and a context that ends its threads."""

    def __init__(
        self,
        config: StreamConfig,
        rank: int,
        world_size: int,
        samples: npt.NDArray[np.int64] | None = None,
        riders: Collection[str] = (),
        batches: Iterable[npt.NDArray[np.int64]] | None = None,
    ) -> None:
        check_world_size(config.global_batch, rank, world_size)
        self.manifest = read_image_manifest(config.url, riders)
        self._reader = open_reader(config, self.manifest)
        self.num_samples = len(self._reader.table) if samples is None else len(samples)
        """Samples of the split that are given, over all ranks."""
        if isinstance(source := self._reader.source, FetchedRuns):
            source.set_run_samples(round(RUN_BYTES / max(self.manifest.sample_bytes(config.split), 1.0)) or 1)
        batch_size = config.global_batch // world_size
        if batches is None:
            batches = _shares(self.num_samples, batch_size, rank, world_size, samples)
        jobs = (Job(step, OrderedSamples(np.zeros_like(ids), ids, ids)) for step, ids in enumerate(batches))
        ring = BatchRing(self._reader, jobs, batch_size, config.threads, config.slots)
        super().__init__(ring, self._reader.close)


def open_reader(config: StreamConfig, manifest: Manifest, open_runs: int = 0) -> SampleReader:
    """What reads the samples of the split: in place from this machine, else through a cache in memory or on disk.

    `open_runs`: from how many runs the samples of one time come, at most.
    """
    store, meter = open_store(config.url), Meter()
    data = open_store(data_url(store.url, manifest)) if manifest.data_url else store
    table = SampleTable(store, manifest, config.split, data=data, open_runs=open_runs)
    source: Source
    if data.is_local:
        source = LocalFiles(data, table.files)
    else:
        cache: Cache | None = None
        cache_bytes = int(config.cache_dir_gib * 2**30)
        if config.cache_dir:
            cache = NodeCache(Path(config.cache_dir), manifest.fingerprint, cache_bytes)
        fetcher = Fetcher(data, meter, config.client)
        sample_bytes = manifest.sample_bytes(config.split)
        source = FetchedRuns(table, sample_bytes, fetcher, int(config.cache_gib * 2**30), cache, cache_bytes, meter)
    return SampleReader(table, source, meter, verify=config.verify_checksums, on_corrupt=config.on_corrupt)


def _foresight(stream: "weakref.ref[Stream]") -> Callable[[int], int]:
    """How far ahead a sample's run is needed by the stream; the cache must not keep the stream alive."""

    def next_use(sample: int) -> int:
        alive = stream()
        return 0 if alive is None else alive.order.next_use(sample, alive.samples_seen)

    return next_use


def ranks_of_node() -> int:
    """As torchrun and slurm/ say it; 1 where nobody does."""
    told = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(int(told), 1) if told.isdecimal() else 1


def _shares(
    num_samples: int, batch_size: int, rank: int, world_size: int, samples: npt.NDArray[np.int64] | None
) -> Iterator[npt.NDArray[np.int64]]:
    first, last = num_samples * rank // world_size, num_samples * (rank + 1) // world_size
    for begin in range(first, last, batch_size):
        end = min(begin + batch_size, last)
        yield np.arange(begin, end) if samples is None else samples[begin:end]
