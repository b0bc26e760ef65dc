"""A tree of files is listed a folder at a time, the same on a disk and in an object store."""

import fsspec
import pytest
import tenacity

from sharding.errors import ConfigError, DataError, StorageError
from sharding.sources import tree as tree_module
from sharding.sources.tree import Tree

CONTENT = {"a.csv": b"1", "s1/p1/x.tif": b"22", "s1/p1/y.tif": b"333", "s1/p2/x.tif": b"", "s2/z.tif": b"4444"}


@pytest.fixture
def disk(tmp_path):
    for path, content in CONTENT.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    return Tree(str(tmp_path))


@pytest.fixture
def remote(tmp_path):
    root = f"/tree-{tmp_path.name}"
    fs = fsspec.filesystem("memory")
    for path, content in CONTENT.items():
        fs.pipe_file(f"{root}/{path}", content)
    return Tree(f"memory:/{root}")


@pytest.fixture(params=["disk", "remote"])
def tree(request):
    return request.getfixturevalue(request.param)


def test_folders_and_files_of_a_folder(tree):
    assert tree.folders() == ["s1", "s2"]
    assert tree.folders("s1") == ["p1", "p2"]
    assert tree.folders("s1/p1") == []
    assert list(tree.files()) == ["a.csv"]
    files = tree.files("s1/p1")
    assert {name: (file.path, file.size) for name, file in files.items()} == {
        "x.tif": ("s1/p1/x.tif", 2),
        "y.tif": ("s1/p1/y.tif", 3),
    }
    assert all(file.version for file in files.values())


def test_one_file_is_what_its_folder_says(tree):
    for folder, name in (("", "a.csv"), ("s1/p1", "x.tif")):
        path = f"{folder}/{name}" if folder else name
        assert tree.file(path) == tree.files(folder)[name]
        assert tree.read(path) == CONTENT[path]


@pytest.mark.parametrize("path", ["nowhere", "a.csv/inside", "s1/p1/x.tif"])
def test_what_is_no_folder_is_empty(tree, path):
    assert tree.folders(path) == []
    assert tree.files(path) == {}


@pytest.mark.parametrize("path", ["nowhere.tif", "a.csv/inside", "s1/p1"])
def test_what_is_no_file_is_none(tree, path):
    assert tree.file(path) is None


def test_reading_what_is_not_there_names_it(tree):
    with pytest.raises(DataError, match=r"there is no .*nowhere\.tif"):
        tree.read("s1/nowhere.tif")


def test_a_missing_root_is_wrong_usage(tree):
    tree.require()
    with pytest.raises(ConfigError, match="give --root the folder of the archive"):
        Tree(f"{tree.store.url}-nowhere").require()


def test_a_store_is_never_listed_as_a_whole(remote, monkeypatch):
    monkeypatch.setattr(remote.store.fs, "find", None)
    listed = []
    ls = remote.store.fs.ls
    monkeypatch.setattr(remote.store.fs, "ls", lambda path, **kwargs: listed.append(path) or ls(path, **kwargs))
    remote.files("s1/p1")
    remote.folders("s1/p1")
    assert listed == [f"{remote.store.root}/s1/p1"]


def test_a_file_that_was_mended_is_seen_when_the_listing_is_some_seconds_old(remote, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(tree_module.time, "monotonic", lambda: now)
    before = remote.files("s1/p1")["x.tif"]
    remote.store.fs.pipe_file(f"{remote.store.root}/s1/p1/x.tif", b"mended")
    assert remote.files("s1/p1")["x.tif"] == before
    now += 11
    assert remote.files("s1/p1")["x.tif"].size == 6


def test_listings_that_are_kept_are_bounded(remote, monkeypatch):
    monkeypatch.setattr(tree_module, "_KEPT_ENTRIES", 5)
    for path in ("s1/p1", "s1/p2", "s2", "s1"):
        remote.files(path)
        kept = remote._recent.listings
        assert sum(1 + len(found.files) + len(found.folders) for _, found in kept.values()) <= 5
    assert list(remote._recent.listings) == ["s2", "s1"]
    assert remote._recent.num_entries == 5


def test_a_store_that_refuses_is_no_empty_folder(remote, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError("403")

    monkeypatch.setattr(remote.store.fs, "ls", refuse)
    monkeypatch.setattr(remote.store.fs, "info", refuse)
    for ask in (remote.files, remote.folders, remote.file):
        with pytest.raises(StorageError, match=r"cannot (list|look for) memory:.*s1: 403"):
            ask("s1")


@pytest.mark.parametrize("name", ["ls", "info"])
def test_a_store_that_is_busy_is_asked_again(remote, monkeypatch, name):
    real, failures = getattr(remote.store.fs, name), [OSError("503 slow down")]

    def busy(*args, **kwargs):
        if failures:
            raise failures.pop()
        return real(*args, **kwargs)

    monkeypatch.setattr(tenacity.nap.time, "sleep", lambda _: None)
    monkeypatch.setattr(remote.store.fs, name, busy)
    assert list(remote.files("s1/p1")) == ["x.tif", "y.tif"]
    assert remote.file("s1/p1/x.tif").size == 2
    assert not failures
