"""Building a data set: plan, build the shards that are not there yet, commit."""

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from tqdm import tqdm

from sharding import commit
from sharding.array_job import ArrayJob, run_array
from sharding.errors import DataError
from sharding.existing import read_existing
from sharding.manifest import MANIFEST_NAME, Manifest, dump_manifest, parse_manifest
from sharding.plan import Existing, Plan, Settings, make_plan, pairs_of_shard
from sharding.plan_store import write_plan
from sharding.pool import run_tasks
from sharding.provenance import made_by
from sharding.report import build_figures
from sharding.shard_task import Job, ShardResult, ShardTask, digest_files, read_marker
from sharding.sources import open_source
from sharding.sources.base import ASKED_FOR, Source
from sharding.sources.listing import Refusal
from sharding.store import Store

_PACKAGES: Final = ("fsspec", "lmdb", "numcodecs", "numpy", "pyarrow", "rasterio", "safetensors", "webdataset", "zarr")


# A worker needs two to four seconds to start (webdataset imports torch); 500 pairs take it eight.
_PAIRS_WORTH_A_WORKER: Final = 500


@dataclass(frozen=True, kw_only=True)
class Means:
    """What builds the shards."""

    workers: int | None = None
    """Processes on a machine; None: one a core, fewer for little data."""
    array: ArrayJob | None = None
    """A SLURM job array instead of this machine."""


def build(
    settings: Settings,
    out: str,
    *,
    means: Means | None = None,
    max_bad: int = 0,
    command: list[str] | None = None,
    recheck: bool = False,
) -> tuple[dict[str, Any], bool]:
    """Build the data set of `settings` at `out`.

    Returns the figures of the report and whether it was finished before. Raises DataError when more than `max_bad`
    pairs are refused; what was built stays for the next attempt, without a manifest. `recheck`: of a data set that is
    finished, compare the sizes and times of all of the archive's files with those that it was built from; DataError
    when some have changed.
    """
    started = time.time()
    store = Store(out)
    sources, plan = _plan(settings, None)
    known = commit.find_finished(store, plan.digest)
    if known is not None:
        if recheck:
            _refuse_changed_files(store, plan, sources, known.get("files", {}))
        commit.tidy(store)
        manifest = parse_manifest(store.read(MANIFEST_NAME), store.name(MANIFEST_NAME))
        return build_figures(plan, manifest, list(plan.refused), time.time() - started), True
    figures = _finish(store, plan, sources, None, means or Means(), max_bad, command, started)
    return figures, False


def extend(
    settings: Settings, url: str, *, means: Means | None = None, max_bad: int = 0, command: list[str] | None = None
) -> tuple[dict[str, Any], bool]:
    """Add what the sources of `settings` have and the data set at `url` has not, as a new version of it.

    Returns the figures of what was added and whether there was nothing to add. `settings.codec` and `settings.s1`
    must be those of the data set. Raises as `build` does.
    """
    started = time.time()
    store = Store(url)
    existing = read_existing(url)
    sources, plan = _plan(settings, existing)
    if not plan.num_pairs and not plan.refused:
        return build_figures(plan, None, [], time.time() - started), True
    figures = _finish(store, plan, sources, existing.manifest, means or Means(), max_bad, command, started)
    return figures, False


def _plan(settings: Settings, existing: Existing | None) -> tuple[list[Source], Plan]:
    sources = [open_source(name, root, settings.options) for name, root in settings.sources]
    return sources, make_plan(settings, sources, [source.list() for source in sources], existing)


def _finish(
    store: Store,
    plan: Plan,
    sources: list[Source],
    base: Manifest | None,
    means: Means,
    max_bad: int,
    command: list[str] | None,
    started: float,
) -> dict[str, Any]:
    with commit.building(store) as scratch:
        results = _build_shards(plan, store, str(scratch), means)
        refused = [*plan.refused, *(refusal for result in results for refusal in result.refused)]
        bad = commit.write_bad(store, refused)
        _require_enough(plan, results, refused, max_bad, bad)
        specs = [*(base.shards if base else ()), *(result.spec for result in results if result.spec)]
        commit.remove_strays(store, specs)
        counted = commit.write_statistics(store, _with_statistics(store, plan, results), base)
        manifest = commit.make_manifest(plan, sources, results, counted, base)
        manifest = parse_manifest(dump_manifest(manifest), store.name(MANIFEST_NAME))
        figures = build_figures(plan, manifest, refused, time.time() - started)
        commit.commit(store, manifest, _provenance(plan, results, figures, command, started), base)
    return figures


