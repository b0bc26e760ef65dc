"""Building one shard: an independent task that can run in any process and leaves a marker when it is done."""

import contextlib
import datetime
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from sharding.histogram import Histogram
from sharding.layout import Layout, require_layout
from sharding.manifest import ShardSpec
from sharding.plan import Settings, pairs_of_shard, stored_sample
from sharding.plan_store import BUILD_FOLDER, read_rows
from sharding.shard_index import dump_index
from sharding.sources import open_source
from sharding.sources.base import DAYS, PairError, Sample, Source, SourceFile, SourceOptions
from sharding.sources.listing import Pair, Refusal
from sharding.sources.places import refusal_of
from sharding.statistics import Moments
from sharding.store import Store

_DAY_S: Final = 86_400


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all shards of a build share."""

    digest: str
    """Of the plan."""
    settings: Settings
    layout: Layout
    vocabulary: tuple[str, ...]
    out: str


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """All that a process needs to build one shard, but its rows, which lie beside the data set."""

    job: Job
    number: int
    name: str
    split: str
    num_pairs: int


@dataclass(kw_only=True)
class ShardResult:
    """What the manifest needs to know of a finished shard; kept as a marker until the manifest is written."""

    name: str
    plan: str
    """Digest of the plan."""
    files: str
    """Digest of the archive's files that it was made of: paths, sizes, times."""
    spec: ShardSpec | None
    """None when every pair was refused."""
    moments: dict[str, Moments] = field(default_factory=dict)
    label_counts: dict[str, int] = field(default_factory=dict)
    bands: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    """Samples of each source."""
    levels: dict[str, list[str]] = field(default_factory=dict)
    s1_error_db: float = 0.0
    refused: list[Refusal] = field(default_factory=list)
    built_now: bool = True
    """False when an earlier run has built it."""

    def dump(self) -> bytes:
        """The bytes of the marker."""
        content = {
            **vars(self),
            "spec": asdict(self.spec) if self.spec else None,
            "refused": [asdict(refusal) for refusal in self.refused],
            "moments": {
                band: vars(moments) | {"histogram": moments.histogram.pack()} for band, moments in self.moments.items()
            },
        }
        del content["built_now"]
        return json.dumps(content, sort_keys=True).encode()

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """The result in a marker; ValueError, TypeError or KeyError when it is none of this program."""
        raw: dict[str, Any] = json.loads(content)
        raw["spec"] = ShardSpec(**raw["spec"]) if raw["spec"] else None
        raw["moments"] = {
            band: Moments(**moments | {"histogram": Histogram.unpack(moments["histogram"])})
            for band, moments in raw["moments"].items()
        }
        raw["refused"] = [Refusal(**refusal) for refusal in raw["refused"]]
        return cls(**raw, built_now=False)


def marker_path(shard: str) -> str:
    """Where the marker of a shard lies in the data set."""
    return f"{BUILD_FOLDER}/{shard}.json"


def read_marker(store: Store, shard: str, plan: str) -> ShardResult | None:
    """The result of an earlier run of the same plan, if its files are whole; else None."""
    if not store.exists(marker_path(shard)):
        return None
    try:
        result = ShardResult.parse(store.read(marker_path(shard)))
    except (ValueError, TypeError, KeyError):
        return None
    if result.plan != plan:
        return None
    for path, size, _ in result.spec.files if result.spec else ():
        if not store.exists(path) or store.size(path) != size:
            return None
    return result


_opened: dict[tuple[str, str, SourceOptions], Source] = {}


def _open(name: str, root: str, options: SourceOptions) -> Source:
    if (name, root, options) not in _opened:
        _opened[name, root, options] = open_source(name, root, options)
    return _opened[name, root, options]


def finish_shard(task: ShardTask, scratch: str, progress: Callable[[], None]) -> ShardResult:
    """The result of a shard: an earlier run's when it is whole and its rasters are unchanged, else built now."""
    job, store = task.job, Store(task.job.out)
    options = job.settings.options
    sources = [_open(name, root, options) for name, root in job.settings.sources]
    pairs = pairs_of_shard(read_rows(store, task.number, job.digest))
    files, missing = digest_files(sources, pairs)
    known = read_marker(store, task.name, job.digest)
    if known is not None and known.files == files:
        for _ in pairs:
            progress()
        return known
    result = ShardResult(name=task.name, plan=job.digest, files=files, spec=None)
    _build(task, store, Path(scratch), sources, pairs, missing, result, progress)
    store.write(marker_path(task.name), result.dump())
    return result


