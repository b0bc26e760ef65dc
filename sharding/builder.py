"""Building a data set: plan, build the shards that are not there yet, commit."""

import datetime
import importlib.metadata
import os
import platform
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Final

from tqdm import tqdm

from sharding import commit
from sharding.errors import DataError
from sharding.layout import Layout, find_layout
from sharding.manifest import MANIFEST_NAME, dump_manifest, parse_manifest
from sharding.plan import Plan, Settings, make_plan, plan_digest, shard_digest
from sharding.pool import run_tasks
from sharding.report import build_figures
from sharding.shard_task import ShardResult, ShardTask, find_result
from sharding.sources import open_source
from sharding.sources.base import Source
from sharding.store import Store

_PACKAGES: Final = ("fsspec", "lmdb", "numcodecs", "numpy", "pyarrow", "rasterio", "safetensors", "webdataset")


# A worker needs two to four seconds to start (webdataset imports torch); 500 pairs take it eight.
_PAIRS_WORTH_A_WORKER: Final = 500


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    plan: Plan
    sources: list[Source]
    layout: Layout
    digests: dict[str, str]
    """By the name of the shard."""
    plan_id: str


def build(
    settings: Settings, out: str, *, workers: int | None = None, max_bad: int = 0, command: list[str] | None = None
) -> tuple[dict[str, Any], bool]:
    """Build the data set of `settings` at `out`, with one worker a core, or fewer when there is little to do.

    Returns the figures of the report and whether it was finished before. Raises DataError when more than `max_bad`
    pairs are refused; what was built stays for the next attempt, without a manifest.
    """
    started = time.time()
    store = Store(out)
    prepared = _prepare(settings)
    plan = prepared.plan
    if commit.find_finished(store, prepared.plan_id):
        commit.tidy(store)
        manifest = parse_manifest(store.read(MANIFEST_NAME), store.name(MANIFEST_NAME))
        return build_figures(plan, manifest, list(plan.refused), time.time() - started), True
    with commit.building(store) as scratch:
        if workers is None:
            workers = min(len(os.sched_getaffinity(0)), 1 + plan.num_pairs // _PAIRS_WORTH_A_WORKER)
        results = _build_shards(prepared, store, str(scratch), workers)
        refused = [*plan.refused, *(refusal for result in results for refusal in result.refused)]
        bad = commit.write_bad(store, refused)
        if len(refused) > max_bad:
            reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(r.reason for r in refused).most_common())
            raise DataError(
                f"{len(refused)} of {plan.num_found} pairs are refused ({reasons}), --max-bad allows {max_bad}; "
                f"the first: {refused[0].file}: {refused[0].message}. All are in {bad}; "
                "mend or remove them, or raise --max-bad"
            )
        if not any(result.spec for result in results):
            raise DataError(f"every pair is refused; the reasons are in {bad}")
        commit.remove_strays(store, results)
        manifest = commit.make_manifest(plan, prepared.layout, prepared.sources, results)
        manifest = parse_manifest(dump_manifest(manifest), store.name(MANIFEST_NAME))
        figures = build_figures(plan, manifest, refused, time.time() - started)
        commit.commit(store, manifest, _provenance(prepared.plan_id, figures, command, started))
    return figures, False


def _prepare(settings: Settings) -> _Prepared:
    sources = [open_source(name, root) for name, root in settings.sources]
    plan = make_plan(settings, sources, [source.list() for source in sources])
    layout = find_layout(plan, sources)
    described = asdict(layout)
    digests = {shard.name: shard_digest(shard, plan, described) for shard in plan.shards}
    return _Prepared(
        plan=plan, sources=sources, layout=layout, digests=digests, plan_id=plan_digest(digests.values(), plan.refused)
    )


def _build_shards(prepared: _Prepared, store: Store, scratch: str, workers: int) -> list[ShardResult]:
    """The results of all shards in the order of the plan; those of an earlier run are taken over."""
    plan, digests = prepared.plan, prepared.digests
    found = {shard.name: find_result(store, shard.name, digests[shard.name]) for shard in plan.shards}
    results = {name: result for name, result in found.items() if result is not None}
    open_shards = [shard for shard in plan.shards if shard.name not in results]
    tasks = [
        ShardTask(
            shard=shard,
            digest=digests[shard.name],
            sources=plan.settings.sources,
            vocabulary=plan.vocabulary,
            layout=prepared.layout,
            codec=plan.settings.codec,
            out=store.url,
            scratch=scratch,
        )
        for shard in open_shards
    ]
    by_digest = {task.digest: task.shard.name for task in tasks}
    done = plan.num_pairs - sum(len(shard.pairs) for shard in open_shards)
    if done:
        print(f"{len(plan.shards) - len(tasks)} of {len(plan.shards)} shards are built already", file=sys.stderr)
    with tqdm(total=plan.num_pairs, initial=done, unit="pair", disable=not sys.stderr.isatty()) as bar:
        for result in run_tasks(tasks, workers, bar.update):
            results[by_digest[result.digest]] = result
    return [results[shard.name] for shard in plan.shards]


def _provenance(plan_id: str, figures: dict[str, Any], command: list[str] | None, started: float) -> dict[str, Any]:
    """`build.json`: who built it, when and with what; nothing that readers need."""
    return {
        "plan": plan_id,
        "command": command,
        "host": platform.node(),
        "started": datetime.datetime.fromtimestamp(started, datetime.UTC).isoformat(timespec="seconds"),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": sys.version.split()[0],
            **{package: importlib.metadata.version(package) for package in _PACKAGES},
        },
        "figures": figures,
    }
