"""Indexing an archive as it lies: look at some samples, index every shard that is not indexed yet, commit."""

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from tqdm import tqdm

from sharding import commit
from sharding.bands import ARRAY_BANDS
from sharding.errors import DataError
from sharding.foreign_archive import Archive, ArchiveShard, Found, IndexOptions
from sharding.foreign_pool import run_index_tasks
from sharding.foreign_shard import (
    IndexJob,
    IndexResult,
    IndexTask,
    checksum_of,
    files_digest,
    open_once,
    read_result,
    require_unique,
    spread,
)
from sharding.foreign_store import output_url, relative_data_url
from sharding.foreign_subsets import drop_subsets
from sharding.manifest import (
    BUILD_NAME,
    MANIFEST_NAME,
    ArraySpec,
    Manifest,
    SourceSpec,
    dump_manifest,
    parse_manifest,
)
from sharding.plan_store import BUILD_FOLDER
from sharding.provenance import made_by
from sharding.shard_index import FOREIGN_VERSION, parse_index
from sharding.shard_task import marker_path
from sharding.sources.base import ASKED_FOR, MISSING_HALF, OFFSET, PairError
from sharding.sources.listing import Refusal
from sharding.splits import SERIES
from sharding.store import Store

CODEC: Final = "as stored"
"""What the manifest says of the codec: each payload has its own."""
EXPECTED: Final = (*ASKED_FOR, MISSING_HALF, OFFSET)
"""Reasons to leave a sample out that published archives give: told, and no failure."""
_PROBED: Final = 5
_MAX_PROBES: Final = 64
_TRAIN: Final = "train"
_UNCHECKED: Final = (
    "no payload has a checksum, for a tar has none and --headers-only reads no pixels: bytes that are damaged later "
    "stream unnoticed; index it without --headers-only to have them checked"
)
_PACKAGES: Final = ("fsspec", "google-crc32c", "numcodecs", "numpy", "pyarrow")


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """All that is known before the first shard is indexed."""

    archive: Archive
    shards: list[ArchiveShard]
    found: Found
    state: str
    """Digest of the settings and of all files of the archive."""


def index_archive(
    source: str,
    root: str,
    out: str,
    options: IndexOptions,
    *,
    workers: int = 1,
    max_bad: int = 0,
    command: list[str] | None = None,
) -> tuple[dict[str, Any], bool]:
    """Index the archive `source` at `root`, into `out`.

    Returns the figures of the report and whether it was finished before. DataError when more than `max_bad` samples
    are refused for defects; what was indexed stays for the next attempt, without a manifest.
    """
    started = time.time()
    out = output_url(root, out)
    store = Store(out)
    plan = _plan(source, root, out, options)
    known = _find_finished(store)
    if known.get("state") == plan.state and store.exists(MANIFEST_NAME):
        return {**known["figures"], "out": out}, True
    with commit.building(store):
        arrays = _probe(_probed(source, root, options), plan.shards)
        job = IndexJob(source=source, root=root, options=options, arrays=arrays, out=out)
        # What it points to is about to change or to go; without a manifest there is no data set.
        store.remove(MANIFEST_NAME)
        results = _index_shards(store, job, plan, workers)
        refused = [*plan.found.refused, *(refusal for result in results for refusal in result.refused)]
        bad = commit.write_bad(store, refused)
        _require_enough(results, refused, max_bad, bad)
        manifest = _manifest(store, job, plan, results)
        figures = _figures(job, plan, manifest, results, refused, time.time() - started)
        _remove_strays(store, manifest, plan)
        dropped = drop_subsets(store, manifest)
        build = _provenance(job, plan, figures, command, started)
        store.write(BUILD_NAME, (json.dumps(build, indent=1, sort_keys=True) + "\n").encode())
        store.write(MANIFEST_NAME, dump_manifest(manifest))
    # A note of this run only: build.json keeps those of the index.
    return {**figures, "notes": [*figures["notes"], *_notes_of(dropped)], "out": out}, False


def _plan(source: str, root: str, out: str, options: IndexOptions) -> _Plan:
    archive, found = open_once(source, root, options), Found()
    shards = archive.shards(found)
    if not shards:
        raise DataError(f"{root} has no shard that can be indexed{_first(found.refused)}")
    told = [
        source,
        asdict(options),
        FOREIGN_VERSION,
        relative_data_url(root, out),
        [(shard.name, shard.split, shard.state) for shard in shards],
        [asdict(refusal) for refusal in found.refused],
    ]
    state = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return _Plan(archive=archive, shards=shards, found=found, state=state)


def _find_finished(store: Store) -> dict[str, Any]:
    """The `build.json` of an index in `store`; empty without one. DataError when it holds another data set."""
    if not store.exists(MANIFEST_NAME):
        return {}
    try:
        known: dict[str, Any] = json.loads(store.read(BUILD_NAME)) if store.exists(BUILD_NAME) else {}
    except ValueError:
        known = {}
    if "state" not in known:
        raise DataError(f"{store.url} holds a data set that sharding.index did not make; choose another --out")
    return known


