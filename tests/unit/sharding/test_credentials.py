"""Credentials that S3 refuses are read again: once for all threads, and not without end."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import ClientError, NoCredentialsError
from s3fs.errors import translate_boto_error

from sharding import credentials
from sharding.credentials import is_refusal
from sharding.errors import DataError, StorageError
from sharding.sources.tree import Tree
from sharding.store import Store

THREADS = 16


class FileSystem:
    """In place of s3fs: the first `refused` that are opened have credentials that have expired."""

    made = 0
    refused = 1

    def __init__(self, skip_instance_cache: bool = False, **options) -> None:
        self.storage_options = options
        self.retries = 5
        self.number = type(self).made
        type(self).made += 1

    def cat_file(self, path, start=None, end=None):
        self._refuse()
        return b"content"

    def pipe_file(self, path, content):
        """The credentials expire behind it."""

    def info(self, path):
        self._refuse()
        return {"name": path, "size": 7, "type": "file", "ETag": "x"}

    def ls(self, path, detail, refresh):
        self._refuse()
        return [{"name": f"{path}/x", "size": 7, "type": "file", "ETag": "x"}]

    def invalidate_cache(self, path):
        """Nothing is kept."""

    def _refuse(self):
        if self.number < self.refused:
            raise PermissionError("The provided token has expired.")


@pytest.fixture
def file_system(monkeypatch):
    """A class of its own for each test."""
    monkeypatch.setattr(credentials, "WAITS_S", (0.0, 0.01, 0.01))
    return type("Own", (FileSystem,), {})


def opened(file_system, url: str = "s3://bucket/set", **options) -> Store:
    store = Store(url)
    store.fs = file_system(**options)
    store.fs.retries = 1
    return store


def test_threads_that_are_refused_together_have_them_read_once(file_system):
    store, barrier, told = opened(file_system), threading.Barrier(THREADS), []

    def read():
        used = store.fs
        if used.number == 0:
            barrier.wait(10)
        return used.cat_file("x")

    with ThreadPoolExecutor(THREADS) as pool:
        results = [pool.submit(store.ask, "read", "x", read, told.append) for _ in range(THREADS)]
        assert {result.result() for result in results} == {b"content"}
    assert file_system.made == 2
    assert len(told) == THREADS
    assert store.fs.retries == 1


def test_those_that_stay_bad_are_given_up(file_system):
    file_system.refused = 1000
    with pytest.raises(StorageError, match=r"cannot read s3://bucket/set/x: The provided token has expired.; renew"):
        opened(file_system).read("x")
    assert file_system.made == 1 + len(credentials.WAITS_S)


@pytest.mark.parametrize("options", [{"key": "given", "secret": "given"}, {"anon": True}])
def test_those_that_were_given_are_not_read_again(file_system, options):
    with pytest.raises(StorageError, match="renew the credentials"):
        opened(file_system, **options).read("x")
    assert file_system.made == 1


def test_a_file_that_is_not_there_is_not_looked_for_again(file_system):
    def look():
        raise FileNotFoundError

    with pytest.raises(DataError, match="there is no s3://bucket/set/x"):
        opened(file_system).ask("read", "x", look)
    assert file_system.made == 1


def answer(code: str) -> OSError:
    """What s3fs raises when S3 answers so."""
    return translate_boto_error(ClientError({"Error": {"Code": code, "Message": "told"}}, "GetObject"))


@pytest.mark.parametrize("code", ["AccessDenied", "ExpiredToken", "InvalidToken", "400", "403", "RequestExpired"])
def test_a_refusal_is_known_by_its_code(code):
    assert is_refusal(answer(code))


@pytest.mark.parametrize("code", ["SlowDown", "InternalError", "InvalidRange", "NoSuchKey", "503", "404"])
def test_what_is_no_refusal_is_none(code):
    assert not is_refusal(answer(code))


def test_having_none_is_a_refusal():
    assert is_refusal(NoCredentialsError())
    assert not is_refusal(TimeoutError())


def test_what_was_sent_is_compared_with_those_that_were_read_again(file_system):
    opened(file_system).write("x", b"content")
    assert file_system.made == 2


@pytest.mark.parametrize("look", [lambda tree: tree.files("s1")["x"], lambda tree: tree.file("s1/x")])
def test_an_archive_is_listed_with_those_that_were_read_again(file_system, look):
    tree = Tree("s3://bucket/set")
    tree.store = opened(file_system)
    assert look(tree).size == 7
    assert file_system.made == 2
