import errno
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.stream import cache_folder, node_cache
from pipeline.stream.byte_range import ByteRange
from pipeline.stream.cache_folder import CacheFolder
from pipeline.stream.node_cache import NodeCache
from sharding.errors import ConfigError, DataError

ROOT = Path(__file__).parents[3]
FINGERPRINT = hashlib.sha256(b"pairs").hexdigest()
SIZE = 3 * 4096
ACCOUNT = 4096


def wanted(number: int) -> ByteRange:
    """Range `number`; five to a shard."""
    start = number % 5 * SIZE
    return ByteRange(f"shards/train-{number // 5:06d}.tar", start, start + SIZE, 5 * SIZE)


def content(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest() * (SIZE // 32)


def bound(ranges: float) -> int:
    return ACCOUNT + int(ranges * SIZE)


def opened(folder: Path, ranges: float = 1000, **changes) -> NodeCache:
    return NodeCache(**({"folder": folder, "fingerprint": FINGERPRINT, "max_bytes": bound(ranges)} | changes))


def read(held) -> bytes:
    with held:
        return held.content if held.descriptor is None else os.pread(held.descriptor, 2 * SIZE, 0)


def bring(cache: NodeCache, *numbers: int) -> list[bool]:
    """Whether each was a hit; the bytes are compared."""
    hits = []
    for number in numbers:
        held = cache.bring(wanted(number), lambda number=number: content(number))
        hits.append(held.hit)
        assert read(held) == content(number)
    return hits


def there(folder: Path) -> set[int]:
    """The numbers of the ranges in the folder."""
    found = {path.name for path in folder.rglob("*.range")}
    return {number for number in range(500) if NodeCache._name(opened_names, wanted(number)) in found}


opened_names = NodeCache.__new__(NodeCache)


def temporaries(folder: Path) -> list[Path]:
    return list(folder.rglob("*.part"))


def bytes_in(folder: Path) -> int:
    """All files, each inode once (a file may change its name while we look)."""
    sizes = {}
    for path in folder.rglob("*"):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        if path.is_file():
            sizes[status.st_ino] = -(-status.st_size // 4096) * 4096
    return sum(sizes.values())


def accounted(folder: Path) -> int:
    return int((folder / "account").read_text().split()[0])


def wait_for(condition, timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def logged(log: Path, number: int) -> bytes:
    """A fetch that leaves a line in `log`."""
    with log.open("a") as file:
        file.write(f"{number}\n")
    return content(number)


class Rank:
    """A process that runs `code` with all names of this module, `folder` and `log`."""

    def __init__(self, tmp_path: Path, code: str) -> None:
        preamble = (
            "from tests.unit.pipeline.test_node_cache import *\n"
            f"folder, log = Path({str(tmp_path / 'cache')!r}), Path({str(tmp_path / 'log')!r})\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", preamble + code],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        return self.process.stdout.readline().strip()

    def go(self) -> None:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def ended(self) -> str:
        out, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0
        return out.strip()


@pytest.fixture
def ranks(tmp_path):
    """Starts processes; those that a test leaves behind are killed."""
    started = []

    def start(code: str) -> Rank:
        started.append(Rank(tmp_path, code))
        return started[-1]

    yield start
    for rank in started:
        rank.kill()
        rank.process.stdin.close()
        rank.process.stdout.close()


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache"


FETCH_AND_HANG = """
def hang():
    print("fetching", flush=True)
    signal.pause()
opened(folder).bring(wanted(0), hang)
"""
HANG_IN_THE_WRITE = """
cache = opened(folder)
def hang(part, *rest):
    print("writing", flush=True)
    signal.pause()
os.pwrite = node_cache.os.pwrite = lambda part, *rest: hang(part) if len(rest[0]) == SIZE else pwrite(part, *rest)
bring(cache, 0)
""".replace("cache = ", "pwrite = os.pwrite\ncache = ", 1)
SAY_THAT_WE_WAIT = """
def pauses(limit_s, told=[]):
    for number, _ in enumerate(cache_folder.pauses(limit_s)):
        if number == 1:
            print("waiting", flush=True)
        yield
node_cache.pauses = pauses
"""


# One process


def test_a_range_is_fetched_once_and_then_read_from_the_disk(folder):
    cache = opened(folder)
    assert bring(cache, 0, 1, 0) == [False, False, True]
    assert (cache.hits, cache.misses, cache.full_disk) == (1, 2, 0)
    assert bring(opened(folder), 0, 1, 2) == [True, True, False]


def test_the_same_bytes_of_another_shard_or_data_set_are_another_range(folder):
    cache = opened(folder)
    assert bring(cache, 0, 5) == [False, False]  # basename and offsets may be the same
    other = opened(folder, fingerprint=hashlib.sha256(b"other").hexdigest())
    assert bring(other, 0) == [False]
    longer = ByteRange("a/" * 200 + "train.tar", 0, SIZE, SIZE)
    shorter = ByteRange("a/" * 199 + "train.tar", 0, SIZE, SIZE)
    assert not cache.bring(longer, lambda: content(0)).hit
    assert not cache.bring(shorter, lambda: content(1)).hit


def test_a_hit_takes_no_lock(folder, monkeypatch):
    cache = opened(folder)
    bring(cache, 0)

    def refuse(*_):
        raise AssertionError("a lock was taken")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert bring(cache, 0) == [True]
    with pytest.raises(AssertionError, match="a lock was taken"):
        bring(cache, 1)


def test_threads_that_want_the_same_range_fetch_it_once(folder, tmp_path):
    cache, together = opened(folder), threading.Barrier(8)

    def one(_) -> bytes:
        together.wait()
        return read(cache.bring(wanted(0), lambda: logged(tmp_path / "log", 0)))

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(one, range(8))) == {content(0)}
    assert (tmp_path / "log").read_text() == "0\n"
    assert (cache.hits, cache.misses) == (7, 1)


def test_a_fetch_that_fails_is_told_and_leaves_nothing(folder):
    cache = opened(folder)

    def fail() -> bytes:
        raise DataError("there is no such shard")

    with pytest.raises(DataError, match="no such shard"):
        cache.bring(wanted(0), fail)
    assert bytes_in(folder) == accounted(folder) == ACCOUNT
    assert bring(cache, 0) == [False]


def test_no_file_stays_open(folder):
    cache = opened(folder, ranges=4)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        bring(cache, number, number // 2)
        with pytest.raises(ZeroDivisionError):
            cache.bring(wanted(100), lambda: 1 // 0)
        held = cache.bring(wanted(number), lambda number=number: content(number))
        cache.discard(wanted(number))
        held.close()
        held.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_that_somebody_removes_is_made_again(folder):
    cache = opened(folder)
    bring(cache, 0)
    shutil.rmtree(folder)
    assert bring(cache, 0, 0) == [False, True]


# Several processes


def test_four_processes_that_want_the_same_ranges_fetch_each_once(folder, tmp_path, ranks):
    code = """
cache = opened(folder)
print("ready", flush=True)
sys.stdin.readline()
def one(number):
    assert read(cache.bring(wanted(number), lambda: logged(log, number))) == content(number)
with ThreadPoolExecutor(4) as pool:
    list(pool.map(one, range(50)))
print(cache.hits, cache.misses, cache.full_disk)
"""
    four = [ranks(code) for _ in range(4)]
    assert [rank.line() for rank in four] == ["ready"] * 4
    for rank in four:
        rank.go()
    counts = [[int(word) for word in rank.ended().split()] for rank in four]
    assert Counter((tmp_path / "log").read_text().split()) == {str(number): 1 for number in range(50)}
    assert [sum(column) for column in zip(*counts, strict=True)] == [150, 50, 0]
    assert not temporaries(folder)
    assert accounted(folder) == bytes_in(folder) == bound(50)


@pytest.mark.parametrize("locks", [True, False])
def test_only_the_lock_keeps_a_second_process_from_fetching(folder, tmp_path, ranks, locks):
    """The negative twin of the test above: where locks are granted to everybody, both fetch."""
    code = """
cache = opened(folder)
if sys.stdin.readline() and LOCKS == False:
    fcntl.flock = lambda *_: None
def fetch():
    logged(log, 0)
    print("fetching", flush=True)
    sys.stdin.readline()
    return content(0)
assert read(cache.bring(wanted(0), fetch)) == content(0)
""".replace("LOCKS", str(locks))
    first, second = ranks(code), ranks(SAY_THAT_WE_WAIT + code)
    first.go()
    assert first.line() == "fetching"
    second.go()
    assert second.line() == ("waiting" if locks else "fetching")
    first.go()
    first.ended()
    if not locks:
        second.go()
    second.ended()
    assert (tmp_path / "log").read_text() == ("0\n" if locks else "0\n0\n")


@pytest.mark.chaos
def test_when_the_fetching_process_is_killed_one_of_those_who_wait_fetches(folder, tmp_path, ranks):
    first = ranks(FETCH_AND_HANG)
    assert first.line() == "fetching"
    code = """
cache = opened(folder)
assert read(cache.bring(wanted(0), lambda: logged(log, 0))) == content(0)
print(cache.hits, cache.misses, cache.waited_s > 0, cache.full_disk)
"""
    others = [ranks(SAY_THAT_WE_WAIT + code) for _ in range(2)]
    assert [rank.line() for rank in others] == ["waiting"] * 2
    assert not (tmp_path / "log").exists()
    first.kill()
    assert sorted(rank.ended() for rank in others) == ["0 1 True 0", "1 0 True 0"]
    assert (tmp_path / "log").read_text() == "0\n"
    assert not temporaries(folder)
    assert accounted(folder) == bytes_in(folder)


@pytest.mark.chaos
def test_a_process_that_has_stopped_holds_nobody_up_for_ever(folder, ranks, monkeypatch):
    first = ranks(FETCH_AND_HANG)
    assert first.line() == "fetching"
    first.process.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(node_cache, "PATIENCE_S", 0.1)
    said = []
    cache = opened(folder, say=said.append)
    assert bring(cache, 0, 1) == [False, False]
    assert (cache.misses, cache.full_disk) == (2, 1)
    assert there(folder) == {1}
    assert "another process has been fetching it for" in said[0]


@pytest.mark.chaos
@pytest.mark.parametrize("removed_by", ["the next start", "eviction", "the next who wants the range"])
def test_a_temporary_of_a_killed_process_is_removed(folder, ranks, removed_by):
    cache = opened(folder, ranges=3)
    rank = ranks(HANG_IN_THE_WRITE)
    assert rank.line() == "writing"
    assert [path.stat().st_size for path in temporaries(folder)] == [SIZE]
    opened(folder)
    assert temporaries(folder), "its writer lives"
    rank.kill()
    if removed_by == "the next start":
        opened(folder)
        assert bytes_in(folder) == ACCOUNT
    elif removed_by == "eviction":
        bring(cache, 1, 2, 3)
        assert there(folder) == {1, 2, 3}  # it made room enough
    else:
        assert bring(cache, 0) == [False]
    assert not temporaries(folder)
    assert bytes_in(folder) == accounted(folder)


def watched(folder: Path, writers: list[Rank]) -> list[int]:
    """Bytes in the folder, at many moments while the writers run; the lock makes each a moment."""
    seen = []
    while any(rank.process.poll() is None for rank in writers):
        account = cache_folder.try_lock(str(folder / "account"))
        if account is not None:
            seen.append(bytes_in(folder))
            cache_folder.unlock(account)
        time.sleep(0.01)  # let them write
    return [*seen, bytes_in(folder)]


@pytest.mark.parametrize("ranges", [20, 99])
def test_the_bound_holds_at_every_moment_with_several_writers(folder, ranks, ranges):
    """The negative twin: with a higher bound the same writers pass 20 ranges."""
    code = """
cache = opened(folder, ranges=RANGES)
with ThreadPoolExecutor(3) as pool:
    list(pool.map(lambda number: bring(cache, number), range(FIRST, FIRST + 40)))
print(cache.evicted, cache.full_disk)
""".replace("RANGES", str(ranges))
    opened(folder)
    writers = [ranks(code.replace("FIRST", str(40 * rank))) for rank in range(4)]
    seen = watched(folder, writers)
    evicted, in_memory = zip(*([int(word) for word in rank.ended().split()] for rank in writers), strict=True)
    assert len(seen) > 20
    assert (max(seen) <= bound(20)) == (ranges == 20)
    assert max(seen) > bound(15)
    assert sum(evicted) == 160 - len(there(folder)) - sum(in_memory)
    assert not temporaries(folder)


@pytest.mark.chaos
def test_killed_again_and_again_the_folder_stays_right(folder, tmp_path, ranks):
    code = """
cache = opened(folder, ranges=30)
def one(number):
    assert read(cache.bring(wanted(number), lambda: logged(log, number))) == content(number)
with ThreadPoolExecutor(4) as pool:
    while True:
        list(pool.map(one, range(50)))
"""
    log = tmp_path / "log"
    for turn in range(1, 4):
        three = [ranks(code) for _ in range(3)]
        for number, rank in enumerate(three):
            wait_for(lambda goal=turn * 60 + number * 11: log.exists() and log.read_text().count("\n") > goal)
            rank.kill()
    cache = opened(folder, ranges=30)
    assert not temporaries(folder)
    assert bytes_in(folder) <= accounted(folder) <= bound(30)
    kept = len(there(folder))
    assert sum(bring(cache, *sorted(there(folder)))) == kept > 10
    bring(cache, *range(100, 140))
    assert bytes_in(folder) == accounted(folder)


# Eviction


def test_what_is_needed_last_goes_first(folder):
    cache = opened(folder, ranges=4)
    cache.set_next_use({wanted(0): 7.0, wanted(1): 9.0, wanted(2): 8.0, wanted(3): 6.0, wanted(4): 5.0}.__getitem__)
    bring(cache, 0, 1, 2, 3)
    bring(cache, 4)
    assert there(folder) == {0, 2, 3, 4}
    assert cache.evicted == 1


def test_without_a_known_future_the_longest_unused_goes_first(folder):
    """The negative twin of the test above: the same ranges in the same order."""
    cache = opened(folder, ranges=4)
    bring(cache, 0, 1, 2, 3)
    bring(cache, 4)
    assert there(folder) == {1, 2, 3, 4}


def test_reading_a_range_makes_it_recently_used(folder):
    cache = opened(folder, ranges=4)
    bring(cache, 0, 1, 2, 3, 0)
    bring(cache, 4)
    assert there(folder) == {0, 2, 3, 4}


def test_ranges_that_other_processes_brought_are_kept_as_long_as_they_are_needed(folder):
    bring(opened(folder, ranges=4), 0, 1, 2)
    cache = opened(folder, ranges=4)
    cache.set_next_use({wanted(0): 1.0, wanted(1): 3.0, wanted(2): 2.0, wanted(3): 0.0, wanted(4): 0.0}.__getitem__)
    bring(cache, 3, 4)
    assert there(folder) == {0, 2, 3, 4}


def test_ranges_of_other_data_sets_go_before_those_that_are_needed(folder):
    cache = opened(folder, ranges=4)
    cache.set_next_use(lambda _: 1e9)
    bring(cache, 0, 1)
    other = opened(folder, ranges=4, fingerprint="0123456789abcdef0")
    bring(other, 10, 11)
    del other
    bring(cache, 2)
    assert [path.name for path in (folder / "0123456789abcdef").iterdir()] == [
        "shards%2Ftrain-000002.tar.12288-24576-61440.range"
    ]
    bring(cache, 3)
    assert there(folder) == {0, 1, 2, 3}


@pytest.mark.parametrize("fingerprint", [FINGERPRINT, "0123456789abcdef0"])
def test_caches_of_one_process_keep_what_another_one_needs(folder, fingerprint):
    """Training and evaluation of one data set, and the data sets of a mixture."""
    one, other = opened(folder, ranges=4), opened(folder, ranges=4, fingerprint=fingerprint)
    one.set_next_use(lambda wanted_range: {wanted(0): 2.0, wanted(1): 9.0}.get(wanted_range, float("inf")))
    bring(one, 0, 1)
    other.set_next_use(lambda wanted_range: {wanted(2): 1.0, wanted(3): 3.0}.get(wanted_range, float("inf")))
    bring(other, 2, 3, 4)
    assert there(folder) == {0, 2, 3, 4}


def test_the_future_of_a_shard_with_a_long_path_is_known(folder):
    cache, asked = opened(folder, ranges=1), []
    cache.set_next_use(lambda wanted_range: asked.append(wanted_range) or 0.0)
    long = ByteRange("folder/" * 60 + "train.tar", 5, 5 + SIZE, 10 * SIZE)
    assert read(cache.bring(long, lambda: content(0))) == content(0)
    bring(cache, 1)
    assert asked == [long]


def test_what_is_being_read_stays_and_what_finds_no_room_stays_in_memory(folder):
    said = []
    cache = opened(folder, ranges=2, say=said.append)
    held = [cache.bring(wanted(number), lambda number=number: content(number)) for number in range(3)]
    third = cache.bring(wanted(3), lambda: content(3))
    assert [one.descriptor is None for one in [*held, third]] == [False, False, True, True]
    assert third.content == content(3)
    assert there(folder) == {0, 1}
    assert cache.full_disk == 2
    assert len(said) == 1
    assert "too small for what is in use at one time" in said[0]
    assert [read(one) for one in held] == [content(number) for number in range(3)]
    assert bring(cache, 3, 3) == [False, True]


def test_a_range_that_was_removed_can_be_read_by_who_has_it_open(folder):
    reader, writer = opened(folder, ranges=1), opened(folder, ranges=1)
    held = reader.bring(wanted(0), lambda: content(0))
    node_cache._caches.discard(reader)  # as if it were another process
    bring(writer, 1)
    assert there(folder) == {1}
    assert read(held) == content(0)


def test_few_writers_of_a_large_cache_look_at_all_files(folder, monkeypatch):
    cache, looks, look = opened(folder, ranges=200), [], CacheFolder._look
    bring(cache, *range(200))
    monkeypatch.setattr(CacheFolder, "_look", lambda self: looks.append(1) or look(self))
    bring(cache, *range(200, 300))
    assert cache.evicted == 100
    assert len(looks) == 17  # a 32nd of 200 files, 6, at a time


def test_others_go_on_while_one_process_asks_for_its_future(folder):
    cache, free = opened(folder, ranges=2), []

    def slow(_) -> float:
        account = cache_folder.try_lock(str(folder / "account"))
        free.append(account is not None)
        cache_folder.unlock(account)
        return 0.0

    cache.set_next_use(slow)
    bring(cache, 0, 1, 2)
    assert free == [True, True]


def test_a_range_that_was_read_after_it_was_chosen_to_go_stays(folder):
    cache = opened(folder, ranges=64)
    bring(cache, *range(64))
    bring(cache, 64)  # 0 goes, 1 is the next
    bring(opened(folder), 1)
    bring(cache, 65)
    assert there(folder) == {1, *range(3, 66)}


def test_a_lower_bound_than_that_of_the_last_run_is_kept_from_the_start(folder):
    bring(opened(folder, ranges=9), *range(9))
    cache = opened(folder, ranges=3)
    cache.set_next_use(lambda wanted_range: abs(wanted_range.start - 2 * SIZE))
    assert bytes_in(folder) == accounted(folder) == bound(3)


def test_files_that_are_not_ours_are_neither_counted_nor_removed(folder):
    stranger = folder / "thesis" / "chapter-1.tex"
    stranger.parent.mkdir(parents=True)
    stranger.write_bytes(bytes(10 * SIZE))
    (folder / "notes.range").write_bytes(bytes(10 * SIZE))
    bring(opened(folder, ranges=2), *range(5))
    assert stranger.stat().st_size == (folder / "notes.range").stat().st_size == 10 * SIZE
    assert len(there(folder)) == 2


@pytest.mark.parametrize("boot", ["of today", "before the last"])
def test_an_account_from_before_a_reboot_is_not_believed(folder, boot):
    """It may have been lost on its way to the disk. The negative twin: a wrong one of today breaks the bound."""
    bring(opened(folder, ranges=3), 0, 1, 2)
    now = cache_folder._boot_id()
    (folder / "account").write_text(f"{0:020d} {now if boot == 'of today' else now[::-1]}\n")
    bring(opened(folder, ranges=3), 3)
    assert (bytes_in(folder) <= bound(3)) == (boot != "of today")


def test_an_account_that_is_too_high_costs_a_look_and_no_range(folder):
    cache = opened(folder, ranges=4)
    bring(cache, 0, 1)
    (folder / "account").write_text(f"{bound(100):020d} {cache_folder._boot_id()}\n")
    bring(cache, 2)
    assert there(folder) == {0, 1, 2}
    assert accounted(folder) == bytes_in(folder)


# Damage


@pytest.mark.parametrize("size", [0, 100, SIZE - 1, SIZE + 1])
def test_a_file_of_the_wrong_size_is_fetched_again(folder, size):
    cache = opened(folder)
    bring(cache, 0)
    (file,) = folder.rglob("*.range")
    os.truncate(file, size)
    assert bring(cache, 0, 0) == [False, True]
    assert [path.stat().st_size for path in folder.rglob("*.range")] == [SIZE]


def test_wrong_content_is_fetched_again_after_discard(folder):
    cache = opened(folder)
    bring(cache, 0, 1)
    file = folder / FINGERPRINT[:16] / NodeCache._name(cache, wanted(0))
    file.write_bytes(content(7))
    held = cache.bring(wanted(0), lambda: content(0))
    assert held.hit
    assert os.pread(held.descriptor, SIZE, 0) == content(7)
    cache.discard(wanted(0))
    held.close()
    assert bring(cache, 0, 1) == [False, True]
    assert accounted(folder) == bytes_in(folder)


def test_discard_leaves_what_another_process_has_put_in_its_place(folder):
    cache = opened(folder)
    file = folder / FINGERPRINT[:16] / NodeCache._name(cache, wanted(0))
    bring(cache, 0)
    file.write_bytes(content(7))
    first, second = (cache.bring(wanted(0), lambda: content(0)) for _ in range(2))
    cache.discard(wanted(0))
    assert bring(opened(folder), 0) == [False]
    cache.discard(wanted(0))  # the second reader found the same wrong bytes
    assert bring(cache, 0) == [True]
    first.close()
    second.close()
    cache.discard(wanted(0))  # nobody has it open now: what is there is meant
    assert bring(cache, 0) == [False]


# Disks that refuse


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_on_a_disk_that_refuses_the_run_goes_on_in_memory_and_says_so_once(folder, monkeypatch, code):
    said, pwrite = [], os.pwrite
    cache = opened(folder, say=said.append)
    bring(cache, 0)

    def refuse(descriptor, data, place):
        if len(data) < 100:
            return pwrite(descriptor, data, place)  # the account
        pwrite(descriptor, data[:5000], place)
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", refuse)
        held = cache.bring(wanted(1), lambda: content(1))
        assert (held.descriptor, held.content) == (None, content(1))
        assert bring(cache, 2, 3) == [False, False]
    assert (cache.full_disk, cache.misses) == (3, 4)
    assert len(said) == 1
    assert os.strerror(code) in said[0]
    assert not temporaries(folder)
    assert there(folder) == ({0} if code == errno.EIO else set())  # on a full disk ours make room
    assert accounted(folder) == bytes_in(folder)
    assert bring(cache, 1, 1) == [False, True]


def can_mount() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/tmp"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


def on_a_small_disk(folder: Path, options: str, code: str) -> str:
    """What `code` prints in a mount namespace of its own, where `folder` is a file system of its own."""
    folder.mkdir()
    preamble = f"from tests.unit.pipeline.test_node_cache import *\nfolder = Path({str(folder)!r})\n"
    mount = f'mount -t tmpfs -o {options} none {folder} && exec "$@"'
    command = ["unshare", "-rm", "bash", "-c", mount, "bash", sys.executable, "-c", preamble + code]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


@pytest.mark.chaos
@pytest.mark.skipif(not can_mount(), reason="needs a mount namespace")
@pytest.mark.parametrize("limit", ["size=200k", "size=10m,nr_inodes=20"])
def test_a_disk_that_is_smaller_than_the_bound_is_used_as_far_as_it_goes(folder, limit):
    code = """
cache = opened(folder)
cache.set_next_use({wanted(number): float(number) for number in range(40)}.__getitem__)
bring(cache, *range(40))
print(cache.full_disk, cache.evicted, len(there(folder)), sum(bring(cache, *range(40))), temporaries(folder))
"""
    # 200 KiB: 50 blocks, 16 ranges and the account. 20 inodes: 17 beside the account and two folders.
    kept = 16 if limit.startswith("size=200k") else 17
    assert on_a_small_disk(folder, limit, code) == f"0 {40 - kept} {kept} {kept - 1} []"


@pytest.mark.chaos
@pytest.mark.skipif(not can_mount(), reason="needs a mount namespace")
def test_a_disk_that_others_fill_up_is_used_again_when_they_leave(folder):
    code = """
said = []
cache = opened(folder, say=said.append)
try:
    (folder / "other").write_bytes(bytes(10**6))
except OSError as error:
    assert error.errno == errno.ENOSPC
bring(cache, *range(10))
kept = cache.full_disk, len(said)
late = opened(folder, say=said.append)
(folder / "other").unlink()
print(*kept, bring(cache, *range(10), *range(10)).count(True), cache.full_disk, bring(late, 1))
"""
    assert on_a_small_disk(folder, "size=200k", code) == "10 1 10 10 [True]"


@pytest.mark.chaos
@pytest.mark.skipif(not can_mount(), reason="needs a mount namespace")
def test_a_read_only_folder_is_refused_with_its_reason(folder):
    code = """
try:
    opened(folder / "cache")
except ConfigError as error:
    print(error)
"""
    said = on_a_small_disk(folder, "size=200k,ro", code)
    assert f"the cache folder {folder}/cache cannot be used" in said
    assert "Read-only file system" in said
    assert "name a folder on a local disk" in said


def test_a_folder_of_somebody_else_is_refused(tmp_path):
    folder = tmp_path / "of somebody else"
    folder.mkdir(mode=0o500)
    if os.geteuid() == 0:  # root may write everywhere, but where nobody may
        folder = Path("/proc/sys/kernel")
    with pytest.raises(ConfigError, match=r"Permission denied|No such file|not permitted"):
        opened(folder)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be used .*Not a directory"):
        opened(tmp_path / "cache")


def test_a_bound_that_holds_nothing_is_refused(folder):
    with pytest.raises(ConfigError, match="0 bytes holds nothing"):
        opened(folder, max_bytes=0)
    assert not folder.exists()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs /dev/shm")
@pytest.mark.parametrize("by_link", [False, True])
def test_a_folder_in_memory_is_refused_before_it_is_made(tmp_path, by_link):
    (tmp_path / "link").symlink_to("/dev/shm")
    with pytest.raises(ConfigError, match=r"lies in memory .*cache_gib"):
        opened((tmp_path / "link" if by_link else Path("/dev/shm")) / "cache-of-a-test")
    assert not Path("/dev/shm/cache-of-a-test").exists()


def test_a_file_system_without_locks_is_refused(folder, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ConfigError, match=r"without locks \(No locks available\)"):
        opened(folder)
    assert not temporaries(folder)


def test_a_file_system_that_grants_a_lock_twice_is_refused(folder, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    with pytest.raises(ConfigError, match="a second lock on a locked file was granted"):
        opened(folder)
