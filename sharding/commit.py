"""From finished shards to a data set: the manifest is written last, and before it all that lies beside it."""

import contextlib
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from sharding.bands import ARRAY_BANDS
from sharding.errors import ConfigError, DataError
from sharding.layout import Layout
from sharding.lock import hold
from sharding.manifest import BUILD_NAME, MANIFEST_NAME, Manifest, SourceSpec, dump_manifest
from sharding.plan import Plan
from sharding.shard_task import BUILD_FOLDER, ShardResult
from sharding.sources.base import Refusal, Source
from sharding.splits import SERIES
from sharding.statistics import band_statistics, merge
from sharding.store import Store

BAD_NAME: Final = "bad.jsonl"
_OURS: Final = re.compile(rf"(?:shards|index)/(?:{'|'.join(SERIES)})-\d{{6}}\.(?:tar|idx)")
_PARTIAL: Final = re.compile(r"(?:(?:shards|index)/)?\.[^/]+\.[0-9a-f]{32}\.partial")
_LOCK: Final = f"{BUILD_FOLDER}/lock"


def find_finished(store: Store, plan_digest: str) -> bool:
    """Whether this very data set is finished in `store`; DataError when another one is."""
    if not store.exists(MANIFEST_NAME):
        return False
    try:
        known = json.loads(store.read(BUILD_NAME)).get("plan") if store.exists(BUILD_NAME) else None
    except ValueError:
        known = None
    if known != plan_digest:
        raise DataError(
            f"{store.url} holds a finished data set, built from other files or with other settings (modification times "
            "count too, so a fresh copy of the archives is other files); use it as it is if only those changed, "
            "else choose another --out, or delete it first"
        )
    return True


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
    if out.is_dir() and not build.is_dir():
        strangers = [path for path in ("shards", "index") if (out / path).exists()]
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


def remove_strays(store: Store, results: list[ShardResult]) -> None:
    """Delete what an interrupted build left: half-written files, and shards of other settings."""
    ours = {path for r in results if r.spec for path in (r.spec.path, r.spec.index_path)}
    for path in store.files():
        if _PARTIAL.fullmatch(path) or (_OURS.fullmatch(path) and path not in ours):
            store.remove(path)


def write_bad(store: Store, refused: list[Refusal]) -> str:
    """List the refused pairs, one JSON object a line, by source and key; returns the name of the list."""
    ordered = sorted(refused, key=lambda r: (r.source, r.key, r.file, r.message))
    lines = [json.dumps(asdict(refusal), sort_keys=True, ensure_ascii=False) + "\n" for refusal in ordered]
    store.write(BAD_NAME, "".join(lines).encode())
    return store.name(BAD_NAME)


def make_manifest(plan: Plan, layout: Layout, sources: list[Source], results: list[ShardResult]) -> Manifest:
    """The manifest of finished shards, which come in the order of the plan."""
    present = {band for result in results for band in result.bands}
    specs = [result.spec for result in results if result.spec]
    counted = [result for result in results if result.spec and result.spec.split == "train"] or results
    moments = merge([result.moments for result in counted])
    arrays = []
    for name, shared in layout.arrays.items():
        bands = tuple(band for band in ARRAY_BANDS[name] if band in present)
        if bands:
            arrays.append(shared.spec(name, bands))
    return Manifest(
        arrays=tuple(arrays),
        shards=tuple(specs),
        labels=plan.vocabulary,
        statistics={
            band: band_statistics(moments[band]) for bands in ARRAY_BANDS.values() for band in bands if band in moments
        },
        sources=_source_specs(sources, results),
        codec=plan.settings.codec,
    )


def commit(store: Store, manifest: Manifest, build: dict[str, Any]) -> None:
    """Write `build.json`, then the manifest, which makes it a data set, then tidy up."""
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
    for path in store.files(BUILD_FOLDER):
        store.remove(path)


def _source_specs(sources: list[Source], results: list[ShardResult]) -> tuple[SourceSpec, ...]:
    specs = []
    for source in {source.name: source for source in sources}.values():
        samples = sum(result.counts.get(source.name, 0) for result in results)
        levels = sorted({level for result in results for level in result.levels.get(source.name, [])})
        if samples:
            specs.append(SourceSpec(name=source.name, version=source.version, samples=samples, levels=tuple(levels)))
    return tuple(specs)
