"""The labelled samples on which a run is probed: chosen from the index, shared out over the ranks, kept decoded."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from threading import Event
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.data_settings import DataSettings
from pipeline.errors import DataError
from pipeline.stream.batch import Batch
from pipeline.stream.exact import evaluation_batches, open_reader
from pipeline.stream.stream_config import StreamConfig
from pipeline.stream.table import SampleTable
from sharding.bands import presence_mask
from sharding.manifest import Manifest

Int64s = npt.NDArray[np.int64]

STRETCHES: Final = 16
"""Parts of a split from which samples are taken alike: near each other there, they are read in a few pieces."""
_CHUNK: Final = 256
"""Records looked at, at a time."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Samples of one split."""

    split: str
    samples: Int64s
    """Their numbers in the split, rising."""


def choose(
    data: DataSettings, manifest: Manifest, split: str, modalities: Sequence[Sequence[str]], most: int
) -> Chosen:
    """At most so many samples of `split` that have a label and a band of each modality; always the same ones.

    The split is cut into stretches of equal length, and each gives its first such samples, as many as the others
    where it has them. Raises DataError when there is none.
    """
    reader = open_reader(StreamConfig(url=data.url, split=split, global_batch=1, client=data.client), manifest)
    try:
        samples = choose_from(reader.table, modalities, most)
    finally:
        reader.close()
    if not len(samples):
        raise DataError(
            f"the split '{split}' of {data.url} has no sample with labels and all modalities; choose another for the "
            "probe, or write probe.every=0"
        )
    return Chosen(split=split, samples=samples)


def choose_from(table: SampleTable, modalities: Sequence[Sequence[str]], most: int) -> Int64s:
    """The numbers of the samples that `choose` chooses from the table of a split, rising."""
    masks = [np.uint64(presence_mask(list(bands))) for bands in modalities]
    ends = [len(table) * place // STRETCHES for place in range(STRETCHES + 1)]
    turns = [_usable(table, first, last, masks) for first, last in pairwise(ends)]
    chosen: list[int] = []
    while turns and len(chosen) < most:
        for turn in list(turns):
            sample = next(turn, None)
            if sample is None:
                turns.remove(turn)
            elif len(chosen) < most:
                chosen.append(sample)
    return np.array(sorted(chosen), np.int64)


def _usable(table: SampleTable, first: int, last: int, masks: list[np.uint64]) -> Iterator[int]:
    for begin in range(first, last, _CHUNK):
        samples = np.arange(begin, min(begin + _CHUNK, last))
        records = table.records(samples)
        usable = records["labels"] != 0
        for mask in masks:
            usable &= (records["presence"] & mask) != 0
        yield from samples[usable].tolist()


class KeptSamples:
    """A rank's share of the chosen samples of several splits, read in a thread and kept in memory."""

    def __init__(
        self, data: DataSettings, chosen: Sequence[Chosen], batch_size: int, rank: int, world_size: int
    ) -> None:
        self._data = data
        self._chosen = chosen
        self._batch_size = batch_size
        self._share = rank, world_size
        self._is_closed = Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="probe-reader")
        self._read: Future[list[list[Batch]]] = self._thread.submit(self._read_all)

    def batches(self) -> list[list[Batch]]:
        """By split, in the order of `Chosen.samples`; waits until they are there.

        Raises what reading them raised; the next call reads again.
        """
        try:
            return self._read.result()
        except Exception:
            self._read = self._thread.submit(self._read_all)
            raise

    def close(self) -> None:
        """End the thread."""
        self._is_closed.set()
        self._thread.shutdown(cancel_futures=True)

    def _read_all(self) -> list[list[Batch]]:
        return [list(self._read_split(chosen)) for chosen in self._chosen]

    def _read_split(self, chosen: Chosen) -> Iterator[Batch]:
        with evaluation_batches(
            self._data.url,
            chosen.split,
            self._batch_size,
            *self._share,
            threads=1,
            client=self._data.client,
            verify_checksums=self._data.verify_checksums,
            samples=chosen.samples,
        ) as batches:
            for batch in batches:
                if self._is_closed.is_set():
                    return
                yield batch.copy()
