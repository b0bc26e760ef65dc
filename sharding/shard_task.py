"""Building one shard: an independent task that can run in any process and leaves a marker when it is done."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from sharding.index import dump_index
from sharding.layout import Layout, require_layout
from sharding.manifest import ShardSpec
from sharding.plan import PlannedShard
from sharding.sources import open_source
from sharding.sources.base import PairError, Refusal, Sample, Source
from sharding.statistics import Moments
from sharding.store import Store

BUILD_FOLDER: Final = ".build"


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """All that a process needs to build one shard."""

    shard: PlannedShard
    digest: str
    sources: tuple[tuple[str, str], ...]
    vocabulary: tuple[str, ...]
    layout: Layout
    codec: str
    out: str
    scratch: str
    """A local folder for the tar while it grows; the caller deletes it."""


@dataclass(kw_only=True)
class ShardResult:
    """What the manifest needs to know of a finished shard; kept as a marker until the manifest is written."""

    digest: str
    spec: ShardSpec | None
    """None when every pair was refused."""
    moments: dict[str, Moments] = field(default_factory=dict)
    bands: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    """Samples of each source."""
    levels: dict[str, list[str]] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)

    def dump(self) -> bytes:
        """The bytes of the marker."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """The result in a marker; ValueError, TypeError or KeyError when it is none of this program."""
        raw: dict[str, Any] = json.loads(content)
        return cls(
            digest=raw["digest"],
            spec=ShardSpec(**raw["spec"]) if raw["spec"] else None,
            moments={band: Moments(**m) for band, m in raw["moments"].items()},
            bands=raw["bands"],
            counts=raw["counts"],
            levels=raw["levels"],
            refused=[Refusal(**r) for r in raw["refused"]],
        )


def marker_path(shard: str) -> str:
    """Where the marker of a shard lies in the data set."""
    return f"{BUILD_FOLDER}/{shard}.json"


def find_result(store: Store, shard: str, digest: str) -> ShardResult | None:
    """The result of an earlier run, if its marker says the same digest and its files are whole; else None."""
    if not store.exists(marker_path(shard)):
        return None
    try:
        result = ShardResult.parse(store.read(marker_path(shard)))
    except (ValueError, TypeError, KeyError):
        return None
    if result.digest != digest:
        return None
    spec = result.spec
    if spec is not None:
        for path, size in ((spec.path, spec.num_bytes), (spec.index_path, spec.index_bytes)):
            if not store.exists(path) or store.size(path) != size:
                return None
    return result


_opened: dict[tuple[str, str], Source] = {}


def _open(name: str, root: str) -> Source:
    if (name, root) not in _opened:
        _opened[name, root] = open_source(name, root)
    return _opened[name, root]


def build_shard(task: ShardTask, progress: Callable[[], None]) -> ShardResult:
    """Read, check and write the samples of a shard, then its index, then its marker; refused pairs are left out."""
    from sharding.writer import ShardWriter

    sources = [_open(name, root) for name, root in task.sources]
    store = Store(task.out)
    result = ShardResult(digest=task.digest, spec=None)
    name, split = task.shard.name, task.shard.split
    partial = Path(task.scratch) / f"{name}.tar.partial"
    try:
        with _naming(partial):
            with ShardWriter(
                partial, arrays=tuple(task.layout.arrays), codec=task.codec, vocabulary=task.vocabulary
            ) as writer:
                for number, pair in task.shard.pairs:
                    try:
                        sample = sources[number].read(pair)
                        require_layout(sample, task.layout, pair.s2)
                    except PairError as error:
                        result.refused.append(
                            Refusal(
                                key=pair.key,
                                source=pair.source,
                                reason=error.reason,
                                file=error.file,
                                message=error.message,
                            )
                        )
                    else:
                        writer.write(sample)
                        _count(result, sample)
                    progress()
                finished = writer.finish() if result.counts else None
            if finished is not None:
                index = dump_index(finished.index)
                path, index_path = f"shards/{name}.tar", f"index/{name}.idx"
                store.put(partial, path)
                store.write(index_path, index)
                result.moments = finished.moments
                result.spec = ShardSpec(
                    path=path,
                    split=split,
                    samples=len(finished.index.records),
                    num_bytes=finished.num_bytes,
                    sha256=finished.sha256,
                    index_path=index_path,
                    index_bytes=len(index),
                    index_sha256=_sha256(index),
                )
        store.write(marker_path(name), result.dump())
    finally:
        partial.unlink(missing_ok=True)
    return result


def _count(result: ShardResult, sample: Sample) -> None:
    result.counts[sample.source] = result.counts.get(sample.source, 0) + 1
    levels = result.levels.setdefault(sample.source, [])
    if sample.level not in levels:
        levels.append(sample.level)
    result.bands += [band for band in sample.bands if band not in result.bands]


def _sha256(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def _naming(path: Path) -> Any:
    """A full disk is told by write(2) without a file's name; the message needs one."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
