"""Which samples a step gives to which rank: `python -m pipeline.stream order`. Reads the indexes, and no pixel."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.stream.order import check_world_size
from pipeline.stream.shuffle_report import Question, Split
from pipeline.stream.table import SampleTable
from sharding.dataset import open_dataset
from sharding.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PlacedSample:
    """A sample of a step, and who gets it."""

    rank: int
    slot: int
    """Place in the rank's batch."""
    epoch: int
    position: int
    """Within the epoch; with the epoch, the key of all that is random about the sample."""
    key: str
    shard: str
    record: int
    """Number of the sample within its shard."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of `pipeline.stream.Stream`, as all its ranks see it."""

    url: str
    split: str
    step: int
    samples_seen: int
    """Samples of all steps before: the `samples_seen` of the stream's state."""
    samples: tuple[PlacedSample, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    def lines(self) -> list[str]:
        """A table with one line a sample; columns are parted by tabs."""
        head = (
            f"{self.url}, split {self.split}, step {self.step}, {self.samples_seen:,} samples before it",
            "\t".join(("rank", "slot", "epoch", "position", "key", "shard", "record")),
        )
        return [*head, *("\t".join(str(value) for value in asdict(sample).values()) for sample in self.samples)]


def samples_of_step(url: str, split: str, question: Question, step: int, rank: int | None = None) -> Step:
    """The samples of step `step`, counted from 0 over all epochs, of one rank or of all.

    Reads the manifest and the indexes of those shards that the samples lie in.
    """
    if step < 0:
        raise ConfigError(f"step {step} does not exist; steps count from 0")
    if rank is not None:
        check_world_size(question.global_batch, rank, question.ranks)
    store, manifest = open_dataset(url)
    order = Split.of(manifest, split).order(question)
    table = SampleTable(store, manifest, split)
    samples = []
    for number in range(question.ranks) if rank is None else (rank,):
        own = order.rank_slice(step, number, question.ranks)
        shards = table.shards_holding(own.sample_id)
        columns = (
            own.epoch.tolist(),
            own.position.tolist(),
            table.records(own.sample_id)["key"].tolist(),
            shards.tolist(),
            (own.sample_id - np.asarray(table.first_sample)[shards]).tolist(),
        )
        for slot, (epoch, position, key, shard, record) in enumerate(zip(*columns, strict=True)):
            samples.append(
                PlacedSample(
                    rank=number,
                    slot=slot,
                    epoch=epoch,
                    position=position,
                    key=key.decode(),
                    shard=table.shards[shard].path,
                    record=record,
                )
            )
    return Step(url=url, split=split, step=step, samples_seen=step * question.global_batch, samples=tuple(samples))
