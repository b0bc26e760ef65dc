"""From finished shards to a data set: the manifest is written last, and before it all that lies beside it."""

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from sharding.bands import ARRAY_BANDS
from sharding.dataset import VERSIONS, version_path
from sharding.errors import ConfigError, DataError
from sharding.lock import hold
from sharding.manifest import (
    ALL_SPLITS,
    BUILD_NAME,
    MANIFEST_NAME,
    Manifest,
    ShardSpec,
    SourceSpec,
    dump_manifest,
)
from sharding.plan import Plan
from sharding.plan_store import BUILD_FOLDER
from sharding.shard_task import ShardResult
from sharding.sources.base import Source
from sharding.sources.listing import Refusal
from sharding.splits import SERIES
from sharding.statistics import Moments, band_statistics, dump_statistics, parse_statistics
from sharding.store import Store

BAD_NAME: Final = "bad.jsonl"
_OURS: Final = re.compile(rf"(?:shards|index|metadata)/(?:{'|'.join(SERIES)})-\d{{6}}\.(?:tar|idx|jsonl)")
_PARTIAL: Final = re.compile(r"(?:\.?[a-z]+/)?\.[^/]+\.[0-9a-f]{32}\.partial")
_LOCK: Final = f"{BUILD_FOLDER}/lock"


def find_finished(store: Store, plan_digest: str) -> dict[str, Any] | None:
    """The `build.json` of this very data set if it is finished in `store`; DataError when another one is."""
    if not store.exists(MANIFEST_NAME):
        return None
    try:
        known: dict[str, Any] = json.loads(store.read(BUILD_NAME)) if store.exists(BUILD_NAME) else {}
    except ValueError:
        known = {}
    if known.get("plan") != plan_digest:
        raise DataError(
            f"{store.url} holds a finished data set, built from another archive or with other settings; use it as it "
            "is, add to it with python -m sharding.extend, choose another --out, or delete it first"
        )
    return known


@contextlib.contextmanager
def building(store: Store) -> Iterator[Path]:
    """Hold the output against a second build, and give a scratch folder that is gone afterwards."""
    if not store.is_local:
        with tempfile.TemporaryDirectory(prefix="shards-") as folder:
            yield Path(folder)
        return
    out = Path(store.root)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {store.url} is a file; give a folder that is new or empty")
    build = out / BUILD_FOLDER
    if out.is_dir() and not build.is_dir() and not (out / MANIFEST_NAME).exists():
        strangers = [path for path in ("shards", "index", "metadata") if (out / path).exists()]
        if strangers:
            raise DataError(f"{store.url} has a folder {strangers[0]} that no build here left; choose another --out")
    build.mkdir(parents=True, exist_ok=True)
    try:
        lock = hold(out / _LOCK, f"process {os.getpid()} on {platform.node()}")
    except BlockingIOError as error:
        raise DataError(
            f"another build ({error.strerror}) is writing to {store.url}; wait for it or choose another --out"
        ) from error
    with lock or contextlib.nullcontext():
        for stale in build.glob("scratch-*"):
            shutil.rmtree(stale)
        scratch = Path(tempfile.mkdtemp(prefix="scratch-", dir=build))
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            # A worker that is ended while it writes leaves a part; nobody else writes here now.
            for place in (out, *(path for path in out.iterdir() if path.is_dir())):
                for partial in place.glob(".*.partial"):
                    if _PARTIAL.fullmatch(partial.name):
                        partial.unlink(missing_ok=True)


def remove_strays(store: Store, shards: Iterable[ShardSpec]) -> None:
    """Delete what an interrupted build left: half-written files, and shards of other settings."""
    ours = {path for spec in shards for path, _, _ in spec.files}
    for path in store.files():
        if _PARTIAL.fullmatch(path) or (_OURS.fullmatch(path) and path not in ours):
            store.remove(path)


def write_bad(store: Store, refused: list[Refusal], name: str = BAD_NAME) -> str:
    """List the refused pairs, one JSON object a line, by source and key; returns the name of the list."""
    ordered = sorted(refused, key=lambda r: (r.source, r.key, r.file, r.message))
    lines = [json.dumps(asdict(refusal), sort_keys=True, ensure_ascii=False) + "\n" for refusal in ordered]
    store.write(name, "".join(lines).encode())
    return store.name(name)


