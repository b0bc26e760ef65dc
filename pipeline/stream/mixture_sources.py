"""The data sets of a mixture as one rank reads them: files or caches, threads and slots, each in proportion."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace

from pipeline.stream.exact import StreamConfig, open_reader, ranks_of_node
from pipeline.stream.instruments import Instruments
from pipeline.stream.mixture_order import MixtureOrder, RankPart
from pipeline.stream.reader import SampleReader
from pipeline.stream.ring import BatchIterator, BatchRing, Job
from pipeline.stream.run_cache import FetchedRuns
from sharding.errors import ConfigError
from sharding.manifest import Manifest


@dataclass(frozen=True)
class Member:
    """A data set of a mixture."""

    name: str
    manifest: Manifest
    config: StreamConfig
    """How it is read, with the threads, the windows and the cache of all data sets together."""

    @property
    def shard_sizes(self) -> list[int]:
        """Samples of each shard of its split."""
        return [shard.samples for shard in self.manifest.shards_of(self.config.split)]

    @property
    def sample_bytes(self) -> float:
        """Mean size of a sample in its files."""
        return self.manifest.sample_bytes(self.config.split)


@dataclass(frozen=True)
class _Source:
    number: int
    """Of the data set in the mixture."""
    member: Member
    reader: SampleReader
    batch_size: int
    """The most samples of it that a batch of this rank can have."""
    threads: int


class MixtureSources:
    """The data sets of which this rank can ever get a sample; the ranks of a node share out what the node reads."""

    def __init__(self, members: Sequence[Member], order: MixtureOrder, rank: int, world_size: int) -> None:
        self._rank, self._world_size = rank, world_size
        most = [order.most(number, rank, world_size) for number in range(len(members))]
        needed = [self._windows_bytes(order, number, member) for number, member in enumerate(members)]
        with ExitStack() as opened:
            self._sources = []
            for number, (member, batch_size) in enumerate(zip(members, most, strict=True)):
                if batch_size:
                    cache_gib = member.config.cache_gib * needed[number] / sum(needed)
                    reader = open_reader(replace(member.config, cache_gib=cache_gib), member.manifest)
                    opened.callback(reader.close)
                    # Rounded up: threads that have nothing to do cost nothing, and each share can be kept up with.
                    threads = -(-member.config.threads * batch_size // sum(most))
                    self._sources.append(_Source(number, member, reader, batch_size, threads))
            self.refuse_small_cache(order)
            self.close = opened.pop_all().close
            """Close all files and end the fetching threads."""

    def refuse_small_cache(self, order: MixtureOrder) -> None:
        """ConfigError naming the data set whose part of the cache is too small for its shuffle windows."""
        for source in self._sources:
            if isinstance(runs := source.reader.source, FetchedRuns):
                try:
                    streams, samples = self._windows(order, source.number)
                    settings = order.orders[source.number].settings
                    of_node = settings.streams_of_rank(max(self._world_size // ranks_of_node(), 1))
                    runs.refuse_small_cache(streams, samples, max(streams, of_node))
                except ConfigError as error:
                    raise ConfigError(f"data set '{source.member.name}' of the mixture: {error}") from error

    def instruments(self) -> Instruments:
        """What was read, fetched and waited for, over all data sets."""
        read = [source.reader.meter.read() for source in self._sources]
        return Instruments(**{f.name: sum(getattr(one, f.name) for one in read) for f in fields(Instruments)})

    def iterate(self, order: MixtureOrder, samples_seen: Callable[[], int]) -> dict[int, BatchIterator]:
        """By number of the data set: its parts of all batches from here on, empty ones too, read ahead.

        `samples_seen` tells where the mixture is, now and later.
        """
        step = samples_seen() // order.global_batch
        batches: dict[int, BatchIterator] = {}
        with ExitStack() as begun:
            for source in self._sources:
                if isinstance(runs := source.reader.source, FetchedRuns):
                    runs.set_run_samples(order.orders[source.number].settings.run_samples)
                    runs.foresee(_foresight(order, source.number, samples_seen))
                jobs = _jobs(order.rank_parts(step, source.number, self._rank, self._world_size), step)
                config = source.member.config
                ring = BatchRing(source.reader, jobs, source.batch_size, source.threads, config.slots, config.hold)
                batches[source.number] = begun.enter_context(BatchIterator(ring))
            begun.pop_all()
        return batches

    def _windows(self, order: MixtureOrder, number: int) -> tuple[int, int]:
        """How many streams of a data set this rank reads at a time, and how many samples of each it must hold."""
        settings = order.orders[number].settings
        groups = order.num_groups_of(number, self._rank, self._world_size)
        streams = groups * settings.num_streams // settings.num_groups
        return streams, settings.window + 2 * settings.run_samples

    def _windows_bytes(self, order: MixtureOrder, number: int, member: Member) -> float:
        return min(math.prod(self._windows(order, number)), order.orders[number].num_samples) * member.sample_bytes


def _foresight(order: MixtureOrder, number: int, samples_seen: Callable[[], int]) -> Callable[[int], int]:
    return lambda sample: order.next_use(number, sample, samples_seen())


def _jobs(parts: Iterator[RankPart], first_step: int) -> Iterator[Job]:
    for step, part in enumerate(parts, first_step):
        yield Job(step, part.samples)