def digest_files(sources: list[Source], pairs: list[tuple[int, Pair]]) -> tuple[str, dict[str, PairError]]:
    """The digest of all files of the pairs, and what is missing, by key."""
    digest, missing = hashlib.sha256(), {}
    for number, pair in pairs:
        try:
            found: tuple[SourceFile, ...] = sources[number].files(pair)
            told: list[Any] = [(file.path, file.size, file.version) for file in found]
        except PairError as error:
            missing[pair.key] = error
            told = [error.reason, error.file]
        digest.update(json.dumps([pair.key, told]).encode())
    return digest.hexdigest(), missing


def _build(
    task: ShardTask,
    store: Store,
    scratch: Path,
    sources: list[Source],
    pairs: list[tuple[int, Pair]],
    missing: dict[str, PairError],
    result: ShardResult,
    progress: Callable[[], None],
) -> None:
    """Read, check and write the samples, then the index and the metadata; refused pairs are left out."""
    from sharding.writer import ShardWriter

    job, name = task.job, task.name
    partial = scratch / f"{name}.tar.partial"
    try:
        with _naming(partial):
            with ShardWriter(
                partial,
                arrays=tuple(job.layout.arrays),
                codec=job.settings.codec,
                vocabulary=job.vocabulary,
                split=task.split,
            ) as writer:
                for number, pair in pairs:
                    try:
                        if pair.key in missing:
                            raise missing[pair.key]
                        sample, error_db = _read(sources[number], pair, job)
                    except PairError as error:
                        result.refused.append(refusal_of(pair, sources[number], error))
                    else:
                        writer.write(sample)
                        _count(result, sample, error_db)
                    progress()
                finished = writer.finish() if result.counts else None
            if finished is not None:
                result.moments, result.label_counts = finished.moments, finished.label_counts
                path, index_path, metadata_path = f"shards/{name}.tar", f"index/{name}.idx", f"metadata/{name}.jsonl"
                index = dump_index(finished.index)
                store.put(partial, path)
                store.write(index_path, index)
                store.write(metadata_path, finished.metadata)
                result.spec = ShardSpec(
                    path=path,
                    split=task.split,
                    samples=len(finished.index.records),
                    tar_samples=len(finished.index.records),
                    num_bytes=finished.num_bytes,
                    sha256=finished.sha256,
                    index_path=index_path,
                    index_bytes=len(index),
                    index_sha256=hashlib.sha256(index).hexdigest(),
                    metadata_path=metadata_path,
                    metadata_bytes=len(finished.metadata),
                    metadata_sha256=hashlib.sha256(finished.metadata).hexdigest(),
                )
    finally:
        partial.unlink(missing_ok=True)


def _read(source: Source, pair: Pair, job: Job) -> tuple[Sample, float]:
    sample = source.read(pair)
    _refuse_days_apart(sample, job.settings.max_days, pair.s1)
    sample, error_db = stored_sample(sample, job.settings)
    require_layout(sample, job.layout, pair.s2)
    return sample, error_db


def _refuse_days_apart(sample: Sample, max_days: float | None, file: str) -> None:
    if max_days is None or not {"s1", "s2"} <= sample.dates.keys():
        return
    days = abs((_moment(sample.dates["s1"]) - _moment(sample.dates["s2"])).total_seconds()) / _DAY_S
    if days > max_days:
        raise PairError(
            DAYS,
            file,
            f"S1 of {sample.dates['s1']} and S2 of {sample.dates['s2']} are {days:.1f} days apart, --max-days is "
            f"{max_days:g}",
        )


def _moment(text: str) -> datetime.datetime:
    moment = datetime.datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


def _count(result: ShardResult, sample: Sample, error_db: float) -> None:
    result.counts[sample.source] = result.counts.get(sample.source, 0) + 1
    result.s1_error_db = max(result.s1_error_db, error_db)
    levels = result.levels.setdefault(sample.source, [])
    if sample.level not in levels:
        levels.append(sample.level)
    result.bands += [band for band in sample.bands if band not in result.bands]


@contextlib.contextmanager
def _naming(path: Path) -> Any:
    """A full disk is told by write(2) without a file's name; the message needs one."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
