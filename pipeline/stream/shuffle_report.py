"""What `python -m pipeline.stream shuffle` says: the stream's mixing, others' beside it, what would be better."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from pipeline.stream.order import Order, OrderSettings, check_world_size
from pipeline.stream.shuffle_quality import (
    SOME,
    Int64s,
    Mixing,
    Places,
    expected_shards,
    groups_of_loader,
    groups_of_order,
    groups_of_permutation,
    mixing,
)
from sharding.errors import ConfigError
from sharding.manifest import Manifest

STREAM: Final = "this stream"
PERMUTATION: Final = "a full permutation"
LOADERS: Final = {
    "webdataset, shuffle(1000)": (1000, False),
    "TerraMesh's loader": (100, True),
}
"""Shuffle buffer, and whether shards are drawn anew each time (ResampledShards)."""
_WINDOWS: Final = (2, 4, 8)
"""Times the window that are tried when something better is looked for; and once and twice for each node."""
_BETTER: Final = 1.1
"""How many times as many shards among 64 are worth a word."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is streamed by how many, and how closely to look."""

    global_batch: int
    """Samples of one step over all ranks."""
    ranks: int
    """Ranks that share it."""
    nodes: int = 1
    """Nodes on which the ranks are, as many on each."""
    window_gib: float = 2.0
    """Shuffle window, see `OrderSettings.choose`."""
    groups: int = 0
    """Groups of streams; 0: one for each 512 samples of the global batch, see `OrderSettings.choose`."""
    seed: int = 0
    """Seed of the order."""
    batches: int = 200
    """Batches that are looked at."""

    def __post_init__(self) -> None:
        for name in ("global_batch", "ranks", "nodes", "batches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.groups < 0:
            raise ConfigError(f"groups is {self.groups}; it must be 0 (choose for me) or more")
        if not self.window_gib > 0:
            raise ConfigError(f"window_gib is {self.window_gib}; it must be above 0")
        check_world_size(self.global_batch, 0, self.ranks)
        if self.ranks % self.nodes:
            raise ConfigError(f"{self.ranks} ranks do not fill {self.nodes} nodes with as many each; take a multiple")

    @property
    def rank_batch(self) -> int:
        """Samples of one step on a rank."""
        return self.global_batch // self.ranks


@dataclass(frozen=True, kw_only=True)
class Split:
    """The samples of a split as the order sees them."""

    name: str
    shard_sizes: tuple[int, ...]
    sample_bytes: float
    fingerprint: str
    lies_as_found: bool = False
    """Whether sharding.index has indexed shards that others wrote; those of sharding.build are shuffled."""

    @classmethod
    def of(cls, manifest: Manifest, name: str) -> "Split":
        """The split `name` of a data set; DataError when there is none."""
        shards = manifest.shards_of(name)
        return cls(
            name=name,
            shard_sizes=tuple(shard.samples for shard in shards),
            sample_bytes=manifest.sample_bytes(name),
            fingerprint=manifest.fingerprint,
            lies_as_found=any(shard.parts for shard in shards),
        )

    @property
    def num_samples(self) -> int:
        """Samples of the split."""
        return sum(self.shard_sizes)

    def order(self, question: Question) -> Order:
        """The order in which `pipeline.stream.Stream` gives the split with these settings."""
        settings = OrderSettings.choose(
            self.shard_sizes,
            self.sample_bytes,
            question.global_batch,
            question.seed,
            question.window_gib,
            question.groups,
        )
        return Order(self.shard_sizes, settings, self.fingerprint, self.name)


@dataclass(frozen=True, kw_only=True)
class Better:
    """Settings that mix better."""

    window_gib: float
    global_batch: int
    shards_in_64: float
    window_bytes_of_node: float


@dataclass(frozen=True, kw_only=True)
class ShuffleReport:
    """The mixing of a split, of others on the same shards, and what would be better."""

    split: Split
    question: Question
    order: OrderSettings
    expected_in_batch: float
    """Distinct shards in a rank's batch of a full permutation: the mean over all permutations."""
    expected_in_64: float
    mixing: dict[str, Mixing]
    """This stream's, a full permutation's, and that of loaders which read whole shards."""
    window_bytes_of_node: float
    """Memory that the windows of a node's streams take when the data is not on its disk."""
    better: tuple[Better, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        split = {k: v for k, v in asdict(self.split).items() if k != "shard_sizes"}
        split |= {"samples": self.split.num_samples, "shards": len(self.split.shard_sizes)}
        return asdict(self) | {"split": split}


def measure_shuffle(split: Split, question: Question) -> ShuffleReport:
    """The report of a split; reads nothing."""
    order = split.order(question)
    places = Places(split.shard_sizes, order.settings.run_samples)
    size, num, seed = question.rank_batch, question.batches, question.seed
    groups: dict[str, Iterator[Int64s]] = {
        PERMUTATION: groups_of_permutation(split.num_samples, size, num, seed),
        STREAM: groups_of_order(order, question.ranks, num, seed),
    }
    for name, (buffer, again) in LOADERS.items():
        groups[name] = groups_of_loader(split.shard_sizes, buffer, size, num, replace=again, seed=seed)
    measured = {name: mixing(of_name, places, seed) for name, of_name in groups.items()}
    return ShuffleReport(
        split=split,
        question=question,
        order=order.settings,
        expected_in_batch=expected_shards(split.shard_sizes, size),
        expected_in_64=expected_shards(split.shard_sizes, SOME),
        mixing=measured,
        window_bytes_of_node=window_bytes_of_node(order, question.nodes, split.sample_bytes),
        better=tuple(_find_better(split, question, measured[STREAM].shards_in_64)),
    )


def window_bytes_of_node(order: Order, nodes: int, sample_bytes: float) -> float:
    """Memory for the shuffle windows of the streams of which a node gets samples; the node with most."""
    settings = order.settings
    per_node = settings.global_batch // nodes
    slots = order.batch(0).position % settings.num_streams
    streams = max(len(np.unique(slots[node * per_node : (node + 1) * per_node])) for node in range(nodes))
    samples = streams * (settings.window + 2 * settings.run_samples)
    return min(samples, order.num_samples) * sample_bytes


def _find_better(split: Split, question: Question, now: float) -> Iterator[Better]:
    """Larger windows that mix better, each than the one before."""
    good = expected_shards(split.shard_sizes, SOME) / _BETTER
    if now >= good:
        return
    best = now
    for times in sorted({*_WINDOWS, question.nodes, 2 * question.nodes} - {1}):
        better = _try(split, replace(question, window_gib=question.window_gib * times))
        if better.shards_in_64 >= best * _BETTER:
            best = better.shards_in_64
            yield better
        if best >= good:
            break


def _try(split: Split, question: Question) -> Better:
    order = split.order(question)
    places = Places(split.shard_sizes, order.settings.run_samples)
    found = mixing(groups_of_order(order, question.ranks, question.batches, question.seed), places, question.seed)
    return Better(
        window_gib=question.window_gib,
        global_batch=question.global_batch,
        shards_in_64=found.shards_in_64,
        window_bytes_of_node=window_bytes_of_node(order, question.nodes, split.sample_bytes),
    )


def shuffle_lines(report: ShuffleReport, url: str) -> list[str]:
    """The report in words."""
    split, question, order = report.split, report.question, report.order
    sizes, batch = split.shard_sizes, f"a batch of {question.rank_batch}"
    ranks, nodes = _count(question.ranks, "rank"), _count(question.nodes, "node")
    return [
        f"{url}, split {split.name}: {_count(split.num_samples, 'sample')} of {split.sample_bytes / 1e3:,.0f} kB in "
        f"{_count(len(sizes), 'shard')} of {min(sizes):,} to {max(sizes):,}",
        f"global batch {question.global_batch:,} on {ranks} of {nodes}: {_count(order.num_streams, 'stream')}, "
        f"runs of {_size(split, order.run_samples)}, windows of {_size(split, order.window)}",
        "",
        f"distinct shards, mean (fewest){batch:>20}    64 samples   neighbours",
        f"{PERMUTATION + ', expected':30}{report.expected_in_batch:12.1f}{report.expected_in_64:14.1f}",
        *(_mixing_line(name, found) for name, found in report.mixing.items()),
        "neighbours: samples that came in one batch with another of their run",
        "",
        _share_of_best(report),
        *_advice(report),
        f"The windows take {report.window_bytes_of_node / 2**30:,.2f} GiB of a node's memory when the data is in an "
        "object store, none when it is on a disk of the node.",
        _what_shards_mean(split),
    ]


def _what_shards_mean(split: Split) -> str:
    if split.lies_as_found:
        return (
            "These shards were indexed as they lie: samples of one shard are as alike as who wrote it left them, so "
            "the figures count."
        )
    return (
        "sharding.build has shuffled all samples by its seed before it cut these shards: a batch from few of them is "
        "mixed too. The figures would count for shards that were indexed as they lie."
    )


def _mixing_line(name: str, found: Mixing) -> str:
    return (
        f"{name:30}{found.shards_in_batch:12.1f} ({found.fewest_in_batch:4}){found.shards_in_64:7.1f} "
        f"({found.fewest_in_64:3}){100 * found.neighbours:11.1f} %"
    )


def _size(split: Split, samples: int) -> str:
    return f"{_count(samples, 'sample')} ({samples * split.sample_bytes / 1e6:,.1f} MB)"


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def _share_of_best(report: ShuffleReport) -> str:
    found = report.mixing[STREAM].shards_in_64
    others = " and ".join(f"{report.mixing[name].shards_in_64:.1f} with {name}" for name in LOADERS)
    return (
        f"64 samples of a rank come from {found:.1f} shards, {100 * found / report.expected_in_64:.0f} % of the "
        f"{report.expected_in_64:.1f} of a full permutation; from {others}."
    )


def _advice(report: ShuffleReport) -> list[str]:
    question = report.question
    if report.mixing[STREAM].shards_in_64 * _BETTER >= report.expected_in_64:
        return ["That is as good as a full permutation; a larger window would gain nothing."]
    lines = [
        f"Better: a window of {better.window_gib:g} GiB (--window-gib; in a run data.window_gib) gives "
        f"{better.shards_in_64:.1f} and takes {better.window_bytes_of_node / 2**30:,.2f} GiB on a node."
        for better in report.better
    ]
    if not report.better:
        lines.append(
            f"A window of up to {question.window_gib * max(*_WINDOWS, 2 * question.nodes):g} GiB would not help: each "
            f"of the {_count(report.order.num_streams, 'stream')} gives samples of few runs."
        )
    return lines
