"""A mixture: several data sets in one endless, reproducible stream, in exact shares, each with epochs of its own.

    members = (MixtureMember(url="s3://bucket/ben", weight=3), MixtureMember(url="s3://bucket/ssl4eo", weight=1))
    with MixtureStream(MixtureConfig(datasets=members, global_batch=512), rank, world_size) as stream:
        stream.load_state_dict(state)
        for batch in stream:
            ...

What the ranks see together depends on the data sets, their shares, the seed, the global batch and its groups alone,
never on the number of ranks or threads (`pipeline.stream.mixture_order`). The state is the number of samples seen; to
resume costs nothing. Each data set keeps its own manifest: bands, pixel sizes and statistics may differ.
"""

import hashlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Self

import torch

from pipeline.stream.closing import Finalizer
from pipeline.stream.exact import read_image_manifest
from pipeline.stream.instruments import Instruments
from pipeline.stream.mixed_batch import MAX_SAMPLES, MixedBatch
from pipeline.stream.mixture_config import MixtureMember, check_mixture
from pipeline.stream.mixture_order import MemberOrder, MixtureOrder, choose_groups, choose_settings
from pipeline.stream.mixture_sources import Member, MixtureSources
from pipeline.stream.mixture_state import refuse_other_order
from pipeline.stream.order import OrderSettings, check_world_size
from pipeline.stream.ring import BatchIterator
from pipeline.stream.shares import Shares
from pipeline.stream.stream_config import ReadingConfig, StreamConfig
from sharding.errors import ConfigError, DataError
from sharding.manifest import Manifest

__all__ = ["MixedBatch", "MixtureConfig", "MixtureMember", "MixtureStream"]


@dataclass(frozen=True, kw_only=True)
class MixtureConfig(ReadingConfig):
    """What to mix and how to read it."""

    datasets: tuple[MixtureMember, ...]
    """The data sets; in a batch they stand in this order."""
    temperature: float = 1.0
    """Without weights, shares go by size ** (1 / temperature): 1 by size, infinity the same for all."""

    def __post_init__(self) -> None:
        if not self.datasets:
            raise ConfigError("the mixture has no data set; give it one or more")
        check_mixture(self.datasets, self.temperature)
        super().__post_init__()

    def of(self, number: int) -> StreamConfig:
        """How data set `number` is read, with the threads, windows and cache of all."""
        member = self.datasets[number]
        shared = {f.name: getattr(self, f.name) for f in fields(ReadingConfig)}
        return StreamConfig(url=member.url, split=member.split, **shared)