def _build_shards(plan: Plan, store: Store, scratch: str, means: Means) -> list[ShardResult]:
    """The results of all shards in the order of the plan; those of an earlier run are taken over."""
    job = Job(
        digest=plan.digest,
        settings=plan.settings,
        layout=plan.layout,
        vocabulary=plan.vocabulary,
        out=store.url,
    )
    tasks = [
        ShardTask(job=job, number=number, name=shard.name, split=shard.split, num_pairs=shard.num_pairs)
        for number, shard in enumerate(plan.shards)
    ]
    write_plan(store, plan)
    results: dict[str, ShardResult] = {}
    with tqdm(total=plan.num_pairs, unit="pair", disable=not sys.stderr.isatty()) as bar:
        if means.array is not None:
            found: Iterator[ShardResult] = run_array(tasks, means.array, store, bar.update)
        else:
            workers = means.workers
            if workers is None:
                workers = min(len(os.sched_getaffinity(0)), 1 + plan.num_pairs // _PAIRS_WORTH_A_WORKER)
            found = run_tasks(tasks, workers, scratch, bar.update)
        for result in found:
            results[result.name] = result
    before = sum(not result.built_now for result in results.values())
    if before:
        print(f"{before} of {len(tasks)} shards are built already", file=sys.stderr)
    return [results[task.name] for task in tasks]


def _with_statistics(store: Store, plan: Plan, results: list[ShardResult]) -> Iterator[ShardResult]:
    """The markers of the results, one at a time."""
    for result in results:
        marker = read_marker(store, result.name, plan.digest)
        if marker is None:
            raise DataError(
                f"the files of the shard {result.name} in {store.url} have changed since it was built; "
                "the same command builds it again"
            )
        yield marker


def _require_enough(plan: Plan, results: list[ShardResult], refused: list[Refusal], max_bad: int, bad: str) -> None:
    reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(r.reason for r in refused).most_common())
    defects = [refusal for refusal in refused if refusal.reason not in ASKED_FOR]
    if len(defects) > max_bad:
        raise DataError(
            f"{len(refused)} of {plan.num_found} pairs are refused ({reasons}), --max-bad allows {max_bad}; "
            f"the first: {defects[0].file}: {defects[0].message}. All are in {bad}; "
            "mend or remove them, or raise --max-bad"
        )
    if not any(result.spec for result in results):
        raise DataError(f"every pair is refused ({reasons}); the files and what to do are in {bad}")


def _refuse_changed_files(store: Store, plan: Plan, sources: list[Source], known: dict[str, str]) -> None:
    changed = []
    for shard in tqdm(plan.shards, unit="shard", disable=None):
        pairs = pairs_of_shard(plan.table.slice(shard.start, shard.num_pairs))
        if digest_files(sources, pairs)[0] != known.get(shard.name):
            changed.append(shard.name)
    if changed:
        raise DataError(
            f"files of {len(changed)} of {len(plan.shards)} shards of {store.url} have another size or time than when "
            f"it was built (a fresh copy of the archive counts), the first in {changed[0]}; use it as it is if the "
            "pixels are the same, else choose another --out, or delete it first"
        )


def _provenance(
    plan: Plan, results: list[ShardResult], figures: dict[str, Any], command: list[str] | None, started: float
) -> dict[str, Any]:
    """`build.json`: who built it, when and with what; nothing that readers need."""
    return {
        "plan": plan.digest,
        "files": {result.name: result.files for result in results},
        **made_by(command, started, _PACKAGES),
        "figures": figures,
    }
