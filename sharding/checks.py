"""The checks behind `python -m sharding.verify`; independent of the writer wherever the standard library can read."""

import contextlib
import hashlib
import io
import json
import mmap
import tarfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from tqdm import tqdm

from sharding.dataset import open_dataset, split_version
from sharding.errors import FusMAEError
from sharding.foreign_checks import Counted, part_defects, payload_defects
from sharding.foreign_store import data_store
from sharding.manifest import Manifest, ShardSpec
from sharding.sample import EXTENSION
from sharding.sample_checks import sample_defects
from sharding.shard_index import ShardIndex, parse_index
from sharding.store import Store


@dataclass(frozen=True, kw_only=True)
class Defect:
    """Something that is not as it was written."""

    file: str
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}{', sample ' + self.key if self.key else ''}: {self.message}"


@dataclass(kw_only=True)
class Findings:
    """What a verification has read and found."""

    url: str
    fingerprint: str = ""
    shards: int = 0
    samples: int = 0
    arrays: int = 0
    num_bytes: int = 0
    seconds: float = 0.0
    defects: list[Defect] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For the terminal."""
        return [
            *(f"defect: {defect}" for defect in self.defects),
            *(f"note: {path} is no part of the data set; readers never see it" for path in self.strays),
            f"read {self.shards} shards, {self.samples} samples, {self.arrays} arrays, "
            f"{self.num_bytes / 2**20:.1f} MiB in {self.seconds:.1f} s",
            f"fingerprint {self.fingerprint}",
            f"{len(self.defects)} defects" if self.defects else "everything is as it was written",
        ]


def verify(url: str, workers: int = 1) -> Findings:
    """All findings of the data set at `url`; DataError when it has no readable manifest."""
    started = time.monotonic()
    store, manifest = open_dataset(url)
    findings = Findings(url=url, fingerprint=manifest.fingerprint)
    total = sum(shard.num_bytes for shard in manifest.shards)
    with (
        ThreadPoolExecutor(workers) as executor,
        tqdm(total=total, unit="B", unit_scale=True, disable=None) as bar,
    ):
        for shard, found in zip(
            manifest.shards, executor.map(lambda s: _verify_shard(store, manifest, s), manifest.shards), strict=True
        ):
            findings.shards += 1
            findings.samples += found.samples
            findings.arrays += found.arrays
            findings.num_bytes += sum(size for _, size, _ in shard.files)
            findings.defects += found.defects
            bar.update(shard.num_bytes)
    findings.defects += _duplicate_keys(store, manifest)
    findings.defects += _statistics_defects(store, manifest)
    # Every version lists the shards of those before it, and subsets choose from them.
    newest = open_dataset(split_version(url)[0])[1]
    known = {path for shard in (*newest.shards, *manifest.shards) for path, _, _ in shard.files}
    found_files = (path for folder in ("shards", "index", "metadata") for path in store.files(folder))
    findings.strays = [path for path in found_files if path not in known]
    findings.seconds = round(time.monotonic() - started, 2)
    return findings


@dataclass(kw_only=True)
class _ShardFindings:
    samples: int = 0
    arrays: int = 0
    defects: list[Defect] = field(default_factory=list)

    def add(self, file: str, message: str, key: str = "") -> None:
        self.defects.append(Defect(file=file, key=key, message=message))


def _verify_shard(store: Store, manifest: Manifest, shard: ShardSpec) -> _ShardFindings:
    found = _ShardFindings()
    index = _read_index(store, shard, found)
    if shard.parts:
        _verify_foreign(data_store(store, manifest), index, manifest, shard, found)
        return found
    try:
        with _content(store, shard.path) as content:
            _verify_tar(content, index, manifest, shard, found)
    except FusMAEError as error:
        found.add(shard.path, f"it cannot be read: {error}")
    return found


def _verify_foreign(
    store: Store, index: ShardIndex | None, manifest: Manifest, shard: ShardSpec, found: _ShardFindings
) -> None:
    """Of a shard that was indexed as it lies; `store` is where its files are."""
    for path, message in part_defects(store, shard):
        found.add(path, message)
    if index is not None:
        counted = Counted()
        for key, message in payload_defects(store, shard, index, manifest, counted):
            found.add(shard.path, message, key)
        found.samples, found.arrays = counted.samples, counted.arrays


def _read_index(store: Store, shard: ShardSpec, found: _ShardFindings) -> ShardIndex | None:
    try:
        content = store.read(shard.index_path)
        if len(content) != shard.index_bytes:
            found.add(shard.index_path, f"it has {len(content)} bytes, the manifest says {shard.index_bytes}")
        elif hashlib.sha256(content).hexdigest() != shard.index_sha256:
            found.add(shard.index_path, "its SHA-256 is not the manifest's")
        index = parse_index(content, shard.index_path)
    except FusMAEError as error:
        found.add(shard.index_path, f"it cannot be read: {error}")
        return None
    if len(index.records) != shard.samples:
        found.add(shard.index_path, f"it has {len(index.records)} samples, the manifest says {shard.samples}")
    _verify_metadata(store, shard, index, found)
    return index


def _verify_metadata(store: Store, shard: ShardSpec, index: ShardIndex, found: _ShardFindings) -> None:
    path = shard.metadata_path
    try:
        content = store.read(path)
        if len(content) != shard.metadata_bytes:
            found.add(path, f"it has {len(content)} bytes, the manifest says {shard.metadata_bytes}")
        elif hashlib.sha256(content).hexdigest() != shard.metadata_sha256:
            found.add(path, "its SHA-256 is not the manifest's")
        if [json.loads(line)["key"] for line in content.decode().split("\n") if line] != index.keys:
            found.add(path, "its keys are not the index's")
    except (FusMAEError, ValueError, KeyError, TypeError) as error:
        found.add(path, f"it cannot be read: {error}")


def _statistics_defects(store: Store, manifest: Manifest) -> Iterator[Defect]:
    path = manifest.statistics_path
    try:
        if hashlib.sha256(store.read(path)).hexdigest() != manifest.statistics_sha256:
            yield Defect(file=path, key="", message="its SHA-256 is not the manifest's")
    except FusMAEError as error:
        yield Defect(file=path, key="", message=f"it cannot be read: {error}")


def _verify_tar(
    content: memoryview, index: ShardIndex | None, manifest: Manifest, shard: ShardSpec, found: _ShardFindings
) -> None:
    if len(content) != shard.num_bytes:
        found.add(shard.path, f"it has {len(content)} bytes, the manifest says {shard.num_bytes}")
    elif hashlib.sha256(content).hexdigest() != shard.sha256:
        found.add(shard.path, "its SHA-256 is not the manifest's")
    members = _members(content, shard, found)
    if len(members) != shard.tar_samples:
        found.add(shard.path, f"it has {len(members)} samples, the manifest says {shard.tar_samples}")
    if index is None:
        _check_zips(content, members, shard, found)
        return
    listed = set(index.keys)
    # A subset's index leaves samples out.
    if [key for key in members if key in listed or shard.samples == shard.tar_samples] != index.keys:
        missing = [key for key in index.keys if key not in members]
        strange = [key for key in members if key not in listed]
        found.add(
            shard.path,
            f"its keys are not the index's: {len(missing)} missing {missing[:3]}, {len(strange)} unknown {strange[:3]}",
        )
    for record in index.records:
        key = record["key"].decode()
        arrays, messages = sample_defects(content, members.get(key), record, index.arrays, manifest)
        found.samples += 1
        found.arrays += arrays
        for message in messages:
            found.add(shard.path, message, key)


def _members(content: memoryview, shard: ShardSpec, found: _ShardFindings) -> dict[str, tuple[int, int]]:
    """Offset and length of each member by key, by tarfile alone."""
    members: dict[str, tuple[int, int]] = {}
    suffix = f".{EXTENSION}"
    try:
        with tarfile.open(fileobj=io.BufferedReader(_Bytes(content)), mode="r:") as archive:
            for member in archive:
                if not member.isfile() or not member.name.endswith(suffix):
                    found.add(shard.path, f"its member {member.name} is no sample")
                    continue
                key = member.name[: -len(suffix)]
                if key in members:
                    found.add(shard.path, "two members have this key", key)
                members[key] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        found.add(shard.path, f"tarfile cannot read it beyond {len(members)} samples: {error}")
    return members


def _check_zips(
    content: memoryview, members: dict[str, tuple[int, int]], shard: ShardSpec, found: _ShardFindings
) -> None:
    """Without an index the ZIPs' own CRC-32 still say which sample is broken."""
    for key, (offset, length) in members.items():
        found.samples += 1
        try:
            with zipfile.ZipFile(io.BytesIO(content[offset : offset + length])) as archive:
                broken = archive.testzip()
        except zipfile.BadZipFile as error:
            found.add(shard.path, f"its ZIP is broken: {error}", key)
        else:
            if broken:
                found.add(shard.path, f"the CRC-32 of {broken} does not match", key)


def _duplicate_keys(store: Store, manifest: Manifest) -> Iterator[Defect]:
    first: dict[bytes, str] = {}
    for shard in manifest.shards:
        try:
            index = parse_index(store.read(shard.index_path), shard.index_path)
        except FusMAEError:
            continue  # reported with its shard
        for key in index.records["key"].tolist():
            if key in first:
                yield Defect(file=shard.path, key=key.decode(), message=f"the key is in {first[key]} too")
            first[key] = shard.path


class _Bytes(io.RawIOBase):
    """A file over the shard's bytes, without a copy, for a shard may be large."""

    def __init__(self, content: memoryview) -> None:
        super().__init__()
        self._content, self._at = content, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        part = self._content[self._at : self._at + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._at = (0, self._at, len(self._content))[whence] + offset
        return self._at


@contextlib.contextmanager
def _content(store: Store, path: str) -> Iterator[memoryview]:
    if not store.is_local:
        yield memoryview(store.read(path))
        return
    if not store.exists(path) or not store.size(path):
        yield memoryview(store.read(path))
        return
    with open(store.full(path), "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = memoryview(mapped)
        try:
            yield view
        finally:
            view.release()