def _probed(source: str, root: str, options: IndexOptions) -> Archive:
    """The archive as it is asked for its layout, which an unproven offset does not change."""
    archive = open_once(source, root, options)
    if archive.proves_offset and options.unproven_offset is None:
        return open_once(source, root, replace(options, unproven_offset=0.0))
    return archive


def _probe(archive: Archive, shards: list[ArchiveShard]) -> tuple[ArraySpec, ...]:
    """The arrays that most of the first few samples have, and those that ride along, as the first have them."""
    votes: Counter[tuple[ArraySpec, ...]] = Counter()
    riders: dict[str, ArraySpec] = {}
    error: Exception | None = None
    found = Found()
    probes = tries = 0
    for shard in shards:
        facts = archive.facts(shard)
        for entry in archive.entries(shard, facts, found)[:_MAX_PROBES]:
            tries += 1
            try:
                sample = archive.read(shard, entry, pixels=True)
            except PairError as refused:
                error = error or refused
                continue
            votes[tuple(a.spec for a in sample.arrays if a.spec.name not in archive.riders)] += 1
            for array in sample.arrays:
                if array.spec.name in archive.riders:
                    riders.setdefault(array.spec.name, array.spec)
            probes += 1
            if probes % _PROBED == 0:
                break
        complete = not archive.options.riders or riders.keys() >= set(archive.riders)
        if (probes >= _PROBED and complete) or tries >= _MAX_PROBES:
            break
    if not votes:
        told = f": {error}" if error else _first(found.refused)
        raise DataError(f"none of the first {tries} samples can be streamed as it lies{told}")
    chosen = votes.most_common(1)[0][0]
    return (*chosen, *(riders[name] for name in ARRAY_BANDS if name in riders))


def _index_shards(store: Store, job: IndexJob, plan: _Plan, workers: int) -> list[IndexResult]:
    """The results of all shards in their order, with what an earlier run has done."""
    count = len(plan.shards)
    tasks = [
        IndexTask(job=job, shard=shard, facts=None, sampled=sampled)
        for shard, sampled in zip(plan.shards, _quotas(plan.shards, job.options.statistics_from), strict=True)
    ]
    results: dict[str, IndexResult] = {}
    for task in tasks:
        if (known := read_result(store, task)) is not None:
            results[task.shard.name] = replace(known, moments={})
    todo = [task for task in tasks if task.shard.name not in results]
    if results:
        print(f"{len(results)} of {count} shards are indexed already", file=sys.stderr)
    with_facts: Iterator[IndexTask] = (replace(task, facts=plan.archive.facts(task.shard)) for task in todo)
    with tqdm(total=len(todo), unit="shard", disable=not sys.stderr.isatty()) as bar:
        for result in run_index_tasks(with_facts, min(workers, len(todo))):
            results[result.name] = result
            bar.update()
    return [results[task.shard.name] for task in tasks]


def _quotas(shards: list[ArchiveShard], wanted: int) -> list[int]:
    """How many samples of each shard are read for the statistics, `wanted` in all: of train, if there is one.

    Inputs are normalised with the statistics of train (`Manifest.training_statistics`).
    """
    drawn = [number for number, shard in enumerate(shards) if shard.split == _TRAIN] or list(range(len(shards)))
    quotas = [0] * len(shards)
    more = spread(len(drawn), wanted % len(drawn))
    for place, number in enumerate(drawn):
        quotas[number] = wanted // len(drawn) + (place in more)
    return quotas


def _require_enough(results: list[IndexResult], refused: list[Refusal], max_bad: int, bad: str) -> None:
    reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(r.reason for r in refused).most_common())
    defects = [refusal for refusal in refused if refusal.reason not in EXPECTED]
    if len(defects) > max_bad:
        raise DataError(
            f"{len(defects)} samples or tars are refused ({reasons}), --max-bad allows {max_bad}; the first: "
            f"{defects[0].file}: {defects[0].message}. All are in {bad}; mend or fetch them, or raise --max-bad"
        )
    if not any(result.spec for result in results):
        raise DataError(f"every sample is refused ({reasons}){_first(refused)}; all are in {bad}")


def _first(refused: list[Refusal]) -> str:
    return f"; the first: {refused[0].file}: {refused[0].message}" if refused else ""