def write_statistics(store: Store, results: Iterable[ShardResult], base: Manifest | None) -> Manifest:
    """Merge the statistics of finished shards in their order, write them, and give a manifest that holds only them.

    Results are taken one at a time, so that the histograms of one shard are in memory, not those of all.
    """
    merged: dict[str, dict[str, Moments]] = {}
    labels: dict[str, Counter[str]] = {}
    if base is not None:
        name = store.name(base.statistics_path)
        merged = parse_statistics(store.read(base.statistics_path), name)
        labels = {split: Counter(counts) for split, counts in base.label_counts.items()}
    error_db = base.s1_error_db if base else 0.0
    for result in results:
        if result.spec is None:
            continue
        error_db = max(error_db, result.s1_error_db)
        for split in (result.spec.split, ALL_SPLITS) if result.moments else ():
            total = merged.setdefault(split, {})
            for band, moments in result.moments.items():
                total[band] = total[band] + moments if band in total else moments
        labels.setdefault(result.spec.split, Counter()).update(result.label_counts)
    ordered: dict[str, dict[str, Moments]] = {s: merged[s] for s in (*SERIES, ALL_SPLITS) if s in merged}
    content = dump_statistics(ordered)
    version = base.version + 1 if base else 1
    path = f"statistics-{version:06d}.json"
    store.write(path, content)
    bands = [band for names in ARRAY_BANDS.values() for band in names]
    return Manifest(
        arrays=(),
        shards=(),
        labels=(),
        sources=(),
        codec="",
        statistics={
            split: {band: band_statistics(found[band]) for band in bands if band in found}
            for split, found in ordered.items()
        },
        statistics_path=path,
        statistics_sha256=hashlib.sha256(content).hexdigest(),
        label_counts={split: dict(sorted(labels[split].items())) for split in SERIES if split in labels},
        s1_error_db=float(f"{error_db:.6g}"),
        version=version,
        parent=base.fingerprint if base else "",
    )


def make_manifest(
    plan: Plan, sources: list[Source], results: list[ShardResult], counted: Manifest, base: Manifest | None
) -> Manifest:
    """The manifest of finished shards, which come in the order of the plan; `counted` is that of `write_statistics`."""
    present = {band for result in results for band in result.bands} | set(base.bands if base else ())
    arrays = []
    for name, shared in plan.layout.arrays.items():
        bands = tuple(band for band in ARRAY_BANDS[name] if band in present)
        if bands:
            arrays.append(shared.spec(name, bands))
    specs = [*(base.shards if base else ()), *(result.spec for result in results if result.spec)]
    return replace(
        counted,
        arrays=tuple(arrays),
        shards=tuple(sorted(specs, key=lambda spec: SERIES.index(spec.split))),
        labels=plan.vocabulary,
        sources=_source_specs(sources, results, base),
        codec=plan.settings.codec,
    )


def commit(store: Store, manifest: Manifest, build: dict[str, Any], base: Manifest | None = None) -> None:
    """Write `build.json`, then the manifest, which makes it a data set, then tidy up.

    Of a data set that is extended, the version before stays readable under its number.
    """
    if base is not None:
        before = version_path(base.version)
        if not store.exists(before):
            store.write(before, store.read(MANIFEST_NAME))
        record = f"{VERSIONS}/{base.version:06d}-{BUILD_NAME}"
        if store.exists(BUILD_NAME) and not store.exists(record):
            store.write(record, store.read(BUILD_NAME))
        store.write(version_path(manifest.version), dump_manifest(manifest))
    store.write(BUILD_NAME, (json.dumps(build, indent=1, sort_keys=True) + "\n").encode())
    store.write(MANIFEST_NAME, dump_manifest(manifest))
    tidy(store)


def tidy(store: Store) -> None:
    """Remove what only an unfinished build needs."""
    if store.is_local:
        folder = Path(store.root) / BUILD_FOLDER
        if folder.is_dir():
            shutil.rmtree(folder)
        return
    store.abort_uploads()
    for path in store.files(BUILD_FOLDER):
        store.remove(path)


def _source_specs(sources: list[Source], results: list[ShardResult], base: Manifest | None) -> tuple[SourceSpec, ...]:
    specs = {spec.name: spec for spec in (base.sources if base else ())}
    for source in {source.name: source for source in sources}.values():
        samples = sum(result.counts.get(source.name, 0) for result in results)
        levels = {level for result in results for level in result.levels.get(source.name, [])}
        before = specs.get(source.name)
        if before is not None:
            samples, levels = samples + before.samples, levels | set(before.levels)
        if samples:
            specs[source.name] = SourceSpec(
                name=source.name, version=source.version, samples=samples, levels=tuple(sorted(levels))
            )
    return tuple(specs.values())
