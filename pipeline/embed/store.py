"""The store at `--out`: whose it is, which of its shards are finished, and the commits of both."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import google_crc32c

from pipeline.embed.settings import FORMAT
from pipeline.errors import ConfigError, DataError
from pipeline.run_folder import flatten
from sharding.store import Store

ROOT: Final = "zarr.json"
COMMITS: Final = "commits"
_READERS: Final = 16
_PARTIAL: Final = re.compile(r"(?:.+/)?\.[^/]+\.[0-9a-f]{32}\.partial")
"""What `sharding.store` leaves on a disk when it is killed while it writes."""


class EmbeddingStore:
    """Embeddings of one model, data set and settings; written by several ranks, each shard by one of them."""

    def __init__(self, url: str) -> None:
        self.store = Store(url)

    def attributes(self) -> dict[str, Any] | None:
        """Those of the group; None when nothing is there. ConfigError when something else is."""
        if not self.store.exists(ROOT):
            if others := [path for path in self.store.files() if not _PARTIAL.fullmatch(path)]:
                raise ConfigError(
                    f"--out {self.store.url} is not empty (it has {others[0]}), and no store of embeddings; "
                    "give another --out"
                )
            return None
        try:
            found = json.loads(self.store.read(ROOT))["attributes"]
        except (ValueError, KeyError, TypeError):
            found = {}
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            told = found.get("format") if isinstance(found, dict) else None
            raise ConfigError(
                f"--out {self.store.url} holds another Zarr store: key 'format', expected {FORMAT!r}, found {told!r}; "
                "give another --out"
            )
        return found

    def check_same(self, found: dict[str, Any], of: dict[str, Any]) -> None:
        """ConfigError naming key, expected and found, when the store is of another model, data set or settings."""
        asked, there = flatten(of), flatten(found.get("of", {}))
        differing = [key for key in {**asked, **there} if asked.get(key) != there.get(key)]
        if differing:
            told = "; ".join(
                f"key '{key}', expected {asked.get(key)!r}, found {there.get(key)!r}" for key in differing[:5]
            )
            raise ConfigError(
                f"--out {self.store.url} is of another model, data set or settings: {told}; give another --out, or "
                "the model, data and options that it was made with"
            )

    def clear(self) -> None:
        """Take away what a killed process left half-written."""
        if not self.store.is_local:
            self.store.abort_uploads()
            return
        for path in self.store.files():
            if _PARTIAL.fullmatch(path):
                self.store.remove(path)

    def finished(self, of: dict[str, Any]) -> dict[int, dict[str, Any]]:
        """The records of shards that are whole, by shard: those whose record is, and whose files are all there."""
        there = set(self.store.files())
        paths = sorted(path for path in there if path.startswith(f"{COMMITS}/") and not _PARTIAL.fullmatch(path))
        with ThreadPoolExecutor(_READERS) as executor:
            read = list(executor.map(self._record, paths))
        records = {}
        for record in read:
            if record is not None and record["of"] == digest(of) and there.issuperset(record["files"]):
                records[int(record["shard"])] = record
        return records

    def write_shard(self, shard: int, files: dict[str, bytes], of: dict[str, Any], about: dict[str, Any]) -> None:
        """Write a shard's files, and behind them the record that makes it finished."""
        for path, content in files.items():
            self.store.write(path, content)
        record = {
            "shard": shard,
            "of": digest(of),
            "files": {path: [len(content), google_crc32c.value(content)] for path, content in files.items()},
            **about,
        }
        text = json.dumps(record, sort_keys=True)
        self.store.write(
            commit_path(shard), json.dumps({"record": text, "crc32c": google_crc32c.value(text.encode())}).encode()
        )

    def records(self, found: dict[str, Any]) -> tuple[dict[int, dict[str, Any]], dict[str, str]]:
        """Of a complete store with these attributes: its shards' records, and by path of those that lack, why."""
        records = self.finished(found["of"])
        return records, {
            commit_path(shard): "the record is missing or damaged, or a file that it names is not there"
            for shard in range(int(found["shards"]))
            if shard not in records
        }

    def damaged(self) -> dict[str, str]:
        """Reads everything: by path, what is wrong with it; DataError when the store is not complete."""
        found = self.attributes()
        if found is None or not found.get("complete"):
            raise DataError(f"{self.store.url} is not complete; give the command that makes it again, then verify it")
        records, wrong = self.records(found)
        for shard, record in records.items():
            for path, (size, checksum) in record["files"].items():
                content = self.store.read(path)
                if (len(content), google_crc32c.value(content)) != (size, checksum):
                    wrong[path] = f"its bytes are not those that {commit_path(shard)} names"
        for path, checksum in found["fixed"].items():
            if not self.store.exists(path) or google_crc32c.value(self.store.read(path)) != checksum:
                wrong[path] = "it is missing or its bytes are not those that were written"
        return wrong

    def num_bytes(self) -> int:
        """Of all files."""
        return sum(self.store.size(path) for path in self.store.files())

    def _record(self, path: str) -> dict[str, Any] | None:
        try:
            stored = json.loads(self.store.read(path))
            text = stored["record"]
            if google_crc32c.value(text.encode()) != stored["crc32c"]:
                return None
            record: dict[str, Any] = json.loads(text)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        return record if commit_path(record["shard"]) == path else None


def commit_path(shard: int) -> str:
    """Where the record of a shard lies."""
    return f"{COMMITS}/{shard:08d}.json"


def digest(of: dict[str, Any]) -> int:
    """CRC-32C of what a store is of, so that a record of another one is none."""
    checksum: int = google_crc32c.value(json.dumps(of, sort_keys=True).encode())
    return checksum
