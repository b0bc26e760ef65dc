"""Choosing samples by what the metadata says of them, and the manifest and indexes of the choice."""

import hashlib
import json
import operator
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np

from sharding.dataset import open_dataset, require_subset_name, split_version, version_path
from sharding.errors import ConfigError, DataError
from sharding.existing import metadata_of
from sharding.manifest import Manifest, ShardSpec, dump_manifest, parse_manifest
from sharding.shard_index import dump_index, parse_index
from sharding.splits import SERIES
from sharding.store import Store

_RULE: Final = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)(?P<relation>[=<>])(?P<value>.*)")
_RELATIONS: Final[dict[str, Callable[[Any, Any], bool]]] = {"=": operator.eq, "<": operator.lt, ">": operator.gt}
_SHOWN: Final = 5
Line = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One condition on the metadata of a sample: any of its values will do."""

    name: str
    relation: str
    values: tuple[str, ...]

    def holds(self, line: Line) -> bool:
        """Whether the sample with this metadata is meant."""
        found = _values_of(line, self.name)
        if self.relation == "=" and all(isinstance(value, str) for value in found):
            return not self._words.isdisjoint(found)
        return any(_compares(value, self.relation, wanted) for value in found for wanted in self.values)

    @cached_property
    def _words(self) -> frozenset[str]:
        # A list of keys may be as long as the data set.
        return frozenset(self.values)


def parse_rules(splits: list[str], labels: list[str], where: list[str], keys: str) -> list[Rule]:
    """The conditions of a command line; ConfigError for one that says nothing."""
    rules = []
    strange = [split for split in splits if split not in SERIES]
    if strange:
        raise ConfigError(f"--split is '{strange[0]}'; there are {', '.join(SERIES)}")
    if splits:
        rules.append(Rule(name="split", relation="=", values=tuple(splits)))
    if labels:
        rules.append(Rule(name="labels", relation="=", values=tuple(labels)))
    chosen: dict[tuple[str, str], list[str]] = {}
    for text in where:
        found = _RULE.fullmatch(text)
        if found is None:
            raise ConfigError(f"--where is '{text}'; write NAME=VALUE, NAME<VALUE or NAME>VALUE")
        chosen.setdefault((found["name"], found["relation"]), []).append(found["value"])
    rules += [Rule(name=name, relation=relation, values=tuple(v)) for (name, relation), v in chosen.items()]
    if keys:
        rules.append(Rule(name="key", relation="=", values=tuple(_read_keys(keys))))
    return rules


def make_subset(url: str, name: str, rules: list[Rule]) -> dict[str, Any]:
    """Write the subset `name` of the data set at `url`, unless this very one is there; returns its figures.

    ConfigError when a rule names something that no sample has, DataError when nothing is left or another subset has
    the name.
    """
    require_subset_name(name)
    store, base = open_dataset(url)
    if base.subset:
        raise ConfigError(f"{url} is a subset itself; choose from the data set, with all conditions at once")
    shards, seen, counts = _choose(store, base, name, rules)
    _refuse_unknown(rules, seen, base)
    if not shards:
        raise DataError(f"no sample of {url} fulfils all conditions")
    manifest = replace(
        base,
        shards=tuple(spec for spec, _, _ in shards),
        label_counts={split: dict(sorted(counts[split].items())) for split in SERIES if split in counts},
        parent=base.fingerprint,
        subset=name,
        selection={f"{rule.name}{rule.relation}": _described(rule) for rule in rules},
        fingerprint="",
    )
    content = dump_manifest(manifest)
    path = version_path(name)
    if store.exists(path):
        if store.read(path) != content:
            raise DataError(f"{store.url} has another subset {name}; choose another --name")
    else:
        for spec, index, metadata in shards:
            store.write(spec.index_path, index)
            store.write(spec.metadata_path, metadata)
        store.write(path, content)
    splits = parse_manifest(content, path).splits
    return {
        "url": f"{split_version(url)[0]}@{name}",
        "samples": sum(splits.values()),
        "of": sum(base.splits.values()),
        "splits": splits,
        "fingerprint": parse_manifest(content, path).fingerprint,
    }


def _choose(
    store: Store, base: Manifest, name: str, rules: list[Rule]
) -> tuple[list[tuple[ShardSpec, bytes, bytes]], set[str], dict[str, Counter[str]]]:
    """Each shard with a sample that is meant: its spec, index and metadata; names seen; labels counted by split."""
    shards = []
    seen: set[str] = set()
    counts: dict[str, Counter[str]] = {}
    for spec, lines in metadata_of(store, base):
        for line in lines:
            seen |= {rule.name for rule in rules if _values_of(line, rule.name)}
        chosen = [i for i, line in enumerate(lines) if all(rule.holds(line) for rule in rules)]
        if not chosen:
            continue
        index = parse_index(store.read(spec.index_path), store.name(spec.index_path))
        if index.keys != [line["key"] for line in lines]:
            raise DataError(f"{store.name(spec.metadata_path)} and its index list other samples; fetch both again")
        records = index.records[np.array(chosen)]
        for i in chosen:
            counts.setdefault(spec.split, Counter()).update(lines[i]["labels"])
        metadata = "".join(_dump(lines[i]) for i in chosen).encode()
        shards.append(_shard(spec, name, dump_index(replace(index, records=records)), metadata, len(chosen)))
    return shards, seen, counts


def _shard(spec: ShardSpec, name: str, index: bytes, metadata: bytes, samples: int) -> tuple[ShardSpec, bytes, bytes]:
    chosen = replace(
        spec,
        samples=samples,
        index_path=f"subsets/{name}/{spec.index_path}",
        index_bytes=len(index),
        index_sha256=hashlib.sha256(index).hexdigest(),
        metadata_path=f"subsets/{name}/{spec.metadata_path}",
        metadata_bytes=len(metadata),
        metadata_sha256=hashlib.sha256(metadata).hexdigest(),
    )
    return chosen, index, metadata


def _dump(line: Line) -> str:
    return json.dumps(line, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"


def _values_of(line: Line, name: str) -> list[Any]:
    """What a sample says of `name`: its own fields, its dates, then its attributes."""
    for place in (line, {f"{half}_date": date for half, date in line["dates"].items()}, line["attributes"]):
        if place.get(name) is not None:
            value = place[name]
            return value if isinstance(value, list) else [value]
    return []


def _compares(value: Any, relation: str, wanted: str) -> bool:
    """As numbers where both are, else as text; true and false in any case."""
    if isinstance(value, bool):
        return relation == "=" and str(value).lower() == wanted.lower()
    if isinstance(value, int | float):
        try:
            return _RELATIONS[relation](value, float(wanted))
        except ValueError:
            return False
    return _RELATIONS[relation](str(value), wanted)


def _refuse_unknown(rules: list[Rule], seen: set[str], base: Manifest) -> None:
    for rule in rules:
        if rule.name not in seen:
            raise ConfigError(f"no sample has '{rule.name}'; python -m sharding.inspect cat URL KEY shows what one has")
        strange = [label for label in rule.values if rule.name == "labels" and label not in base.labels]
        if strange:
            raise ConfigError(f"the data set has no label '{strange[0]}'; it has {', '.join(base.labels) or 'none'}")


def _described(rule: Rule) -> list[str] | str:
    """Long lists of keys by their digest: a manifest is read by people too."""
    if len(rule.values) <= 100:
        return list(rule.values)
    return f"{len(rule.values)} values, SHA-256 {hashlib.sha256(json.dumps(rule.values).encode()).hexdigest()}"


def _read_keys(path: str) -> list[str]:
    import fsspec

    try:
        with fsspec.open(path, "rb") as file:
            keys = [line.strip() for line in file.read().decode().splitlines() if line.strip()]
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError) as error:
        raise ConfigError(f"--keys {path} cannot be read as a list of keys: {error}") from error
    if not keys:
        raise ConfigError(f"--keys {path} lists no key")
    return sorted(set(keys))
