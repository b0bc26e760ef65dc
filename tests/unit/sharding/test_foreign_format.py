"""What indexes and manifests of archives look like, and that those of built data sets are as they always were."""

import hashlib
import json
from dataclasses import asdict, replace

import google_crc32c
import numpy as np
import pytest

from sharding.errors import DataError
from sharding.manifest import PartSpec, compute_fingerprint, dump_manifest, parse_manifest
from sharding.shard_index import ShardIndex, dump_index, parse_index, record_dtype


def foreign_index(checksum="crc32"):
    records = np.zeros(3, record_dtype(2, 8, 2))
    for i, record in enumerate(records):
        record["key"], record["presence"] = f"key{i}".encode(), 3
        record["arrays"][1] = (100 + i, 50, 7, 16, -1000, i, 4 * i)
    return ShardIndex(arrays=("s1", "s2_B02"), records=records, version=2, checksum=checksum)


@pytest.mark.parametrize("checksum", ["crc32c", "crc32", "none"])
def test_an_index_of_an_archive_comes_back(checksum):
    index = foreign_index(checksum)
    found = parse_index(dump_index(index), "x.idx")
    assert (found.version, found.checksum, found.arrays) == (2, checksum, index.arrays)
    assert found.records.tobytes() == index.records.tobytes()
    assert found.records["arrays"]["skip"][2].tolist() == [0, 8]


def test_its_layout_is_that_of_built_shards_with_two_fields_more():
    names = record_dtype(1, 8)["arrays"].base.names
    assert record_dtype(1, 8, 2)["arrays"].base.names == (*names, "file", "skip")
    assert record_dtype(1, 8).names == record_dtype(1, 8, 2).names


def test_an_unknown_checksum_or_version_is_refused():
    content = bytearray(dump_index(foreign_index()))

    def sealed():
        return bytes(content[:-4]) + google_crc32c.value(bytes(content[:-4])).to_bytes(4, "little")

    content[content.index(b'"crc32"') : content.index(b'"crc32"') + 7] = b'"crc99"'
    with pytest.raises(DataError, match="checksum is 'crc99'"):
        parse_index(sealed(), "x.idx")
    content[8] = 3
    with pytest.raises(DataError, match="version 3, this program reads 1 and 2"):
        parse_index(sealed(), "x.idx")


def test_an_index_of_a_built_shard_is_as_it_always_was():
    records = np.zeros(2, record_dtype(1, 4))
    records["key"] = [b"a", b"b"]
    content = dump_index(ShardIndex(arrays=("s1",), records=records))
    header = b'{"arrays": ["s1"], "key_bytes": 4, "samples": 2}'
    assert records.dtype.itemsize == 4 + 6 * 8 + 6 * 4
    assert content[:-4] == b"FUSMAEIX" + bytes([1, 0, 0, 0, len(header), 0, 0, 0]) + header + records.tobytes()


def test_a_manifest_of_a_built_data_set_says_nothing_of_archives(dataset):
    content = (dataset / "manifest.json").read_bytes()
    raw = json.loads(content)
    assert "data_url" not in raw
    assert not any("parts" in shard for shard in raw["shards"])
    manifest = parse_manifest(content, "manifest.json")
    assert dump_manifest(manifest) == content
    # As the program had it that knew no archives: all fields but the fingerprint.
    told = asdict(manifest)
    del told["fingerprint"], told["data_url"]
    for shard in told["shards"]:
        del shard["parts"]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    assert digest == manifest.fingerprint == raw["fingerprint"]


def test_parts_are_in_the_fingerprint_and_the_place_of_the_archive_is_not(dataset):
    built = parse_manifest((dataset / "manifest.json").read_bytes(), "manifest.json")
    parts = (PartSpec(path="a.tar", num_bytes=10), PartSpec(path="b.tar", num_bytes=20))
    shards = (replace(built.shards[0], path="a.tar", sha256="", num_bytes=30, parts=parts), *built.shards[1:])
    manifest = replace(built, shards=shards, data_url="s3://bucket/archive")
    found = parse_manifest(dump_manifest(manifest), "manifest.json")
    assert found.shards == shards
    assert found.data_url == "s3://bucket/archive"
    assert found.fingerprint not in ("", built.fingerprint)
    assert compute_fingerprint(replace(found, data_url="elsewhere")) == found.fingerprint
    assert shards[0].data_files == parts
    assert shards[0].files[:2] == (("a.tar", 10, ""), ("b.tar", 20, ""))
    assert built.shards[0].data_files == (PartSpec(path=built.shards[0].path, num_bytes=built.shards[0].num_bytes),)


@pytest.mark.parametrize(
    "parts", ["a.tar", [["a.tar", 3]], [{"path": "a.tar"}], [{"path": "a", "num_bytes": 1, "x": 2}]]
)
def test_parts_that_are_none_are_refused(dataset, parts):
    raw = json.loads((dataset / "manifest.json").read_bytes())
    raw["shards"][0]["parts"] = parts
    with pytest.raises(DataError, match="edited or cut"):
        parse_manifest(json.dumps(raw).encode(), "manifest.json")


def test_a_sample_of_a_subset_takes_as_many_bytes_as_one_of_the_data_set(dataset):
    built = parse_manifest((dataset / "manifest.json").read_bytes(), "manifest.json")
    shard = replace(built.shards[0], split="train", num_bytes=1000, tar_samples=10, samples=10)
    chosen = replace(built, shards=(replace(shard, samples=1), replace(shard, num_bytes=4000, samples=3)))
    assert replace(built, shards=(shard,)).sample_bytes("train") == 100
    assert chosen.sample_bytes("train") == (100 * 1 + 400 * 3) / 4
    none = replace(shard, samples=0, tar_samples=0)
    assert replace(built, shards=(none,)).sample_bytes("train") == 0
    with pytest.raises(DataError, match="no split 'test'"):
        replace(built, shards=(shard,)).sample_bytes("test")
