"""Memory that comes back to its pool: not before the last view of it is gone, and not more than is kept."""

import gc
import threading

import numpy as np
import pytest

from pipeline.stream import lent_memory
from pipeline.stream.lent_memory import MemoryPool


def address(memory) -> int:
    return memory.ctypes.data


def test_what_nobody_refers_to_is_lent_again():
    pool = MemoryPool(keep_bytes=1 << 20)
    first = pool.lend(100_000)
    assert len(first) == 100_000
    place = address(first)
    del first
    again = pool.lend(99_000)
    assert (address(again), len(again)) == (place, 99_000)


@pytest.mark.parametrize(
    "view",
    [
        lambda lent: lent[10:],
        lambda lent: np.frombuffer(lent, np.uint8),
        np.asarray,
        memoryview,
        lambda lent: lent[5:][5:].reshape(2, -1),
    ],
)
def test_a_view_keeps_the_memory(view):
    pool = MemoryPool(keep_bytes=1 << 20)
    lent = pool.lend(100_000)
    lent[:] = 7
    place, seen = address(lent), view(lent)
    del lent
    other = pool.lend(100_000)
    other[:] = 9
    assert address(other) != place
    assert (np.asarray(seen) == 7).all()
    del seen
    gc.collect()
    assert address(pool.lend(100_000)) == place


def test_much_smaller_and_larger_ranges_get_other_memory():
    pool = MemoryPool(keep_bytes=10 << 20)
    lent = pool.lend(1 << 20)
    place = address(lent)
    del lent
    smaller, larger = pool.lend(1 << 19), pool.lend((1 << 20) + (1 << 17))
    assert place not in (address(smaller), address(larger))
    assert address(pool.lend((1 << 20) - (1 << 17))) == place


def test_no_more_is_kept_than_was_said():
    pool = MemoryPool(keep_bytes=4 << 20)
    lent = [pool.lend(1 << 20) for _ in range(10)]
    del lent
    pool.lend(1)
    assert sum(map(len, pool._free)) <= 4 << 20


def test_no_memory_is_told():
    with pytest.raises(MemoryError, match="no memory for 1125899906842624 bytes of a fetched range"):
        MemoryPool(0).lend(1 << 50)


def test_threads_never_get_the_same_memory():
    pool, errors = MemoryPool(keep_bytes=8 << 20), []

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        for _ in range(300):
            lent = pool.lend(int(rng.integers(1, 200_000)))
            lent[:] = number
            if (lent != number).any():
                errors.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert lent_memory._ROUND <= sum(map(len, pool._free)) <= (8 << 20) + (1 << 18)
