"""Subsets of an index that was made again: those that point to what is no more there."""

import json
import re
from typing import Any, Final

from sharding.dataset import NAME_PATTERN, VERSIONS
from sharding.manifest import SCHEMA, Manifest
from sharding.store import Store

_MANIFEST: Final = re.compile(rf"{VERSIONS}/(?P<name>{NAME_PATTERN.pattern})\.json")
_FILE: Final = re.compile(rf"subsets/(?P<name>{NAME_PATTERN.pattern})/(?:index/.+\.idx|metadata/.+\.jsonl)")


def drop_subsets(store: Store, manifest: Manifest) -> list[str]:
    """Delete the subsets in `store` that were not chosen from `manifest`, before that is written; their names, sorted.

    A subset has offsets of its own into the archive's files, so nothing would tell that they lie elsewhere now.
    """
    kept: set[str] = set()
    dropped: list[str] = []
    for path in store.files(VERSIONS):
        found = _MANIFEST.fullmatch(path)
        raw = _parsed(store.read(path)) if found else {}
        if found is None or raw.get("schema") != SCHEMA:
            continue  # not ours
        if (raw.get("parent"), raw.get("data_url", "")) == (manifest.fingerprint, manifest.data_url):
            kept.add(found["name"])
        else:
            store.remove(path)
            dropped.append(found["name"])
    for path in store.files("subsets"):
        found = _FILE.fullmatch(path)
        if found and found["name"] not in kept:
            store.remove(path)
    return sorted(dropped)


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(content)
    except ValueError:
        return {}
    return raw if isinstance(raw, dict) else {}
