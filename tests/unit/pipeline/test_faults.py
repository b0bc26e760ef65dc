"""Damaged files on a disk: the right pixels, or an error with a name; and the table that lists all faults."""

import errno
import os
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from webdataset.tariterators import group_by_keys, tar_file_expander

from pipeline.stream import Batch, Stream, StreamConfig, native, reader
from sharding.checks import verify
from sharding.errors import DataError, StorageError
from tests.trees import make_reben
from tests.unit.pipeline.small_shards import Made, assert_equal, damage, join, make, reader_threads, take
from tests.unit.sharding.conftest import run_build

ROOT = Path(__file__).parents[3]
TABLE = ROOT / "docs" / "faults.md"
BATCHES, BATCH = 4, 10
"""Two epochs."""


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """A data set as sharding.build writes it."""
    root = tmp_path_factory.mktemp("archive")
    make_reben(root / "reben", 12)
    assert run_build("--source", "reben", "--root", root / "reben", "--out", root / "built").code == 0
    return root / "built"


@pytest.fixture
def built(archive, tmp_path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(archive, tmp_path / "built")


@pytest.fixture
def expected(made) -> list[Batch]:
    with opened(made) as stream:
        return take(stream, BATCHES)


def opened(made: Made, rank: int = 0, world_size: int = 1, **changes) -> Stream:
    return Stream(StreamConfig(**({"url": made.url, "global_batch": BATCH} | changes)), rank, world_size)


def shard_path(made: Made, number: int) -> Path:
    return made.root / made.manifest.shards[number].path


def members(path: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(path) as tar:
        return tar.getmembers()


def payload(made: Made, sample: int, array: int) -> tuple[Path, int, str]:
    """Where a payload lies: file, a byte in its middle, the sample's key."""
    with opened(made) as stream:
        table = stream._reader.table
        record = table.records(np.array([sample]))[0]
        middle = int(record["offset"][array] + record["length"][array] // 2)
        return made.root / table.files[record["file"][array]].path, middle, record["key"].decode()


def seen_by_webdataset(path: Path) -> list[str]:
    """Keys of the samples that WebDataset's reader of tars finds, which raises by default when something is wrong."""
    with path.open("rb") as file:
        opened_tar = [{"url": str(path), "stream": file}]
        return [sample["__key__"] for sample in group_by_keys(tar_file_expander(opened_tar))]


# A shard that was cut

CUTS = {
    "at the end of a member": lambda header: header.offset,
    "in the header of a member": lambda header: header.offset + 100,
    "in a payload": lambda header: header.offset_data + 1000,
    "at its beginning": lambda header: 0,
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
def test_a_cut_shard_is_named_before_the_first_batch(built, cut):
    path = built / "shards" / "train-000000.tar"
    length = cut(members(path)[2])
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match=f"{path.name} holds {length} bytes, its manifest says"):
        Stream(StreamConfig(url=str(built), global_batch=2))
    assert any(defect.file.endswith(path.name) for defect in verify(str(built), 1).defects)


def test_webdataset_itself_says_nothing_of_a_shard_that_was_cut_at_a_member(made):
    path = shard_path(made, 1)
    whole = seen_by_webdataset(path)
    path.write_bytes(path.read_bytes()[: members(path)[2].offset])
    assert seen_by_webdataset(path) == whole[:2]


def test_a_shard_that_is_cut_while_it_is_read_is_named(made, expected):
    path = shard_path(made, 1)
    with opened(made, global_batch=2, slots=1, threads=1) as stream:
        batches = iter(stream)
        keys = next(batches).keys
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(DataError, match=f"{path.name} holds 2000 bytes, its manifest says"):
            for _ in range(10):
                keys += next(batches).keys
    assert keys == expected[0].keys[: len(keys)]
    assert reader_threads() == []


# Bits that flip

BETWEEN = {
    "the size in a header of the tar": lambda header: header.offset + 130,
    "the name in a header of the tar": lambda header: header.offset + 3,
    "the header of the zip": lambda header: header.offset_data + 2,
}


@pytest.mark.parametrize("place", BETWEEN.values(), ids=BETWEEN.keys())
def test_a_bit_flipped_between_the_payloads_changes_no_pixel_and_verify_tells(built, place):
    config = StreamConfig(url=str(built), global_batch=2)
    with Stream(config) as stream:
        expected = take(stream, BATCHES)
    assert verify(str(built), 1).defects == []
    path = built / "shards" / "train-000000.tar"
    damage(path, place(members(path)[2]))
    with Stream(config) as stream:
        for mine, other in zip(take(stream, BATCHES), expected, strict=True):
            assert_equal(mine, other)
        assert stream.instruments().corrupt == 0
    assert ("shards/train-000000.tar", "its SHA-256 is not the manifest's") in [
        (defect.file, defect.message) for defect in verify(str(built), 1).defects
    ]


def test_webdataset_itself_says_nothing_of_a_bit_flipped_in_a_header(made):
    path = shard_path(made, 1)
    whole = seen_by_webdataset(path)
    damage(path, members(path)[2].offset + 130)
    assert len(seen_by_webdataset(path)) < len(whole)


@pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("array", range(4))
def test_a_bit_flipped_in_a_payload_is_named(tmp_path, codec, array):
    made = make(tmp_path / "pairs", codec=codec)
    path, place, key = payload(made, 8, array)
    damage(path, place)
    name = made.manifest.arrays[array].name
    with opened(made) as stream, pytest.raises(DataError, match=f"array {name} of sample {key} in shard .*{path.name}"):
        take(stream, BATCHES)


def test_on_corrupt_skip_puts_the_same_other_sample_there_on_any_number_of_ranks(made, expected):
    path, place, key = payload(made, 8, 1)
    damage(path, place)
    runs = []
    for world_size in (1, 1, 2, 5):
        streams = [opened(made, rank, world_size, on_corrupt="skip") for rank in range(world_size)]
        parts = [take(stream, BATCHES) for stream in streams]
        for stream in streams:
            assert stream.instruments().replaced <= stream.instruments().corrupt
            stream.close()
        assert sum(len(batch.replaced) for rank in parts for batch in rank) == 2  # once an epoch
        runs.append([join(list(ranks)) for ranks in zip(*parts, strict=True)])
    for *mine, other in zip(*runs, expected, strict=True):
        for again in mine[1:]:
            assert_equal(mine[0], again)
        good = [row for row, name in enumerate(other.keys) if name != key]
        assert key not in mine[0].keys
        assert [mine[0].keys[row] for row in good] == [other.keys[row] for row in good]
        for name, array in mine[0].arrays.items():
            assert torch.equal(array[good], other.arrays[name][good])
            spec = next(spec for spec in made.manifest.arrays if spec.name == name)
            for row in set(range(BATCH)) - set(good):
                assert np.array_equal(array[row].numpy(), made.full(mine[0].keys[row], spec))


def test_a_batch_marks_what_was_replaced(made, expected):
    path, place, key = payload(made, 8, 1)
    damage(path, place)
    with opened(made, on_corrupt="skip") as stream:
        for mine, other in zip(take(stream, BATCHES), expected, strict=True):
            assert mine.replaced == tuple(row for row, name in enumerate(other.keys) if name == key)


def test_many_damaged_samples_are_no_accident(made, monkeypatch):
    monkeypatch.setattr(reader, "MAX_REPLACED", 2)
    for sample in (2, 9, 15):
        path, place, _ = payload(made, sample, 0)
        damage(path, place)
    with (
        opened(made, on_corrupt="skip") as stream,
        pytest.raises(DataError, match="2 damaged samples were replaced, and the next one is: array s1 of sample"),
    ):
        take(stream, BATCHES)


def test_a_data_set_that_is_damaged_throughout_ends_the_run(made):
    for sample in range(20):
        path, place, _ = payload(made, sample, 0)
        damage(path, place)
    with (
        opened(made, on_corrupt="skip") as stream,
        pytest.raises(DataError, match="ten others that were to take its place are damaged too"),
    ):
        take(stream, BATCHES)


# Files that are not the right ones, and disks that fail


def test_another_shard_of_the_same_size_under_the_right_name_is_found(tmp_path):
    made = make(tmp_path / "pairs", (8, 8, 8), codec="none")
    path, other = shard_path(made, 0), shard_path(made, 1)
    assert path.stat().st_size == other.stat().st_size
    path.write_bytes(other.read_bytes())
    with opened(made) as stream, pytest.raises(DataError, match=f"array .* in shard .*{path.name} is damaged"):
        take(stream, BATCHES)


def test_a_disk_that_fails_ends_the_run_with_the_name_of_the_shard(made, monkeypatch):
    def fail(*arguments):
        arguments[-2][:] = native.SHORT  # status: as when pread(2) fails

    def refuse(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with opened(made, on_corrupt="skip") as stream:
        monkeypatch.setattr(native, "read_samples", fail)
        monkeypatch.setattr(os, "preadv", refuse)
        with pytest.raises(StorageError, match=r"cannot read shard .*\.tar: Input/output error"):
            take(stream, 1)


# The table of faults


def named_in_the_table() -> list[str]:
    return re.findall(r"`(tests/[\w/]+\.py::\w+)`", TABLE.read_text())


def test_each_fault_of_the_table_is_shown_by_a_test_that_exists():
    named = named_in_the_table()
    assert len(set(named)) > 20
    for name in named:
        file, test = name.split("::")
        assert re.search(rf"^def {test}\(", (ROOT / file).read_text(), re.MULTILINE), name


def test_each_row_of_the_table_has_an_outcome_and_names_a_test():
    text = TABLE.read_text().partition("## Beside others")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    for fault, outcome, _, shown_by in rows:
        assert outcome in ("recovered", "named", "named or replaced"), fault
        assert "::test_" in shown_by, fault
