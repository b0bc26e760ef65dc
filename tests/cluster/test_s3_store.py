"""`sharding.store` against a real S3 server: each operation under each fault, and the fault was there."""

import os

import pytest

from sharding.errors import DataError, StorageError
from sharding.store import Store
from sharding.upload_check import PART_BYTES
from tests.s3server import Fault

pytestmark = [pytest.mark.s3, pytest.mark.chaos]
CONTENT = bytes(range(256)) * 4096


@pytest.fixture(scope="module")
def bucket(s3_server):
    return s3_server.bucket("store")


@pytest.fixture
def store(s3, bucket):
    store = Store(f"{bucket}/set")
    store.write("there", CONTENT)
    return store


OPERATIONS = {
    "read": ("GET", "/there$", lambda store: store.read("there") == CONTENT),
    "read a range": ("GET", "/there$", lambda store: store.read_range("there", 10, 5000) == CONTENT[10:5000]),
    "size": ("HEAD", "/there$", lambda store: store.size("there") == len(CONTENT)),
    "exists": ("HEAD", "/there$", lambda store: store.exists("there")),
    "write": ("PUT", "/written$", lambda store: store.write("written", CONTENT) or store.read("written") == CONTENT),
    "remove": ("DELETE", "/there$", lambda store: store.remove("there") or not store.exists("there")),
}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("fault", ["503", "500"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_store_that_is_busy_is_asked_again(operation, fault, store, s3):
    method, path, succeeds = OPERATIONS[operation]
    s3.faults.set([Fault(do=fault, method=method, path=path, times=5 if fault == "503" else 3)])
    assert succeeds(store)
    assert len(s3.faults.seen()) == (5 if fault == "503" else 3)


@pytest.mark.parametrize("operation", ["read", "read a range"])
def test_an_answer_that_is_cut_is_asked_for_again(operation, store, s3):
    method, path, succeeds = OPERATIONS[operation]
    s3.faults.set([Fault(do="cut", method=method, path=path, times=2, amount=2000)])
    assert succeeds(store)
    assert len(s3.faults.seen()) == 2


@pytest.mark.timeout(180)
def test_a_server_that_does_not_answer_is_given_up_and_asked_again(store, s3):
    s3.faults.set([Fault(do="hang", path="/there$", amount=50)])
    assert store.read("there") == CONTENT
    assert s3.faults.seen()


@pytest.mark.timeout(300)
def test_a_store_that_is_always_busy_is_given_up_with_its_name(store, s3, monkeypatch):
    monkeypatch.setattr("sharding.store_retry._ATTEMPTS", 2)
    monkeypatch.setattr(type(store.fs), "retries", 1)
    s3.faults.set([Fault(do="503", path="/there$", times=10_000)])
    with pytest.raises(StorageError, match=r"cannot read s3://store/set/there: "):
        store.read("there")


def test_what_is_not_there_is_told_at_once(store):
    with pytest.raises(DataError, match="there is no s3://store/set/nothing"):
        store.read("nothing")
    assert not store.exists("nothing")
    store.remove("nothing")


def test_a_large_file_goes_in_parts_and_is_compared(store, s3, tmp_path):
    local = tmp_path / "shard.tar"
    local.write_bytes(os.urandom(2 * PART_BYTES + 12345))
    sent = local.read_bytes()
    store.put(local, "large")
    assert not local.exists()
    head = s3.client().head_object(Bucket="store", Key="set/large")
    assert head["ETag"].strip('"').endswith("-3")
    assert s3.objects("store", "set/large") == {"": sent}


@pytest.mark.timeout(180)
def test_a_part_that_fails_is_sent_again(store, s3, tmp_path):
    local = tmp_path / "shard.tar"
    local.write_bytes(os.urandom(2 * PART_BYTES + 1))
    sent = local.read_bytes()
    s3.faults.set([Fault(do="503", method="PUT", path="/parts$", skip=1, times=4)])
    store.put(local, "parts")
    assert len(s3.faults.seen()) == 4
    assert s3.objects("store", "set/parts") == {"": sent}
    assert s3.unfinished_uploads("store") == []


def test_uploads_that_a_killed_process_began_are_ended(store, s3):
    client = s3.client()
    client.create_multipart_upload(Bucket="store", Key="set/half")
    client.create_multipart_upload(Bucket="store", Key="another-set/half")
    assert store.abort_uploads() == 1
    assert s3.unfinished_uploads("store") == ["another-set/half"]


def test_an_object_that_another_process_writes_is_seen(store, s3):
    assert "late" not in store.files()
    s3.client().put_object(Bucket="store", Key="set/late", Body=b"x")
    assert "late" in store.files()
    assert store.exists("late")
    s3.client().delete_object(Bucket="store", Key="set/late")
    assert not store.exists("late")


def test_what_arrives_otherwise_than_it_was_sent_is_told(store, s3, monkeypatch):
    monkeypatch.setattr("sharding.store.is_stored", lambda *_: False)
    with pytest.raises(StorageError, match="does not hold what was sent to it, twice"):
        store.write("changed", b"x")


def test_an_object_whose_etag_says_nothing_is_read_back(store, s3, monkeypatch):
    from sharding import upload_check

    monkeypatch.setattr(upload_check, "_etags", lambda *_: ())
    store.write("plain", CONTENT)
    s3.faults.set([Fault(do="flip", path="/plain$", amount=77, times=2)])
    with pytest.raises(StorageError, match="does not hold what was sent"):
        store.write("plain", CONTENT)
    assert len(s3.faults.seen()) == 2