class MixtureStream:
    """The stream of a mixture through our own indexes: threads of each data set read ahead into its batch slots.

    A yielded batch's arrays stay valid until `hold` others have been asked for (`MixedBatch.copy` keeps them). There is
    one iterator at a time; it ends its threads when it is closed, dropped or replaced, and when reading fails. A rank
    opens only the data sets of which it can ever get a sample.
    """

    def __init__(self, config: MixtureConfig, rank: int = 0, world_size: int = 1) -> None:
        check_world_size(config.global_batch, rank, world_size)
        self.config = config
        self.rank = rank
        self.world_size = world_size
        self.samples_seen = 0
        """Samples of the global batches yielded so far."""
        self._members = [
            Member(member.title, _read_manifest(member), config.of(number))
            for number, member in enumerate(config.datasets)
        ]
        sizes = [sum(member.shard_sizes) for member in self._members]
        self._refuse_unworkable(sizes)
        self.num_samples = sum(sizes)
        """Samples of all data sets together."""
        weights = [member.weight for member in config.datasets if member.weight is not None]
        shares = Shares.of_weights(weights) if weights else Shares.of_sizes(sizes, config.temperature)
        groups = choose_groups(config.global_batch, config.groups)
        window = (groups, config.seed, config.window_gib)
        settings = [
            choose_settings(member.shard_sizes, member.sample_bytes, share, config.global_batch, *window)
            for member, share in zip(self._members, shares.fractions, strict=True)
        ]
        self.order = self._order(shares, settings)
        self._iterator: weakref.ref[_MixtureIterator] | None = None
        self._open_sources()

    @property
    def manifests(self) -> dict[str, Manifest]:
        """Of each data set, by its name, in the order of the mixture."""
        return {member.name: member.manifest for member in self._members}

    @property
    def epoch(self) -> int:
        """Epoch of the next batch, as `set_epoch` counts; `epochs` tells of each data set."""
        return self.samples_seen // self._epoch_samples

    @property
    def epochs(self) -> dict[str, float]:
        """How often each data set has been passed so far, by name: 2.5 is two epochs and a half."""
        return self._by_name(self.order.epochs(self.samples_seen))

    @property
    def shares(self) -> dict[str, float]:
        """Each data set's share of all samples, by name."""
        return self._by_name(self.order.shares.fractions)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over what is mixed: fingerprints and splits of the data sets, in their order."""
        text = "\n".join(f"{member.manifest.fingerprint} {member.config.split}" for member in self._members)
        return hashlib.sha256(text.encode()).hexdigest()

    def describe(self) -> dict[str, dict[str, Any]]:
        """What is mixed, by name, for the records of a run."""
        return {
            member.name: {
                "url": member.config.url,
                "split": member.config.split,
                "samples": order.num_samples,
                "share": share,
                "fingerprint": member.manifest.fingerprint,
            }
            for member, order, share in zip(self._members, self.order.orders, self.shares.values(), strict=True)
        }

    def __iter__(self) -> "_MixtureIterator":
        self._halt()
        if not self._finalizer.alive:
            raise ConfigError("the stream is closed; open a new one")
        iterator = _MixtureIterator(self)
        self._iterator = weakref.ref(iterator)
        return iterator

    def instruments(self) -> Instruments:
        """What was read, fetched and waited for since the stream was opened, over all data sets."""
        return self._sources.instruments()

    def set_epoch(self, epoch: int) -> None:
        """Go to `epoch` of the mixture: as many global batches each as hold the samples of all data sets together.

        The data sets' own epochs end elsewhere, each when it has been passed (`epochs`). An iterator that is under
        way ends.
        """
        self._halt()
        self.samples_seen = epoch * self._epoch_samples

    def state_dict(self) -> dict[str, Any]:
        """All that continues the stream behind the last yielded batch; the same on every rank.

        Below 100 bytes, and 300 for each data set.
        """
        datasets = [
            {
                "name": member.name,
                "fingerprint": member.manifest.fingerprint,
                "split": member.config.split,
                "part": part,
                "num_streams": order.settings.num_streams,
                "run_samples": order.settings.run_samples,
                "window": order.settings.window,
            }
            for member, part, order in zip(self._members, self.order.shares.parts, self.order.orders, strict=True)
        ]
        return {
            "samples_seen": self.samples_seen,
            "seed": self.config.seed,
            "global_batch": self.config.global_batch,
            "num_groups": self.order.num_groups,
            "datasets": datasets,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken, on any number of ranks; an iterator that is under way ends.

        ConfigError naming the data set that differs when the order would not be the same.
        """
        refuse_other_order(state, self.state_dict())
        self._halt()
        settings = [
            OrderSettings(
                global_batch=self.config.global_batch,
                num_streams=int(there["num_streams"]),
                num_groups=int(state["num_groups"]),
                run_samples=int(there["run_samples"]),
                window=int(there["window"]),
                seed=self.config.seed,
            )
            for there in state["datasets"]
        ]
        regrouped = int(state["num_groups"]) != self.order.num_groups
        self.order = self._order(self.order.shares, settings)
        self.samples_seen = int(state["samples_seen"])
        if regrouped and self._finalizer.alive:  # what this rank reads of which data set is another
            self._finalizer()
            self._open_sources()
        self._sources.refuse_small_cache(self.order)

    def close(self) -> None:
        """End the iterator and the threads, close the shards."""
        self._halt()
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _halt(self) -> None:
        iterator = self._iterator() if self._iterator is not None else None
        if iterator is not None:
            iterator.close()
        self._iterator = None

    def _open_sources(self) -> None:
        self._sources = MixtureSources(self._members, self.order, self.rank, self.world_size)
        self._finalizer = Finalizer(self, self._sources.close)

    def _by_name(self, values: list[float]) -> dict[str, float]:
        return {member.name: value for member, value in zip(self._members, values, strict=True)}

    @property
    def _epoch_samples(self) -> int:
        return -(-self.num_samples // self.config.global_batch) * self.config.global_batch

    def _order(self, shares: Shares, settings: list[OrderSettings]) -> MixtureOrder:
        orders = [
            MemberOrder(member.shard_sizes, own, member.manifest.fingerprint, member.config.split)
            for member, own in zip(self._members, settings, strict=True)
        ]
        return MixtureOrder(orders, shares, self.config.global_batch, settings[0].num_groups)

    def _refuse_unworkable(self, sizes: list[int]) -> None:
        seen: dict[tuple[str, str], str] = {}
        for member, size in zip(self._members, sizes, strict=True):
            same = seen.setdefault((member.manifest.fingerprint, member.config.split), member.name)
            if same != member.name:
                raise ConfigError(
                    f"'{same}' and '{member.name}' of the mixture are the same data set; give it once, and more weight"
                )
            if not 0 < size <= MAX_SAMPLES:
                raise ConfigError(
                    f"the split '{member.config.split}' of data set '{member.name}' has {size} samples; "
                    f"a mixture takes from 1 to {MAX_SAMPLES}"
                )


class _MixtureIterator:
    """One batch of each data set at a time; counts what is yielded, not what is read ahead."""

    def __init__(self, stream: MixtureStream) -> None:
        self._stream = stream
        self._names = tuple(stream.manifests)
        self._batches = stream._sources.iterate(stream.order, _position(weakref.ref(stream)))
        # Of its own, beside those of the parts: the threads must have ended before the stream's files are closed.
        self._finalizer = Finalizer(self, partial(_close_all, tuple(self._batches.values())))

    def __iter__(self) -> "_MixtureIterator":
        return self

    def __next__(self) -> MixedBatch:
        if not self._finalizer.alive:
            raise RuntimeError("this iterator was ended: the stream was moved, closed or iterated anew")
        stream, global_batch = self._stream, self._stream.config.global_batch
        step = stream.samples_seen // global_batch
        try:
            parts = {number: next(batches) for number, batches in self._batches.items()}
            rows = stream.order.rank_rows(step, stream.rank, stream.world_size)
        except BaseException:
            self.close()
            raise
        stream.samples_seen += global_batch
        held = [number for number, part in parts.items() if len(part)]
        return MixedBatch(
            step=step,
            names=tuple(self._names[number] for number in held),
            numbers=tuple(held),
            parts=tuple(parts[number] for number in held),
            rows=tuple(torch.from_numpy(rows[number]) for number in held),
            wait_s=sum(part.wait_s for part in parts.values()),
        )

    def close(self) -> None:
        """End the reader threads; safe to call again."""
        self._finalizer()

    def __enter__(self) -> "_MixtureIterator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _position(stream: "weakref.ref[MixtureStream]") -> Callable[[], int]:
    """Where the stream is; what asks for it, a cache, must not keep the stream alive."""

    def samples_seen() -> int:
        alive = stream()
        return 0 if alive is None else alive.samples_seen

    return samples_seen


def _close_all(iterators: tuple[BatchIterator, ...]) -> None:
    for batches in iterators:
        batches.close()


def _read_manifest(member: MixtureMember) -> Manifest:
    manifest = read_image_manifest(member.url)
    try:
        manifest.shards_of(member.split)
    except DataError as error:
        raise DataError(f"data set '{member.title}' of the mixture: {error}") from error
    return manifest