def _manifest(store: Store, job: IndexJob, plan: _Plan, results: list[IndexResult]) -> Manifest:
    """The manifest of all shards; writes the statistics."""
    specs = [result.spec for result in results if result.spec]
    require_unique(
        (spec.index_path, parse_index(store.read(spec.index_path), spec.index_path).records) for spec in specs
    )
    counted = commit.write_statistics(store, _with_statistics(store, job, plan, results), None)
    if not counted.training_statistics:
        raise DataError(
            f"none of the {sum(result.sampled for result in results)} samples that were to be read for the statistics "
            "can be used, and without statistics no input can be normalised; raise --statistics-from, or leave "
            "--headers-only out"
        )
    levels = sorted({level for result in results for level in result.levels.get(job.source, [])})
    source = SourceSpec(
        name=job.source,
        version=plan.archive.version,
        samples=sum(spec.samples for spec in specs),
        levels=tuple(levels),
    )
    present = {band for result in results for band in result.bands}
    manifest = replace(
        counted,
        arrays=tuple(spec for spec in job.arrays if present.issuperset(spec.bands)),
        shards=tuple(sorted(specs, key=lambda spec: SERIES.index(spec.split))),
        sources=(source,),
        codec=CODEC,
        label_counts={},
        data_url=relative_data_url(job.root, job.out),
    )
    return parse_manifest(dump_manifest(manifest), store.name(MANIFEST_NAME))


def _with_statistics(store: Store, job: IndexJob, plan: _Plan, results: list[IndexResult]) -> Iterator[IndexResult]:
    """The markers of the results, one at a time."""
    for shard, result in zip(plan.shards, results, strict=True):
        task = IndexTask(job=job, shard=shard, facts=None, sampled=result.sampled)
        marker = read_result(store, task)
        if marker is None:
            raise DataError(
                f"files of the shard {shard.name} or of its index have changed meanwhile; the same command goes on"
            )
        yield marker


def _remove_strays(store: Store, manifest: Manifest, plan: _Plan) -> None:
    """Delete indexes and markers of shards that the archive has no more."""
    ours = {path for spec in manifest.shards for path in (spec.index_path, spec.metadata_path)}
    ours |= {marker_path(shard.name) for shard in plan.shards}
    for folder, suffix in (("index", ".idx"), ("metadata", ".jsonl"), (BUILD_FOLDER, ".json")):
        for path in store.files(folder):
            if path.endswith(suffix) and path not in ours:
                store.remove(path)


def _notes_of(dropped: list[str]) -> list[str]:
    if not dropped:
        return []
    return [f"the subsets {', '.join(dropped)} were of another index and are removed; choose again by sharding.subset"]


def _figures(
    job: IndexJob,
    plan: _Plan,
    manifest: Manifest,
    results: list[IndexResult],
    refused: list[Refusal],
    seconds: float,
) -> dict[str, Any]:
    notes = plan.found.counts.copy()
    for result in results:
        notes.update(result.notes)
    if checksum_of(job) == "none":
        notes[_UNCHECKED] += 1
    index_bytes = sum(spec.index_bytes + spec.metadata_bytes for spec in manifest.shards)
    samples = sum(manifest.splits.values())
    read = sum(result.read for result in results) if job.options.headers_only else samples
    return {
        "samples": samples,
        "refused": len(refused),
        "refused_by_reason": dict(sorted(Counter(refusal.reason for refusal in refused).items())),
        "splits": {
            split: {"samples": count, "shards": len(manifest.shards_of(split))}
            for split, count in manifest.splits.items()
        },
        "arrays": {spec.name: " ".join(spec.bands) for spec in manifest.arrays},
        "archive_mib": round(sum(spec.num_bytes for spec in manifest.shards) / 2**20, 3),
        "index_mib": round(index_bytes / 2**20, 3),
        "statistics_from": read,
        "notes": [note.replace("{}", str(count), 1) for note, count in sorted(notes.items()) if count],
        "seconds": round(seconds, 2),
        "fingerprint": manifest.fingerprint,
    }


def _provenance(
    job: IndexJob, plan: _Plan, figures: dict[str, Any], command: list[str] | None, started: float
) -> dict[str, Any]:
    """`build.json`: who made it, when and with what; nothing that readers need."""
    return {
        "state": plan.state,
        "files": {shard.name: files_digest(shard) for shard in plan.shards},
        "root": job.root,
        **made_by(command, started, _PACKAGES),
        "figures": figures,
    }


def table_lines(figures: dict[str, Any]) -> list[str]:
    """The figures for the terminal."""
    from sharding.report import align

    rows = [("samples", str(figures["samples"])), ("left out", str(figures["refused"]))]
    rows += [(f"  {reason}", str(count)) for reason, count in figures["refused_by_reason"].items()]
    for split, counts in figures["splits"].items():
        rows.append((split, f"{counts['samples']} samples in {counts['shards']} shards"))
    rows += [(f"array {name}", bands) for name, bands in figures["arrays"].items()]
    rows += [
        ("archive", f"{figures['archive_mib']:.1f} MiB, as it lies"),
        ("index", f"{figures['index_mib']:.1f} MiB"),
        ("statistics", f"from {figures['statistics_from']} samples"),
        ("time", f"{figures['seconds']:.1f} s"),
    ]
    return [f"note: {note}" for note in figures["notes"]] + align(rows)
